"""Where sequences lie in a batch: right-padded, one a row (lengths), or several a row (segment ids).

An extent is either lengths [B] int32 or `Packed` ids [B, T]; the functions here take both, so that every block of the
tokenizer is written once. Packed sequences begin at multiples of a code frame and leave at least one code frame free
before the next: then every convolution, norm, attention and inverse STFT gives a sequence what it gives it alone.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Several sequences a row.

    Attributes:
      ids: [B, T] int32, 1 .. count from left to right, 0 where there is nothing.
      count: sequences that a row has room for.
    """

    ids: Array
    count: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, starts: Array, lengths: Array, size: int) -> Packed:
        """Ids of `size` positions with sequences at starts [B, U] of lengths [B, U] (0 = none)."""
        numbers = jnp.where(lengths > 0, jnp.arange(1, starts.shape[1] + 1)[None, :], 0)
        rows = jnp.arange(starts.shape[0])[:, None]
        changes = jnp.zeros((starts.shape[0], size + 1), jnp.int32)
        changes = (
            changes.at[rows, starts].add(numbers, mode="drop").at[rows, starts + lengths].add(-numbers, mode="drop")
        )
        return cls(jnp.cumsum(changes, axis=1)[:, :size], starts.shape[1])


Extent = Array | Packed
E = TypeVar("E", jax.Array, Packed)


def segment_ids(extent: Extent, size: int) -> Array:
    """[B, size] int32: the sequence that a position belongs to, 0 = none (1 and 0 for lengths)."""
    if not isinstance(extent, Packed):
        return (jnp.arange(size)[None, :] < extent[:, None]).astype(jnp.int32)
    ids = extent.ids[:, :size]
    return jnp.pad(ids, ((0, 0), (0, size - ids.shape[1])))


def capacity(extent: Extent) -> int:
    """Sequences that a row has room for."""
    return extent.count if isinstance(extent, Packed) else 1


def valid_mask(extent: Extent, size: int) -> Array:
    """[B, size] bool: positions that belong to a sequence."""
    return segment_ids(extent, size) > 0


def masked(x: Array, extent: Extent) -> Array:
    """x [B, T, ...] with zeros where there is no sequence."""
    mask = valid_mask(extent, x.shape[1]).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return jnp.where(mask, x, 0)


def positions(extent: Extent, size: int) -> Array:
    """[B or 1, size] int32: index within the sequence."""
    index = jnp.arange(size)[None, :]
    if not isinstance(extent, Packed):
        return index
    ids = segment_ids(extent, size)
    begins = ids != jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def stretched(extent: E, factor: int) -> E:
    """The extent at `factor` times the rate."""
    if isinstance(extent, Packed):
        return Packed(jnp.repeat(extent.ids, factor, axis=1), extent.count)  # type: ignore[return-value]
    return extent * factor


def strided(extent: E, stride: int) -> E:
    """The extent at 1 / `stride` of the rate, a last incomplete position included."""
    if isinstance(extent, Packed):
        return Packed(extent.ids[:, ::stride], extent.count)  # type: ignore[return-value]
    return -(-extent // stride)


def prolonged(extent: E, more: int) -> E:
    """Each sequence with the `more` positions after it."""
    if not isinstance(extent, Packed):
        return jnp.where(extent > 0, extent + more, 0)
    ids = jnp.pad(extent.ids, ((0, 0), (0, more)))
    for _ in range(more):
        ids = jnp.where(ids > 0, ids, jnp.pad(ids[:, :-1], ((0, 0), (1, 0))))
    return Packed(ids, extent.count)  # type: ignore[return-value]


def sums(x: Array, extent: Extent) -> Array:
    """Sums over each sequence of x [B, T]: [B, 1], or [B, count] of packed ones; float32."""
    one_hot = segment_ids(extent, x.shape[1])[:, :, None] == jnp.arange(1, capacity(extent) + 1)
    return jnp.where(one_hot, x.astype(jnp.float32)[:, :, None], 0).sum(axis=1)


def spread(values: Array, extent: Extent, size: int) -> Array:
    """values [B, 1] or [B, count], one of each sequence, at its positions: [B, size], 0 where there is none."""
    ids = segment_ids(extent, size)
    if not isinstance(extent, Packed):
        return jnp.where(ids > 0, values, 0)
    return jnp.take_along_axis(jnp.pad(values, ((0, 0), (1, 0))), ids, axis=1)
