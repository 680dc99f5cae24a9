"""Audio patches gathered into buffers of fixed size: static shapes, no work on text positions.

Where rows (or their positions) are split over devices, each device has a buffer of its own for the patches of its
positions, so that no patch travels. The buffers follow one another on the first axis, logical axis "patches".
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mimo_jax.models import partition

Array = jax.Array

POSITIONS = ("batch", "length")


class Gathered(NamedTuple):
    """Where the patches of a batch are.

    Attributes:
      flat: [N] position b * T + t of each slot, within its device's positions; their number for unused slots.
      slot: [B, T] slot of each position, within its device's buffer; the buffer's size where there is none.
      used: [N] bool, whether the slot holds a patch.
      kept: int32 [], patches that found a slot.
      overflow: int32 [], patches that found none.
    """

    flat: Array
    slot: Array
    used: Array
    kept: Array
    overflow: Array


def capacity(positions: int, share: float) -> int:
    """Slots of a buffer for a share of so many positions, at least one."""
    return max(1, int(positions * share))


def gather(is_patch: Array, share: float) -> Gathered:
    """Finds room for the patches of each device's positions. is_patch [B, T] bool; share of positions with room."""
    spec = partition.spec(POSITIONS, is_patch.shape)
    axes = partition.flat_axes(spec)

    def local(is_patch: Array) -> Gathered:
        size = capacity(is_patch.size, share)
        flat, slot, overflow = gather_local(is_patch, size)
        kept = jnp.minimum(is_patch.sum(), size)
        if axes:
            kept, overflow = jax.lax.psum((kept, overflow), axes)
        return Gathered(flat, slot, flat < is_patch.size, kept, overflow)

    buffer, scalar = PartitionSpec(axes or None), PartitionSpec()
    specs = (buffer, spec, buffer, scalar, scalar)
    return Gathered(*partition.shard_map(lambda x: tuple(local(x)), (spec,), specs)(is_patch))


def gather_local(is_patch: Array, size: int) -> tuple[Array, Array, Array]:
    """One device's part of `gather`: (flat [size], slot [B, T], overflow [])."""
    flat_mask = is_patch.reshape(-1)
    (flat,) = jnp.nonzero(flat_mask, size=size, fill_value=flat_mask.size)
    order = jnp.cumsum(flat_mask) - 1
    slot = jnp.where(flat_mask & (order < size), order, size).reshape(is_patch.shape)
    return flat, slot, jnp.maximum(flat_mask.sum() - size, 0)


def take(x: Array, flat: Array, *, fill: bool) -> Array:
    """Values of the gathered positions: x [B, T, ...], flat [N] -> [N, ...].

    Args:
      fill: unused slots give 0 and no gradient; otherwise some position's value, which nothing may read.
    """
    spec = partition.spec(POSITIONS, x.shape[:2])
    buffer = PartitionSpec(partition.flat_axes(spec) or None)

    def local(x: Array, flat: Array) -> Array:
        values = x.reshape(-1, *x.shape[2:])
        if fill:
            return jnp.take(values, flat, axis=0, mode="fill", fill_value=0)
        return jnp.take(values, jnp.minimum(flat, values.shape[0] - 1), axis=0)

    return partition.shard_map(local, (spec, buffer), buffer)(x, flat)


def place(values: Array, slot: Array) -> Array:
    """Buffers back to their positions, 0 where there is no patch: values [N, D], slot [B, T] -> [B, T, D]."""
    spec = partition.spec(POSITIONS, slot.shape)
    buffer = PartitionSpec(partition.flat_axes(spec) or None)

    def local(values: Array, slot: Array) -> Array:
        return jnp.take(values, slot, axis=0, mode="fill", fill_value=0)

    return partition.shard_map(local, (buffer, spec), PartitionSpec(*spec, None))(values, slot)
