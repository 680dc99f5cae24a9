"""Blocks of encoder, decoder and vocoder: convolutions as matrix products, masked GroupNorm, the Transformer stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models import layers
from mimo_jax.models.tokenizer.frontend import frames, overlap_add
from mimo_jax.models.transformer import Compute

Array = jax.Array

FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
NORM_EPS = {"LayerNorm": 1e-5, "RMSNorm": 1e-6}
GROUP_NORM_EPS = 1e-5


def gelu(x: Array) -> Array:
    """GELU with the error function (not its tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


def valid_mask(lengths: Array, size: int) -> Array:
    """[B, size] bool: the first lengths[b] positions of row b."""
    return jnp.arange(size)[None, :] < lengths[:, None]


def masked(x: Array, lengths: Array) -> Array:
    """x [B, T, ...] with zeros from position lengths[b] on."""
    mask = valid_mask(lengths, x.shape[1]).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return jnp.where(mask, x, 0)


def dtypes(compute: Compute) -> dict[str, Any]:
    """Keyword arguments of the layers that a `Compute` decides."""
    return {"dtype": compute.dtype, "param_dtype": compute.param_dtype}


def norm(kind: str, compute: Compute, name: str) -> layers.Norm:
    """The tokenizer's norm of a kind, with the epsilon that belongs to it."""
    return layers.Norm(kind, NORM_EPS[kind], compute.dtype, compute.param_dtype, name=name)


class Conv1d(nn.Module):
    """Convolution over axis 1 as one matrix product. kernel [size, in, features]; x [B, T, in].

    A matrix product over frames is faster on CPU than `lax.conv` and the same elsewhere.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, in] -> [B, T', features]."""
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(FAN_IN, (None, None, "embed")),
            (self.size, x.shape[-1], self.features),
            jnp.dtype(self.compute.param_dtype),
        ).astype(self.compute.dtype)
        x = jnp.pad(x.astype(self.compute.dtype), ((0, 0), (self.padding, self.padding), (0, 0)))
        # An input shorter than the kernel gives no output; static shapes keep one (masked) frame instead.
        x = jnp.pad(x, ((0, 0), (0, max(0, self.size - x.shape[1])), (0, 0)))
        x = frames(x, self.size, self.stride)
        y = x.reshape(*x.shape[:2], -1) @ kernel.reshape(-1, self.features)
        if self.use_bias:
            y = y + _bias(self, self.features).astype(self.compute.dtype)
        return y


class ConvTranspose1d(nn.Module):
    """Transposed convolution over axis 1: x [B, T, in] -> [B, (T - 1) * stride + size, features].

    kernel [size, in, features].
    """

    features: int
    size: int
    stride: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, in] -> [B, (T - 1) * stride + size, features]."""
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(FAN_IN, (None, "embed", None)),
            (self.size, x.shape[-1], self.features),
            jnp.dtype(self.compute.param_dtype),
        ).astype(self.compute.dtype)
        flat = jnp.moveaxis(kernel, 0, 1).reshape(x.shape[-1], -1)
        y = (x.astype(self.compute.dtype) @ flat).reshape(*x.shape[:2], self.size, self.features)
        return overlap_add(y, self.stride) + _bias(self, self.features).astype(self.compute.dtype)


def _bias(module: nn.Module, features: int) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
    return module.param("bias", init, (features,), jnp.dtype(module.compute.param_dtype))  # type: ignore[attr-defined]


class MaskedGroupNorm(nn.Module):
    """GroupNorm with one group: statistics over all channels and the first lengths[b] frames of each sequence."""

    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        """x [B, T, C], lengths [B] -> [B, T, C] (not masked)."""
        init = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        scale, bias = (
            self.param(
                name,
                nn.with_logical_partitioning(init[name], ("norm",)),
                (x.shape[-1],),
                jnp.dtype(self.compute.param_dtype),
            ).astype(jnp.float32)
            for name in ("scale", "bias")
        )
        y = x.astype(jnp.float32)
        count = jnp.maximum(lengths * x.shape[-1], 1).astype(jnp.float32)[:, None, None]
        mean = masked(y, lengths).sum(axis=(1, 2), keepdims=True) / count
        y = y - mean
        variance = masked(jnp.square(y), lengths).sum(axis=(1, 2), keepdims=True) / count
        y = y * jax.lax.rsqrt(variance + GROUP_NORM_EPS) * scale + bias
        return y.astype(self.compute.dtype)


class Upsample(nn.Module):
    """Transposed convolution and GroupNorm; the norm sees the size - stride frames that are cut on the right."""

    features: int
    size: int
    stride: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> tuple[Array, Array]:
        """x [B, T, in], zero behind lengths [B] -> ([B, T * stride, features], lengths * stride), zero behind them."""
        y = ConvTranspose1d(self.features, self.size, self.stride, self.compute, name="conv")(x)
        produced = jnp.where(lengths > 0, (lengths - 1) * self.stride + self.size, 0)
        y = MaskedGroupNorm(self.compute, name="norm")(y, produced)
        lengths = lengths * self.stride
        return masked(y[:, : x.shape[1] * self.stride], lengths), lengths


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """One Transformer stack of the tokenizer. window = [left, right], -1 = no limit; skip = see `Stack`."""

    width: int
    ffn: int
    num_layers: int
    num_heads: int
    causal: bool
    window: tuple[int, int]
    norm: str
    rope_theta: float
    skip: int | None = None


def windowed_attention(
    query: Array, key: Array, value: Array, lengths: Array, window: tuple[int, int], implementation: str
) -> Array:
    """Attention inside a two-sided window, in blocks: cost grows with T, not T^2.

    Args:
      query, key, value: [B, T, heads, head_dim].
      lengths: [B] valid positions.
      window: (left, right), neither -1.
    """
    batch, length, heads, dim = query.shape
    size = max(*window, 16)  # one block of keys on each side then covers the window
    count = -(-length // size)

    def block(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0), (0, 0)))
        return x.reshape(batch, count, size, heads, dim)

    def surround(x: Array) -> Array:
        x = jnp.pad(block(x), ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)
        return x.reshape(batch * count, 3 * size, heads, dim)

    positions = jnp.arange(count * size).reshape(count, size)
    key_positions = positions[:, :1] - size + jnp.arange(3 * size)[None, :]
    difference = key_positions[:, None, :] - positions[:, :, None]
    near = (difference >= -window[0]) & (difference <= window[1])  # [count, size, 3 size]
    exists = (key_positions[None] >= 0) & (key_positions[None] < lengths[:, None, None])  # [B, count, 3 size]
    mask = (near[None] & exists[:, :, None, :]).reshape(batch * count, 1, size, 3 * size)
    y = layers.attention(
        block(query).reshape(batch * count, size, heads, dim),
        surround(key),
        surround(value),
        mask,
        implementation=implementation,
    )
    return y.reshape(batch, count * size, heads, dim)[:, :length]


class SelfAttention(nn.Module):
    """Self-attention with RoPE over a padded batch; biases on q, v and the output, none on k."""

    config: StackConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        """x [B, T, width], lengths [B] -> [B, T, width]."""
        config, heads = self.config, self.config.num_heads

        def project(name: str, axes: tuple[str, str], y: Array) -> Array:
            bias = name != "k_proj"
            return layers.Linear(config.width, axes, bias, kernel_init=FAN_IN, name=name, **dtypes(self.compute))(y)

        split = (*x.shape[:2], heads, config.width // heads)
        positions = jnp.arange(x.shape[1])[None, :]
        query = layers.apply_rope(project("q_proj", ("embed", "heads"), x).reshape(split), positions, config.rope_theta)
        key = layers.apply_rope(
            project("k_proj", ("embed", "kv_heads"), x).reshape(split), positions, config.rope_theta
        )
        value = project("v_proj", ("embed", "kv_heads"), x).reshape(split)

        window = (config.window[0], 0 if config.causal else config.window[1])
        if min(window) >= 0 and x.shape[1] > 3 * max(*window, 16):
            y = windowed_attention(query, key, value, lengths, window, self.compute.attention)
        else:
            valid = valid_mask(lengths, x.shape[1]).astype(jnp.int32)
            mask = layers.attention_mask(
                positions,
                positions,
                causal=config.causal,
                window=config.window,
                query_segments=jnp.ones_like(valid),  # padding queries read valid keys too: their results are unused
                key_segments=valid,
            )
            y = layers.attention(query, key, value, mask, implementation=self.compute.attention)
        return project("out_proj", ("heads", "embed"), y.reshape(x.shape))


class TransformerLayer(nn.Module):
    """Pre-norm attention and GELU MLP. The carry also holds the hidden state that the skip connection brings along."""

    config: StackConfig
    compute: Compute

    @nn.compact
    def __call__(self, carry: tuple[Array, Array | None], index: Array, lengths: Array) -> tuple[tuple, None]:
        """carry (x, skip) each [B, T, width], index of the layer, lengths [B]."""
        (x, skip), config, compute = carry, self.config, self.compute
        x = nn.with_logical_constraint(x, ("batch", "length", "activation_embed"))
        x = x + SelfAttention(config, compute, name="self_attn")(
            norm(config.norm, compute, "self_attn_layer_norm")(x), lengths
        )
        h = norm(config.norm, compute, "final_layer_norm")(x)
        linear: Mapping[str, Any] = {"use_bias": True, "kernel_init": FAN_IN, **dtypes(compute)}
        h = gelu(layers.Linear(config.ffn, ("embed", "mlp"), name="fc1", **linear)(h))
        x = x + layers.Linear(config.width, ("mlp", "embed"), name="fc2", **linear)(h)
        if skip is not None and config.skip is not None:
            skip = jnp.where(index == config.skip - 1, x, skip)
        self.sow("intermediates", "output", x)
        return (x, skip), None


class Stack(nn.Module):
    """Scanned Transformer layers. With `config.skip` = n the output of the first n layers is added at the end."""

    config: StackConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        """x [B, T, width], lengths [B] -> [B, T, width] (before any norm)."""
        scanned = nn.scan(
            layers.remat(TransformerLayer, self.compute.remat),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, self.compute, name="layers")
        x = x.astype(self.compute.dtype)
        skip = None if self.config.skip is None else jnp.zeros_like(x)
        (x, skip), _ = scanned((x, skip), jnp.arange(self.config.num_layers), lengths)
        return x if skip is None else x + skip
