"""Lookups in embedding tables that are split over devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mimo_jax.models import partition
from mimo_jax.models.partition import Names

Array = jax.Array


def lookup(table: Array, ids: Array, table_axes: Names, id_axes: Names, dtype: jnp.dtype | str) -> Array:
    """Rows of a table: [V, D], ids [...] -> [..., D] in `dtype`.

    Under a mesh every device gathers, in `dtype`, what the devices with other ids hold of the table, looks up its own
    ids, and the gradient is summed in float32 and reduced once. Left to the compiler, the lookup gathers activations
    instead. Rows that devices with the same ids hold in parts are looked up where they are and summed; columns that
    they hold in parts stay in parts.

    Args:
      table_axes: logical axes of the table, e.g. ("table_rows", "table_columns").
      id_axes: logical axes of the ids, e.g. ("batch", "length").
    """
    ids_spec, table_spec = partition.spec(id_axes, ids.shape), partition.spec(table_axes, table.shape)
    if not partition.flat_axes(ids_spec) and not partition.flat_axes(table_spec):
        return jnp.take(table, ids, axis=0).astype(dtype)
    return _lookup(table, ids, table_spec, ids_spec, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _lookup(table: Array, ids: Array, table_spec: PartitionSpec, ids_spec: PartitionSpec, dtype: jnp.dtype) -> Array:
    gathered, (rows, columns) = _split(table_spec, ids_spec)

    def local(table: Array, ids: Array) -> Array:
        table = table.astype(dtype)
        for dimension, axes in enumerate(gathered):
            table = jax.lax.all_gather(table, axes, axis=dimension, tiled=True) if axes else table
        if not rows:
            return jnp.take(table, ids, axis=0)
        # An id in another device's part is out of range here and adds nothing.
        here = ids - jax.lax.axis_index(rows) * table.shape[0]
        here = jnp.where(here < 0, table.shape[0], here)
        return jax.lax.psum(jnp.take(table, here, axis=0, mode="fill", fill_value=0), rows)

    return partition.shard_map(local, (table_spec, ids_spec), PartitionSpec(*ids_spec, columns or None))(table, ids)


def _forward(
    table: Array, ids: Array, table_spec: PartitionSpec, ids_spec: PartitionSpec, dtype: jnp.dtype
) -> tuple[Array, tuple[Array, Array]]:
    # Of the table only shape and dtype are needed, but arrays are what a residual can hold.
    return _lookup(table, ids, table_spec, ids_spec, dtype), (table, ids)


def _backward(
    table_spec: PartitionSpec, ids_spec: PartitionSpec, dtype: jnp.dtype, saved: tuple[Array, Array], g: Array
) -> tuple[Array, None]:
    (table, ids), (gathered, (rows, columns)) = saved, _split(table_spec, ids_spec)
    total = table.shape[0] // partition.size_of(rows)
    across = tuple(axis for axis in partition.flat_axes(ids_spec) if axis not in gathered[0] + gathered[1])

    def local(ids: Array, g: Array) -> Array:
        first = jax.lax.axis_index(rows) * total if rows else 0
        here = jnp.where(ids < first, total, ids - first)
        gradient = jnp.zeros((total, g.shape[-1]), jnp.float32)
        gradient = gradient.at[here].add(g.astype(jnp.float32), mode="drop")
        for dimension, axes in enumerate(gathered):
            gradient = partition.reduce_scatter(gradient, axes, dimension) if axes else gradient
        gradient = jax.lax.psum(gradient, across) if across else gradient
        return gradient.astype(table.dtype)

    mapped = partition.shard_map(local, (ids_spec, PartitionSpec(*ids_spec, columns or None)), table_spec)
    return mapped(ids, g), None


_lookup.defvjp(_forward, _backward)


def _split(
    table_spec: PartitionSpec, ids_spec: PartitionSpec
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Mesh axes of the table's (rows, columns) over which ids are split, too, and of those over which they are not."""
    of_ids, of_table = set(partition.flat_axes(ids_spec)), [partition.axes_of(entry) for entry in table_spec]
    if any(set(axes) & of_ids and not set(axes) <= of_ids for axes in of_table):
        raise ValueError(f"table on {table_spec} and ids on {ids_spec}: a dimension of the table mixes their mesh axes")
    gathered = tuple(axes if set(axes) <= of_ids else () for axes in of_table)
    kept = tuple(() if set(axes) <= of_ids else axes for axes in of_table)
    return gathered, kept
