"""Layers that every model of the package is made of: linear maps, norms, rotary positions, attention.

Arrays keep the order [batch, time, heads, head_dim]. Parameters carry logical axis names (`embed`, `heads`, `mlp`, ...)
that `mimo_jax.parallel` maps to mesh axes. Reductions that decide numerics (softmax, norms) are computed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models import partition

Array = jax.Array
Dtype = jnp.dtype | str
Initializer = Callable[..., Array]

NO_LIMIT = (-1, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(x: Array, kernel: Array, axes: partition.Names, row_axes: partition.Names) -> Array:
    """`x @ kernel` of [..., in] and [in, out] in x's dtype.

    A kernel that devices hold in pieces is cast first and gathered then: half the bytes travel where x is bfloat16. Its
    gradient is `x^T g` in the kernel's dtype (float32), so that is what devices add up, and each keeps its piece.

    JAX would write the gradient as `(g^T x)^T`. Mathematically the same; but XLA on CPU then fuses whatever produced g
    (the derivative of an activation, say) into a transposed, strided write, which makes a small MLP's backward pass
    twice as slow.

    Args:
      axes: logical axes of the kernel.
      row_axes: logical axes of x's dimensions before the last.
    """
    return x @ _whole(kernel, axes, x.dtype)


def _whole(kernel: Array, axes: partition.Names, dtype: Dtype) -> Array:
    return partition.constrain(kernel.astype(dtype), partition.used(axes))


def _matmul_forward(
    x: Array, kernel: Array, axes: partition.Names, row_axes: partition.Names
) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel, axes, row_axes), (x, kernel)


def _matmul_backward(
    axes: partition.Names, row_axes: partition.Names, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    return g @ _whole(kernel, axes, g.dtype).T, partition.kernel_gradient(x, g, kernel, axes, row_axes)


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nn.Module):
    """`x @ kernel + bias` over the last axis. kernel [in, features].

    Attributes:
      axes: logical axes of the kernel, (in, out).
      row_axes: logical axes of x's first dimensions; dimensions beyond them are not split.
      reorder: applied to the columns of kernel and bias when they are used.
    """

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = False
    row_axes: tuple[str | None, ...] = ("batch", "length")
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.normal(0.02)
    reorder: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        reorder = self.reorder or (lambda columns: columns)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, self.axes),
            (x.shape[-1], self.features),
            jnp.dtype(self.param_dtype),
        )
        row_axes = (*self.row_axes, *(None for _ in x.shape))[: x.ndim - 1]
        y = matmul(x.astype(self.dtype), reorder(kernel), self.axes, row_axes)
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, (self.axes[1],)),
                (self.features,),
                jnp.dtype(self.param_dtype),
            )
            y = y + reorder(_whole(bias, self.axes[1:], self.dtype))
        return y


class Norm(nn.Module):
    """RMSNorm (`kind="RMSNorm"`, scale only) or LayerNorm (scale and bias) over the last axis, in float32."""

    kind: str = "RMSNorm"
    eps: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kind not in ("RMSNorm", "LayerNorm"):
            raise ValueError(f"unknown norm {self.kind!r}: use 'RMSNorm' or 'LayerNorm'")
        features = x.shape[-1]
        y = x.astype(jnp.float32)
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            (features,),
            jnp.dtype(self.param_dtype),
        )
        if self.kind == "LayerNorm":
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = y * scale.astype(jnp.float32)
        if self.kind == "LayerNorm":
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
                (features,),
                jnp.dtype(self.param_dtype),
            )
            y = y + bias.astype(jnp.float32)
        return y.astype(self.dtype)


def unbox(tree: Any) -> Any:
    """The tree's arrays without their logical axis names; unlike `nn.unbox` it constrains no sharding."""
    return jax.tree.map(
        lambda x: x.value if isinstance(x, nn.Partitioned) else x, tree, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )


def apply_rope(x: Array, positions: Array, theta: float) -> Array:
    """Rotary position embedding in half-rotation pairing: dimension i turns with dimension i + head_dim / 2.

    Args:
      x: [B, T, heads, head_dim] queries or keys.
      positions: [B, T] integer positions (broadcastable over B).
      theta: base of the geometric series of frequencies.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention_mask(
    query_positions: Array,
    key_positions: Array,
    *,
    causal: bool,
    window: Sequence[int] = NO_LIMIT,
    query_segments: Array | None = None,
    key_segments: Array | None = None,
) -> Array | None:
    """Which key each query sees, [B, 1, T, S] bool, or None if every query sees every key.

    Query i sees key j when `i - left <= j <= i + right` (window = (left, right), -1 = no limit; causal makes right 0)
    and both have the same segment id. Segment id 0 marks padding, which no valid query sees.
    """
    left, right = window
    if causal:
        right = 0
    difference = key_positions[..., None, :] - query_positions[..., :, None]
    mask = None
    for limit in ([difference >= -left] if left >= 0 else []) + ([difference <= right] if right >= 0 else []):
        mask = limit if mask is None else mask & limit
    if query_segments is not None and key_segments is not None:
        same = query_segments[..., :, None] == key_segments[..., None, :]
        mask = same if mask is None else mask & same
    return None if mask is None else mask[..., None, :, :]


def attention(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, implementation: str = "xla"
) -> Array:
    """Softmax attention scaled by 1 / sqrt(head_dim), softmax in float32, grouped key/value heads.

    Args:
      query: [B, T, heads, head_dim].
      key, value: [B, S, kv_heads, head_dim]; heads is a multiple of kv_heads, query head h reads kv head
        h // (heads / kv_heads).
      mask: [B or 1, 1, T, S] bool, True = visible.
      implementation: "cudnn" (NVIDIA GPU, bfloat16 or float16); all others compute plainly. Long packed rows have
        kernels of their own (`mimo_jax.models.kernels`).
    """
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    # [B, kv_heads, group * T, head_dim]: one batched product per kv head, whatever the grouping.
    grouped = query.transpose(0, 2, 1, 3).reshape(batch, kv_heads, heads // kv_heads * length, head_dim)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    logits = jnp.einsum("bktd,bksd->bkts", grouped, key, preferred_element_type=jnp.float32) * head_dim**-0.5
    if mask is not None:
        logits = logits.reshape(batch, heads, length, -1)
        # Finite, so that a padded query (which sees nothing) gives numbers instead of NaN.
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min / 2)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype).reshape(batch, kv_heads, -1, key.shape[2])
    out = jnp.einsum("bkts,bksd->bktd", weights, value)
    return out.reshape(batch, heads, length, head_dim).transpose(0, 2, 1, 3)


def cached_attention(query: Array, keys: Array, values: Array, mask: Array | None) -> Array:
    """As `attention`, over a key/value cache laid out [B, kv_heads, S, head_dim].

    With heads before slots, one query per sequence is a matrix-vector product over contiguous memory (measured on CPU:
    2 to 5 times faster than the layout [B, S, kv_heads, head_dim], whose product needs a transposed copy).
    """
    batch, length, heads, head_dim = query.shape
    grouped = query.reshape(batch, length, keys.shape[1], -1, head_dim)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys, preferred_element_type=jnp.float32) / head_dim**0.5
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bkgts,bksd->btkgd", weights, values).reshape(batch, length, heads, head_dim)


# Names of values that a rematerialisation policy can keep: attention's output, its inputs (after rotary positions), the
# two wide activations of the MLP.
KEPT_NAMES = ("attention", "qkv", "mlp")


def remat(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """`module` with rematerialisation of its activations in the backward pass.

    Args:
      policy: "none" keeps everything, "full" keeps nothing but the module's inputs, "dots" the matrix products, and
        names of `KEPT_NAMES` joined by "+" ("attention", "attention+qkv") these values. "host:attention+qkv" moves
        them to the host's memory until they are needed.
    """
    if policy == "none":
        return module
    # scan already separates the iterations: preventing common subexpression elimination again only costs time.
    return nn.remat(module, policy=remat_policy(policy), prevent_cse=False)


def remat_policy(policy: str) -> Any:
    """The policy of `jax.checkpoint` for a name, see `remat`."""
    fixed = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    if policy in fixed:
        return fixed[policy]
    names = policy.removeprefix("host:").split("+")
    if not set(names) <= set(KEPT_NAMES):
        raise ValueError(
            f"unknown remat policy {policy!r}: use 'none', 'full', 'dots', or names of {KEPT_NAMES} joined by '+', "
            "with 'host:' before them to keep them in the host's memory"
        )
    if policy.startswith("host:"):
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=names,
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint_policies.save_only_these_names(*names)
