"""Cross entropy over a large vocabulary, without all logits at once and without one reduction per piece of them.

The loss is a weighted sum with weights that are known beforehand, so its gradients are known up to one factor as soon
as the logits are. They are computed in the forward pass, chunk by chunk: logits exist once, for one chunk of rows.
Under a mesh the head is gathered once before the chunks and its gradient, summed over them in float32, is reduced once
after them; the compiler left alone does both in every chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mimo_jax.models import partition

Array = jax.Array

TOKEN_AXES = ("batch", "length")
KERNEL_AXES = ("embed", "vocab")


def cross_entropy(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] in float32. logits [..., V], targets [...] -> [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def vocabulary_cross_entropy(
    hidden: Array, kernel: Array, targets: Array, weights: Array, chunk: int = 0
) -> tuple[Array, Array]:
    """Weighted sum of the cross entropies of `softmax(hidden @ kernel)`.

    Args:
      hidden: [B, T, D], in the dtype of the products; logits and sums are float32.
      kernel: [D, V], logical axes ("embed", "vocab").
      targets: [B, T] int ids.
      weights: [B, T]; 0 = the target does not count. They receive no gradient.
      chunk: rows of logits (on each device) that exist at a time, 0 = all. The result does not depend on it.

    Returns:
      (sum of weights * nll, float32 []; nll [B, T] float32 without gradient).
    """
    total, nll, _, _ = _run(hidden, kernel, targets, weights, chunk, with_gradients=False)
    return total, nll


def _forward(
    hidden: Array, kernel: Array, targets: Array, weights: Array, chunk: int
) -> tuple[tuple[Array, Array], tuple[Array | None, Array | None]]:
    total, nll, hidden_gradient, kernel_gradient = _run(hidden, kernel, targets, weights, chunk, with_gradients=True)
    return (total, nll), (hidden_gradient, kernel_gradient)


def _backward(
    chunk: int, saved: tuple[Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    (hidden_gradient, kernel_gradient), (scale, _) = saved, cotangents
    return hidden_gradient * scale.astype(hidden_gradient.dtype), kernel_gradient * scale, None, None


vocabulary_cross_entropy.defvjp(_forward, _backward)


def _run(
    hidden: Array, kernel: Array, targets: Array, weights: Array, chunk: int, *, with_gradients: bool
) -> tuple[Array, Array, Array | None, Array | None]:
    """(sum, nll [B, T], gradients of the sum by hidden and kernel or None), each device computing its own rows."""
    tokens = partition.spec(TOKEN_AXES, targets.shape)
    row_axes = partition.flat_axes(tokens)
    stored, vocabulary = (partition.axes_of(entry) for entry in partition.spec(KERNEL_AXES, kernel.shape))
    # Only where rows are split over the same axes does gathering and scattering over them make sense.
    stored = stored if set(stored) <= set(row_axes) else ()
    across = tuple(axis for axis in row_axes if axis not in stored)

    def local(hidden: Array, kernel: Array, targets: Array, weights: Array) -> tuple[Array, ...]:
        whole = kernel.astype(hidden.dtype)
        if stored:
            whole = jax.lax.all_gather(whole, stored, axis=0, tiled=True)
        shape, width = targets.shape, hidden.shape[-1]
        flat = (hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1).astype(jnp.float32))
        nll, by_hidden, by_kernel = _in_chunks(whole, *flat, chunk, vocabulary, with_gradients)
        total = (nll * flat[2]).sum()
        total = jax.lax.psum(total, row_axes) if row_axes else total
        if by_hidden is None or by_kernel is None:
            return total, nll.reshape(shape)
        if vocabulary:
            by_hidden = jax.lax.psum(by_hidden, vocabulary)
        if stored:
            by_kernel = partition.reduce_scatter(by_kernel, stored, 0)
        by_kernel = jax.lax.psum(by_kernel, across) if across else by_kernel
        return total, nll.reshape(shape), by_hidden.reshape(*shape, width), by_kernel.astype(kernel.dtype)

    kernel_spec, hidden_spec = PartitionSpec(stored or None, vocabulary or None), PartitionSpec(*tokens, None)
    outputs = (PartitionSpec(), tokens) + ((hidden_spec, kernel_spec) if with_gradients else ())
    mapped = partition.shard_map(local, (hidden_spec, kernel_spec, tokens, tokens), outputs)
    results = mapped(hidden, kernel, targets, weights)
    return results if with_gradients else (*results, None, None)


def _in_chunks(
    kernel: Array,
    hidden: Array,
    targets: Array,
    weights: Array,
    chunk: int,
    vocabulary: tuple[str, ...],
    with_gradients: bool,
) -> tuple[Array, Array | None, Array | None]:
    """(nll [N], gradient by hidden [N, D], by kernel [D, V] float32) of one device; kernel [D, V], hidden [N, D]."""
    rows, width = hidden.shape
    one = _one_chunk(kernel, vocabulary, with_gradients)
    if not chunk or rows <= chunk:
        return one(hidden, targets, weights)
    padding = -rows % chunk
    items = tuple(
        jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, chunk, *x.shape[1:])
        for x in (hidden, targets, weights)
    )

    def step(by_kernel: Any, item: tuple[Array, ...]) -> tuple[Any, tuple[Array, Array | None]]:
        nll, by_hidden, more = one(*item)
        return jax.tree.map(jnp.add, by_kernel, more), (nll, by_hidden)

    start = jnp.zeros(kernel.shape, jnp.float32) if with_gradients else None
    by_kernel, (nll, by_hidden) = jax.lax.scan(step, start, items)
    if by_hidden is not None:
        by_hidden = by_hidden.reshape(-1, width)[:rows]
    return nll.reshape(-1)[:rows], by_hidden, by_kernel


def _one_chunk(
    kernel: Array, vocabulary: tuple[str, ...], with_gradients: bool
) -> Callable[[Array, Array, Array], tuple[Array, Array | None, Array | None]]:
    """The function of one chunk: (hidden [n, D], targets [n], weights [n]) -> as `_in_chunks`."""
    columns = kernel.shape[1]
    first = jax.lax.axis_index(vocabulary) * columns if vocabulary else 0

    def across(value: Array, reduce: Callable[..., Array]) -> Array:
        return reduce(value, vocabulary) if vocabulary else value

    def one(hidden: Array, targets: Array, weights: Array) -> tuple[Array, Array | None, Array | None]:
        logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
        largest = across(logits.max(axis=-1, keepdims=True), jax.lax.pmax)
        exponentials = jnp.exp(logits - largest)
        total = across(exponentials.sum(axis=-1, keepdims=True), jax.lax.psum)
        # A target in another device's part of the vocabulary picks nothing here.
        is_target = jnp.arange(columns)[None, :] == (targets - first)[:, None]
        picked = across(jnp.where(is_target, logits, 0.0).sum(axis=-1), jax.lax.psum)
        nll = (jnp.log(total) + largest)[:, 0] - picked
        if not with_gradients:
            return nll, None, None
        by_logits = ((exponentials / total - is_target) * weights[:, None]).astype(hidden.dtype)
        by_hidden = jax.lax.dot_general(by_logits, kernel, (((1,), (1,)), ((), ())))
        by_kernel = jax.lax.dot_general(hidden, by_logits, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return nll, by_hidden, by_kernel

    return one
