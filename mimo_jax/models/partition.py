"""How models speak of placement: logical axis names, resolved against the mesh and the rules of the calling context.

Without a mesh (`jax.set_mesh`) or rules (`flax.linen.logical_axis_rules`) everything here does nothing, so the models
run as they are on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

Array = jax.Array
Names = Sequence[str | None]

# Logical axes along which parameters are split to save memory and made whole before they are used.
STORED_SPLIT = ("embed", "local_embed", "patch", "code_vocab", "norm", "table_rows")


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


def size_of(axes: tuple[str, ...]) -> int:
    """Devices along mesh axes."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes[axis] for axis in axes)


def flat_axes(partition: PartitionSpec) -> tuple[str, ...]:
    """All mesh axes of a `PartitionSpec` in order."""
    return tuple(axis for entry in partition for axis in axes_of(entry))


def shards(names: Names, shape: Sequence[int]) -> int:
    """Number of pieces that an array of this shape is split into."""
    return size_of(flat_axes(spec(names, shape)))


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


# The TPU compiler makes an all-reduce, twice the bytes, of a reduce-scatter whose other dimension is no multiple of
# four tiles of 128, such as an MLP of 11008 or a vocabulary of 151680 (v5e, v5p, v6e; seen in what it compiles).
_SCATTER_MULTIPLE = 512


def reduce_scatter(x: Array, axes: tuple[str, ...], dimension: int) -> Array:
    """Inside `shard_map`: the sum of a matrix over mesh axes, of which each device keeps its part of `dimension`."""
    if dimension == 1:  # the other one only works for some layouts
        return reduce_scatter(x.T, axes, 0).T
    size = x.shape[1]
    padding = -size % _SCATTER_MULTIPLE if size > _SCATTER_MULTIPLE else 0
    padded = jnp.pad(x, ((0, 0), (0, padding))) if padding else x
    # Nor does it work where the scattered dimension is the minor one in memory.
    padded = with_layout_constraint(padded, Layout((0, 1)))
    summed = jax.lax.psum_scatter(padded, axes, scatter_dimension=0, tiled=True)
    # What follows (a slice, a transposition) must not change the layout that the reduce-scatter needs; and where the
    # compiler makes an all-reduce of it all the same (a few devices), it fails to merge its slice with ours.
    return jax.lax.optimization_barrier(summed)[:, :size]


def kernel_gradient(x: Array, g: Array, kernel: Array, axes: Names, row_axes: Names) -> Array:
    """`x^T g` over all rows, [in, out] in the kernel's dtype, placed as the kernel is.

    Every device multiplies its own rows; what it does not keep of the product goes to its owner, once.

    Args:
      x: [..., in]; g: [..., out]; kernel: [in, out].
      axes: logical axes of the kernel.
      row_axes: logical axes of all dimensions of x but the last.
    """
    rows = tuple(range(x.ndim - 1))

    def product(x: Array, g: Array) -> Array:
        return jax.lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype)

    row_spec, kernel_spec = spec(row_axes, x.shape[:-1]), spec(axes, kernel.shape)
    of_rows = flat_axes(row_spec)
    pieces = [axes_of(entry) if name in STORED_SPLIT else () for name, entry in zip(axes, kernel_spec, strict=True)]
    if not set(pieces[0] + pieces[1]) <= set(of_rows):  # rows that do not divide lie whole on every device
        return constrain(product(x, g), axes)
    computed = [None if piece else entry for piece, entry in zip(pieces, kernel_spec, strict=True)]

    rest = tuple(axis for axis in of_rows if axis not in pieces[0] + pieces[1])

    def local(x: Array, g: Array) -> Array:
        if pieces[1]:  # multiplied the other way round, for the sake of the layout that is scattered
            total = reduce_scatter(product(g, x), pieces[1], 0).T
        else:
            total = reduce_scatter(product(x, g), pieces[0], 0) if pieces[0] else product(x, g)
        return jax.lax.psum(total, rest) if rest else total

    in_specs = (PartitionSpec(*row_spec, computed[0]), PartitionSpec(*row_spec, computed[1]))
    return shard_map(local, in_specs, kernel_spec)(x, g)
