"""The Qwen2-style Transformer that the LLM, the patch encoder and the patch decoder share.

Pre-norm blocks of grouped-query attention (q/k/v with bias) and SwiGLU, RMSNorm, half-rotation RoPE; layers are stacked
on a leading axis and scanned, so compile time and the parameter tree do not grow with depth.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mimo_jax.models import kernels, layers, partition, short_attention

Array = jax.Array
# Keys and values of every layer: each [layers, B, kv_heads, slots, head_dim].
Cache = tuple[Array, Array]
# The same in separate arrays [B, kv_heads, slots, head_dim] per layer, for `decode`.
LayerCaches = list[tuple[Array, Array]]
# Longest sequence for which every pair of positions may have a row of its own.
SHORT = 16


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed, apart from what it computes.

    Attributes:
      dtype: of activations and matrix products.
      param_dtype: of stored parameters.
      remat: rematerialisation policy of a layer, see `layers.remat`.
      patch_remat: the same for the layers of patch encoder and decoder; None = as `remat`.
      attention: implementation for long rows, see `mimo_jax.models.kernels`; "auto" = the one for the devices.
      short_attention: for the few frames of a patch: "heads" (one product per head) or "pairs" (`short_attention`, for
        matrix units; needs as many key heads as query heads).
      max_segments: see `kernels.packed_attention`.
      unroll: layers per iteration of the scan; all of them spares a shallow model the copies in and out of the stack.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    patch_remat: str | None = None
    attention: str = "xla"
    short_attention: str = "heads"
    max_segments: int = 256
    unroll: int = 1

    @property
    def of_patches(self) -> Compute:
        """For the patch models."""
        return self if self.patch_remat is None else dataclasses.replace(self, remat=self.patch_remat)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of one Transformer stack (arXiv 2512.23808, Table 2)."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    causal: bool
    initializer_range: float = 0.02


class Attention(nn.Module):
    """Multi-head attention with rotary positions and an optional key/value cache.

    Biases follow the published models: the LM's transformers have them on q, k, v and not on the output.
    """

    config: TransformerConfig
    compute: Compute
    bias: tuple[str, ...] = ("q", "k", "v")
    row_axes: tuple[str | None, str | None] = ("batch", "length")

    @nn.compact
    def __call__(
        self,
        x: Array,
        positions: Array,
        mask: Array | None,
        segment_ids: Array | None,
        cache: tuple[Array, Array] | None = None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """x [B, T, D], positions [B, T], mask [B, 1, T, S]; cache (keys, values) each [B, kv_heads, S, head_dim].

        With segment_ids [B, T] there is no mask: a kernel for packed rows (`kernels.packed_attention`) sees to it.

        With a cache, the new keys and values are written at slot = position and attention runs over the whole cache,
        so that a right-padded prompt and ragged batches need nothing but the mask (S slots).
        """

        config = self.config
        linear: dict[str, Any] = {
            "dtype": self.compute.dtype,
            "param_dtype": self.compute.param_dtype,
            "kernel_init": nn.initializers.normal(config.initializer_range),
            "row_axes": self.row_axes,
        }

        def project(name: str, heads: int, reorder: Callable[[Array], Array] | None = None) -> Array:
            return layers.Linear(
                heads * config.head_dim,
                axes=("embed", "heads" if name == "q" else "kv_heads"),
                use_bias=name in self.bias,
                reorder=reorder,
                name=f"{name}_proj",
                **linear,
            )(x)

        if self.compute.short_attention == "pairs":
            halves = functools.partial(short_attention.halves_first, heads=config.num_heads)
            rotate = functools.partial(
                short_attention.apply_rope, positions=positions, heads=config.num_heads, theta=config.rope_theta
            )
            query, key = (rotate(project(name, config.num_heads, halves)) for name in ("q", "k"))
            value = project("v", config.num_heads)
            y = short_attention.attention(query, key, value, config.num_heads, config.causal)
        else:

            def by_head(name: str, heads: int) -> Array:
                return project(name, heads).reshape(*x.shape[:2], heads, config.head_dim)

            query = layers.apply_rope(by_head("q", config.num_heads), positions, config.rope_theta)
            key = layers.apply_rope(by_head("k", config.num_kv_heads), positions, config.rope_theta)
            value = by_head("v", config.num_kv_heads)
            query, key, value = (checkpoint_name(x, "qkv") for x in (query, key, value))
            y, cache = self._attend(query, key, value, positions, mask, segment_ids, cache)
        y = checkpoint_name(y, kernels.OUTPUT)
        y = layers.Linear(
            x.shape[-1],
            axes=("heads", "embed"),
            use_bias="out" in self.bias,
            name="out_proj",
            **linear,
        )(y.reshape(*x.shape[:2], config.num_heads * config.head_dim))
        return y, cache

    def _attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        positions: Array,
        mask: Array | None,
        segment_ids: Array | None,
        cache: tuple[Array, Array] | None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Attention of projected arrays [B, T, heads, head_dim], and the cache with the new keys and values."""
        if segment_ids is not None:
            packed = functools.partial(
                kernels.packed_attention,
                causal=self.config.causal,
                implementation=self.compute.attention,
                max_segments=self.compute.max_segments,
            )
            return packed(query, key, value, segment_ids), cache
        if cache is None:
            return layers.attention(query, key, value, mask), cache
        rows = jnp.arange(query.shape[0])[:, None, None]
        heads = jnp.arange(self.config.num_kv_heads)[None, :, None]
        slots = jnp.broadcast_to(positions, query.shape[:2])[:, None, :]
        cache = (
            cache[0].at[rows, heads, slots].set(key.swapaxes(1, 2).astype(cache[0].dtype)),
            cache[1].at[rows, heads, slots].set(value.swapaxes(1, 2).astype(cache[1].dtype)),
        )
        y = layers.cached_attention(query, cache[0].astype(query.dtype), cache[1].astype(query.dtype), mask)
        return y, cache


class Block(nn.Module):
    """One layer: attention and SwiGLU MLP, each behind an RMSNorm with a residual."""

    config: TransformerConfig
    compute: Compute
    return_output: bool = False
    row_axes: tuple[str | None, str | None] = ("batch", "length")

    @nn.compact
    def __call__(
        self,
        x: Array,
        layer_cache: tuple[Array, Array] | None,
        positions: Array,
        mask: Array | None,
        segment_ids: Array | None = None,
    ) -> tuple[Array, tuple[Array | None, tuple[Array, Array] | None]]:
        config, dtypes = self.config, {"dtype": self.compute.dtype, "param_dtype": self.compute.param_dtype}
        init = nn.initializers.normal(config.initializer_range)
        x = partition.constrain(x, (*self.row_axes, "activation_embed"))

        h = layers.Norm("RMSNorm", config.rms_norm_eps, name="input_norm", **dtypes)(x)
        attention = Attention(config, self.compute, row_axes=self.row_axes, name="attention")
        h, layer_cache = attention(h, positions, mask, segment_ids, layer_cache)
        x = x + h

        h = layers.Norm("RMSNorm", config.rms_norm_eps, name="post_attention_norm", **dtypes)(x)
        linear = {"kernel_init": init, "row_axes": self.row_axes, **dtypes}
        wide = {"features": config.intermediate_size, "axes": ("embed", "mlp"), **linear}
        gate, up = (checkpoint_name(layers.Linear(name=f"{name}_proj", **wide)(h), "mlp") for name in ("gate", "up"))
        h = nn.silu(gate) * up
        h = layers.Linear(config.hidden_size, ("mlp", "embed"), name="down_proj", **linear)(h)
        x = x + h
        return x, (x if self.return_output else None, layer_cache)


class Transformer(nn.Module):
    """Stack of `Block`s and a final RMSNorm. `row_axes`: logical axes of rows and positions."""

    config: TransformerConfig
    compute: Compute = Compute()
    row_axes: tuple[str | None, str | None] = ("batch", "length")

    @nn.compact
    def __call__(
        self,
        x: Array,
        positions: Array,
        segment_ids: Array | None = None,
        cache: Cache | None = None,
        return_layers: bool = False,
    ) -> tuple[Array, Cache | Array | None]:
        """Runs the stack.

        Args:
          x: [B, T, hidden_size] input embeddings.
          positions: [B, T] (or [1, T]) positions, restarting in every segment.
          segment_ids: [B, T], 0 = padding; None = one segment a row.
          cache: with it, slot = position and each query sees the slots up to its own position.
          return_layers: also return each layer's output [layers, B, T, hidden_size] (for tests and probes).

        Returns:
          (hidden [B, T, hidden_size] after the final norm, the updated cache, or the layers' outputs, or None).
        """
        config, mask, packed = self.config, None, None
        if cache is not None:
            slots = jnp.arange(cache[0].shape[3])[None, :]
            mask = layers.attention_mask(positions, slots, causal=True)
        elif not kernels.is_plain(self.compute.attention, x.shape[1]):
            packed = jnp.ones(x.shape[:2], jnp.int32) if segment_ids is None else segment_ids
        else:
            # Inside a row, order is what counts: positions restart per segment, so it is the index that is compared.
            index = jnp.arange(x.shape[1])[None, :]
            mask = layers.attention_mask(
                index, index, causal=config.causal, query_segments=segment_ids, key_segments=segment_ids
            )
        compute = dataclasses.replace(self.compute, short_attention=self._short_attention(x, segment_ids, cache))
        block = layers.remat(Block, self.compute.remat)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            out_axes=0,
            length=config.num_layers,
            unroll=self.compute.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, compute, return_layers, self.row_axes, name="layers")
        x, (outputs, cache) = stack(x.astype(self.compute.dtype), cache, positions, mask, packed)
        x = layers.Norm(
            "RMSNorm", config.rms_norm_eps, self.compute.dtype, self.compute.param_dtype, name="final_norm"
        )(x)
        return x, (outputs if return_layers else cache)

    def _short_attention(self, x: Array, segment_ids: Array | None, cache: Cache | None) -> str:
        """What `Compute.short_attention` comes to for these rows: "heads" unless they are short and whole."""
        choice = self.compute.short_attention
        if choice not in ("heads", "pairs"):
            raise ValueError(f"unknown short_attention {choice!r}: use 'heads' or 'pairs'")
        whole = segment_ids is None and cache is None and self.config.num_heads == self.config.num_kv_heads
        return choice if whole and x.shape[1] <= SHORT else "heads"


def init_cache(config: TransformerConfig, batch: int, slots: int, dtype: str = "float32") -> Cache:
    """Empty key/value cache of `slots` positions for `batch` sequences."""
    shape = (config.num_layers, batch, config.num_kv_heads, slots, config.head_dim)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


def empty_caches(
    config: TransformerConfig, batch: int, slots: int, dtype: str = "float32", device: Any = None
) -> LayerCaches:
    """Caches for `decode` that hold nothing yet; `device`: a device or sharding."""
    shape = (batch, config.num_kv_heads, slots, config.head_dim)
    make = functools.partial(jnp.zeros, shape, dtype, device=device)
    return [(make(), make()) for _ in range(config.num_layers)]


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a `Transformer` with `layers` as a list of per-layer trees, as `decode` wants them."""
    depth = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(depth)]}


def decode(
    config: TransformerConfig,
    compute: Compute,
    params: dict[str, Any],
    x: Array,
    positions: Array,
    caches: LayerCaches | None,
    unpack: Callable[[dict[str, Any], Array], dict[str, Any]] = lambda params, _: params,
) -> tuple[Array, LayerCaches]:
    """What `Transformer` computes, layer after layer without a scan.

    A scan copies each layer's parameters and cache out and in; separate arrays are read and updated where they lie,
    which makes a step of generation several times faster.

    Args:
      params: see `unstack_layers`.
      x: [B, T, hidden_size].
      positions: [B, T] or [1, T].
      caches: with them, slot = position and each query sees the slots up to its own; None = whole rows.
      unpack: makes the parameters of a layer from what is kept of them and the layer's input.
    """
    if caches is None:
        index = jnp.arange(x.shape[1])[None, :]
        mask = layers.attention_mask(index, index, causal=config.causal)
    else:
        mask = layers.attention_mask(positions, jnp.arange(caches[0][0].shape[2])[None, :], causal=True)
    block, updated = Block(config, dataclasses.replace(compute, short_attention="heads")), []
    x = x.astype(compute.dtype)
    for number, layer_params in enumerate(params["layers"]):
        layer_cache = None if caches is None else caches[number]
        x, (_, layer_cache) = block.apply({"params": unpack(layer_params, x)}, x, layer_cache, positions, mask)
        updated.append(layer_cache)
    norm = layers.Norm("RMSNorm", config.rms_norm_eps, compute.dtype, compute.param_dtype)
    return norm.apply({"params": params["final_norm"]}, x), updated
