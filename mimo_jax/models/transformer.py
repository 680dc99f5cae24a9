"""The Qwen2-style Transformer that the LLM, the patch encoder and the patch decoder share.

Pre-norm blocks of grouped-query attention (q/k/v with bias) and SwiGLU, RMSNorm, half-rotation RoPE; layers are stacked
on a leading axis and scanned, so compile time and the parameter tree do not grow with depth.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models import layers, partition

Array = jax.Array
# Keys and values of every layer: each [layers, B, kv_heads, slots, head_dim].
Cache = tuple[Array, Array]
# The same in separate arrays [B, kv_heads, slots, head_dim] per layer, for `decode`.
LayerCaches = list[tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed, apart from what it computes.

    Attributes:
      dtype: of activations and matrix products.
      param_dtype: of stored parameters.
      remat: rematerialisation policy of a layer, see `layers.remat`.
      attention: attention implementation, see `layers.attention`.
      unroll: layers per iteration of the scan; all of them spares a shallow model the copies in and out of the stack.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    unroll: int = 1


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


class Block(nn.Module):
    """One layer: attention and SwiGLU MLP, each behind an RMSNorm with a residual."""

    config: TransformerConfig
    compute: Compute
    return_output: bool = False
    row_axes: tuple[str | None, str | None] = ("batch", "length")

    @nn.compact
    def __call__(
        self, x: Array, layer_cache: tuple[Array, Array] | None, positions: Array, mask: Array | None
    ) -> tuple[Array, tuple[Array | None, tuple[Array, Array] | None]]:
        config, dtypes = self.config, {"dtype": self.compute.dtype, "param_dtype": self.compute.param_dtype}
        init = nn.initializers.normal(config.initializer_range)
        x = partition.constrain(x, (*self.row_axes, "activation_embed"))

        h = layers.Norm("RMSNorm", config.rms_norm_eps, name="input_norm", **dtypes)(x)
        h, layer_cache = layers.Attention(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope_theta=config.rope_theta,
            kernel_init=init,
            implementation=self.compute.attention,
            name="attention",
            **dtypes,
        )(h, positions, mask, layer_cache)
        x = x + h

        h = layers.Norm("RMSNorm", config.rms_norm_eps, name="post_attention_norm", **dtypes)(x)
        wide = {"features": config.intermediate_size, "axes": ("embed", "mlp"), "kernel_init": init, **dtypes}
        h = nn.silu(layers.Linear(name="gate_proj", **wide)(h)) * layers.Linear(name="up_proj", **wide)(h)
        h = layers.Linear(config.hidden_size, ("mlp", "embed"), kernel_init=init, name="down_proj", **dtypes)(h)
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
        config = self.config
        if cache is not None:
            slots = jnp.arange(cache[0].shape[3])[None, :]
            mask = layers.attention_mask(positions, slots, causal=True)
        else:
            # Inside a row, order is what counts: positions restart per segment, so it is the index that is compared.
            index = jnp.arange(x.shape[1])[None, :]
            mask = layers.attention_mask(
                index, index, causal=config.causal, query_segments=segment_ids, key_segments=segment_ids
            )
        block = layers.remat(Block, self.compute.remat)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            out_axes=0,
            length=config.num_layers,
            unroll=self.compute.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.compute, return_layers, self.row_axes, name="layers")
        x, (outputs, cache) = stack(x.astype(self.compute.dtype), cache, positions, mask)
        x = layers.Norm(
            "RMSNorm", config.rms_norm_eps, self.compute.dtype, self.compute.param_dtype, name="final_norm"
        )(x)
        return x, (outputs if return_layers else cache)


def init_cache(config: TransformerConfig, batch: int, slots: int, dtype: str = "float32") -> Cache:
    """Empty key/value cache of `slots` positions for `batch` sequences."""
    shape = (config.num_layers, batch, config.num_kv_heads, slots, config.head_dim)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


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
    caches: LayerCaches,
) -> tuple[Array, LayerCaches]:
    """What `Transformer` with a cache computes, layer after layer without a scan.

    A scan copies each layer's cache in and out; separate arrays are updated in place, which makes a step of generation
    several times faster. params: see `unstack_layers`; x [B, T, hidden_size], positions [B, T].
    """
    slots = jnp.arange(caches[0][0].shape[2])[None, :]
    mask = layers.attention_mask(positions, slots, causal=True)
    block, updated = Block(config, compute), []
    x = x.astype(compute.dtype)
    for layer_params, layer_cache in zip(params["layers"], caches, strict=True):
        x, (_, layer_cache) = block.apply({"params": layer_params}, x, layer_cache, positions, mask)
        updated.append(layer_cache)
    norm = layers.Norm("RMSNorm", config.rms_norm_eps, compute.dtype, compute.param_dtype)
    return norm.apply({"params": params["final_norm"]}, x), updated
