"""How models speak of placement: logical axis names, resolved against the mesh and the rules of the calling context.

Without a mesh (`jax.set_mesh`) or rules (`flax.linen.logical_axis_rules`) everything here does nothing, so the models
run as they are on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec

Array = jax.Array
Names = Sequence[str | None]

# Logical axes along which parameters are split to save memory and made whole before they are used.
STORED_SPLIT = ("embed", "local_embed", "patch", "code_vocab", "norm")


def spec(names: Names, shape: Sequence[int]) -> PartitionSpec:
    """Mesh axes of each dimension. Axes of size 1 and axes that do not divide their dimension are left out."""
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or not rules:
        return PartitionSpec(*(None for _ in names))
    sizes = dict(mesh.shape)
    kept = []
    for entry, dimension in zip(nn.logical_to_mesh_axes(tuple(names), rules) or (), shape, strict=True):
        axes = tuple(axis for axis in axes_of(entry) if sizes.get(axis, 1) > 1)
        kept.append(axes if axes and dimension % math.prod(sizes[axis] for axis in axes) == 0 else None)
    return PartitionSpec(*kept)


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def flat_axes(partition: PartitionSpec) -> tuple[str, ...]:
    """All mesh axes of a `PartitionSpec` in order."""
    return tuple(axis for entry in partition for axis in axes_of(entry))


def shards(names: Names, shape: Sequence[int]) -> int:
    """Number of pieces that an array of this shape is split into."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes[axis] for axis in flat_axes(spec(names, shape)))


def constrain(x: Array, names: Names) -> Array:
    """x, placed as its logical axes say."""
    partition = spec(names, x.shape)
    if jax.sharding.get_abstract_mesh().empty or jax.sharding.get_abstract_mesh().size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition)


def used(names: Names) -> tuple[str | None, ...]:
    """Names of a parameter's axes at the time of its use: what is split to save memory only is whole."""
    return tuple(None if name in STORED_SPLIT else name for name in names)


def shard_map(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` over the context's mesh; the function itself where no argument or result is split."""
    leaves = jax.tree.leaves((in_specs, out_specs), is_leaf=lambda x: isinstance(x, PartitionSpec))
    if not any(flat_axes(leaf) for leaf in leaves):
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
