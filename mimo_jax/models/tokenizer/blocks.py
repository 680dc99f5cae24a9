"""Blocks of encoder, decoder and vocoder: convolutions as matrix products, masked GroupNorm, the Transformer stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models import kernels, layers
from mimo_jax.models.tokenizer import extents
from mimo_jax.models.tokenizer.extents import E, Extent, masked
from mimo_jax.models.tokenizer.frontend import frames, overlap_add
from mimo_jax.models.transformer import Compute

Array = jax.Array

FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
NORM_EPS = {"LayerNorm": 1e-5, "RMSNorm": 1e-6}
GROUP_NORM_EPS = 1e-5


def gelu(x: Array) -> Array:
    """GELU with the error function (not its tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


def dtypes(compute: Compute) -> dict[str, Any]:
    """Keyword arguments of the layers that a `Compute` decides."""
    return {"dtype": compute.dtype, "param_dtype": compute.param_dtype}


def norm(kind: str, compute: Compute, name: str | None) -> layers.Norm:
    """The tokenizer's norm of a kind, with the epsilon that belongs to it (name None: as its attribute is called)."""
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


def group_statistics(x: Array, extent: Extent) -> tuple[Array, Array]:
    """Mean and variance over all channels and frames of each sequence of x [B, T, C], in float32.

    [B] each; of packed sequences [B, T], at each frame those of its sequence.
    """
    x, size = x.astype(jnp.float32), x.shape[1]
    frames_of = extents.sums(jnp.ones(x.shape[:2]), extent)
    count = jnp.maximum(frames_of * x.shape[-1], 1)
    mean = extents.sums(x.sum(axis=-1), extent) / count
    centred = x - extents.spread(mean, extent, size)[..., None]
    variance = extents.sums(jnp.square(centred).sum(axis=-1), extent) / count
    if isinstance(extent, extents.Packed):
        return extents.spread(mean, extent, size), extents.spread(variance, extent, size)
    return mean[:, 0], variance[:, 0]


class MaskedGroupNorm(nn.Module):
    """GroupNorm with one group: statistics over all channels and frames of each sequence."""

    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array, statistics: tuple[Array, Array]) -> Array:
        """x [B, T, C], (mean, variance) as `group_statistics` gives them -> [B, T, C] (not masked)."""
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
        mean, variance = (value.reshape(x.shape[0], -1, 1) for value in statistics)
        y = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance + GROUP_NORM_EPS) * scale + bias
        return y.astype(self.compute.dtype)


class Upsample(nn.Module):
    """Transposed convolution and GroupNorm; the norm sees the size - stride frames that are cut on the right."""

    features: int
    size: int
    stride: int
    compute: Compute = Compute()

    def setup(self) -> None:
        """Names of the parts."""
        self.conv = ConvTranspose1d(self.features, self.size, self.stride, self.compute)
        self.norm = MaskedGroupNorm(self.compute)

    def __call__(self, x: Array, extent: E) -> tuple[Array, E]:
        """x [B, T, in], zero outside its extent -> ([B, T * stride, features], its extent), zero outside it."""
        y, extent = self.conv(x), extents.stretched(extent, self.stride)
        statistics = group_statistics(y, extents.prolonged(extent, self.size - self.stride))
        self.sow("intermediates", "statistics", statistics)
        y = self.norm(y, statistics)
        return masked(y[:, : x.shape[1] * self.stride], extent), extent

    @property
    def history(self) -> int:
        """Earlier input frames that an output frame depends on."""
        return -(-self.size // self.stride) - 1

    def convolve(self, history: Array, x: Array) -> Array:
        """Before the norm, the frames that x [B, T, in] adds to a stream: [B, T * stride, features].

        history: the `history` input frames before x [B, history, in], zero where there are none.
        """
        y = self.conv(jnp.concatenate([history, x], axis=1))
        return y[:, self.history * self.stride :][:, : x.shape[1] * self.stride]


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


class Past(NamedTuple):
    """Keys and values [(layers,) B, heads, slots, head_dim] of the first length [(layers,) B] positions of a stream."""

    keys: Array
    values: Array
    length: Array

    @classmethod
    def empty(cls, config: StackConfig, batch: int, slots: int, dtype: str = "float32") -> Past:
        """No positions yet; room for `slots`."""
        shape = (config.num_layers, batch, config.num_heads, slots, config.width // config.num_heads)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((config.num_layers, batch), jnp.int32))

    def extended(self, key: Array, value: Array, positions: Array) -> Past:
        """With key and value [B, T, heads, head_dim] at slot = position [B, T]; the length is left to the caller."""
        index = jnp.arange(key.shape[0])[:, None, None], jnp.arange(key.shape[2])[None, :, None], positions[:, None, :]
        return self._replace(
            keys=self.keys.at[index].set(key.swapaxes(1, 2).astype(self.keys.dtype), mode="drop"),
            values=self.values.at[index].set(value.swapaxes(1, 2).astype(self.values.dtype), mode="drop"),
        )

    def advanced(self, count: Array) -> Past:
        """After `count` [B] of the positions that were added: what comes next overwrites the others (padding)."""
        return self._replace(length=self.length + count)


def windowed_attention(
    query: Array, key: Array, value: Array, segment_ids: Array, window: tuple[int, int], implementation: str
) -> Array:
    """Attention inside a two-sided window, in blocks: cost grows with T, not T^2.

    Args:
      query, key, value: [B, T, heads, head_dim].
      segment_ids: [B, T]; a query sees keys of its own segment.
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
    ids = jnp.pad(segment_ids, ((0, 0), (size, size + count * size - length)), constant_values=-1)
    around = jnp.concatenate(
        [ids[:, j * size : (j + count) * size].reshape(batch, count, size) for j in range(3)], axis=2
    )
    same = ids[:, size : (count + 1) * size].reshape(batch, count, size, 1) == around[:, :, None, :]
    mask = (near[None] & same).reshape(batch * count, 1, size, 3 * size)
    y = layers.attention(
        block(query).reshape(batch * count, size, heads, dim),
        surround(key),
        surround(value),
        mask,
        implementation=implementation,
    )
    return y.reshape(batch, count * size, heads, dim)[:, :length]


class SelfAttention(nn.Module):
    """Self-attention with RoPE within sequences; biases on q, v and the output, none on k."""

    config: StackConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Array, extent: Extent, past: Past | None) -> tuple[Array, Past | None]:
        """x [B, T, width] -> ([B, T, width], the past with x in it); see `Stack`."""
        config, heads, implementation = self.config, self.config.num_heads, self.compute.attention

        def project(name: str, axes: tuple[str, str], y: Array) -> Array:
            bias = name != "k_proj"
            return layers.Linear(config.width, axes, bias, kernel_init=FAN_IN, name=name, **dtypes(self.compute))(y)

        split = (*x.shape[:2], heads, config.width // heads)
        positions = extents.positions(extent, x.shape[1]) + (0 if past is None else past.length[:, None])
        query = layers.apply_rope(project("q_proj", ("embed", "heads"), x).reshape(split), positions, config.rope_theta)
        key = layers.apply_rope(
            project("k_proj", ("embed", "kv_heads"), x).reshape(split), positions, config.rope_theta
        )
        value = project("v_proj", ("embed", "kv_heads"), x).reshape(split)

        window = (config.window[0], 0 if config.causal else config.window[1])
        if past is not None:
            past = past.extended(key, value, positions)
            slots = jnp.arange(past.keys.shape[2])[None, :]
            mask = layers.attention_mask(positions, slots, causal=True, window=config.window)
            y = layers.cached_attention(query, past.keys, past.values, mask)
            return project("out_proj", ("heads", "embed"), y.reshape(x.shape)), past
        ids = extents.segment_ids(extent, x.shape[1])
        unlimited = config.window[0] < 0 and (config.causal or config.window[1] < 0)
        if min(window) >= 0 and x.shape[1] > 3 * max(*window, 16):
            y = windowed_attention(query, key, value, ids, window, implementation)
        elif unlimited and not kernels.is_plain(implementation, x.shape[1]):
            y = kernels.packed_attention(
                query,
                key,
                value,
                ids,
                causal=config.causal,
                implementation=implementation,
                max_segments=1 + extents.capacity(extent),
            )
        else:
            mask = layers.attention_mask(
                positions, positions, causal=config.causal, window=config.window, query_segments=ids, key_segments=ids
            )
            y = layers.attention(query, key, value, mask, implementation=implementation)
        return project("out_proj", ("heads", "embed"), y.reshape(x.shape)), past


class TransformerLayer(nn.Module):
    """Pre-norm attention and GELU MLP. The carry also holds the hidden state that the skip connection brings along."""

    config: StackConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array | None], index: Array, past: Past | None, extent: Extent
    ) -> tuple[tuple[Array, Array | None], Past | None]:
        """carry (x, skip) each [B, T, width], index of the layer, its past, the extent of x."""
        (x, skip), config, compute = carry, self.config, self.compute
        x = nn.with_logical_constraint(x, ("batch", "length", "activation_embed"))
        h = norm(config.norm, compute, "self_attn_layer_norm")(x)
        h, past = SelfAttention(config, compute, name="self_attn")(h, extent, past)
        x = x + h
        h = norm(config.norm, compute, "final_layer_norm")(x)
        linear: Mapping[str, Any] = {"use_bias": True, "kernel_init": FAN_IN, **dtypes(compute)}
        h = gelu(layers.Linear(config.ffn, ("embed", "mlp"), name="fc1", **linear)(h))
        x = x + layers.Linear(config.width, ("mlp", "embed"), name="fc2", **linear)(h)
        if skip is not None and config.skip is not None:
            skip = jnp.where(index == config.skip - 1, x, skip)
        self.sow("intermediates", "output", x)
        return (x, skip), past


class Stack(nn.Module):
    """Scanned Transformer layers. With `config.skip` = n the output of the first n layers is added at the end."""

    config: StackConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array, extent: Extent, past: Past | None = None) -> tuple[Array, Past | None]:
        """x [B, T, width], its extent -> ([B, T, width] before any norm, the past with x in it).

        past: for a causal stack, keys and values of the positions before x, stacked over layers (`Past.empty`).
        """
        scanned = nn.scan(
            layers.remat(TransformerLayer, self.compute.remat),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            length=self.config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, self.compute, name="layers")
        x = x.astype(self.compute.dtype)
        skip = None if self.config.skip is None else jnp.zeros_like(x)
        (x, skip), past = scanned((x, skip), jnp.arange(self.config.num_layers), past, extent)
        return (x if skip is None else x + skip), past
