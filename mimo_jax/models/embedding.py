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

    Under a mesh every device gathers the table's columns in `dtype`, looks up its own ids (of its part of the rows, if
    these are split, then summed), and the gradient is summed in float32 and reduced once. Left to the compiler, the
    lookup gathers activations instead.

    Args:
      table_axes: logical axes of the table, e.g. ("vocab", "embed").
      id_axes: logical axes of the ids, e.g. ("batch", "length").
    """
    ids_spec, table_spec = partition.spec(id_axes, ids.shape), partition.spec(table_axes, table.shape)
    if not partition.flat_axes(ids_spec) and not partition.flat_axes(table_spec):
        return jnp.take(table, ids, axis=0).astype(dtype)
    return _lookup(table, ids, table_spec, ids_spec, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _lookup(table: Array, ids: Array, table_spec: PartitionSpec, ids_spec: PartitionSpec, dtype: jnp.dtype) -> Array:
    rows, columns, _ = _split(table_spec, ids_spec)

    def local(table: Array, ids: Array) -> Array:
        table = table.astype(dtype)
        if columns:
            table = jax.lax.all_gather(table, columns, axis=1, tiled=True)
        if not rows:
            return jnp.take(table, ids, axis=0)
        # An id in another device's part is out of range here and adds nothing.
        here = ids - jax.lax.axis_index(rows) * table.shape[0]
        here = jnp.where(here < 0, table.shape[0], here)
        return jax.lax.psum(jnp.take(table, here, axis=0, mode="fill", fill_value=0), rows)

    specs = (PartitionSpec(rows or None, columns or None), ids_spec)
    return partition.shard_map(local, specs, PartitionSpec(*ids_spec, None))(table, ids)


def _forward(
    table: Array, ids: Array, table_spec: PartitionSpec, ids_spec: PartitionSpec, dtype: jnp.dtype
) -> tuple[Array, tuple[Array, Array]]:
    # Of the table only shape and dtype are needed, but arrays are what a residual can hold.
    return _lookup(table, ids, table_spec, ids_spec, dtype), (table, ids)


def _backward(
    table_spec: PartitionSpec, ids_spec: PartitionSpec, dtype: jnp.dtype, saved: tuple[Array, Array], g: Array
) -> tuple[Array, None]:
    (table, ids), (rows, columns, across) = saved, _split(table_spec, ids_spec)

    def local(table: Array, ids: Array, g: Array) -> Array:
        first = jax.lax.axis_index(rows) * table.shape[0] if rows else 0
        here = jnp.where(ids < first, table.shape[0], ids - first)
        gradient = jnp.zeros((table.shape[0], g.shape[-1]), jnp.float32)
        gradient = gradient.at[here].add(g.astype(jnp.float32), mode="drop")
        if columns:
            gradient = jax.lax.psum_scatter(gradient, columns, scatter_dimension=1, tiled=True)
        gradient = jax.lax.psum(gradient, across) if across else gradient
        return gradient.astype(table.dtype)

    spec = PartitionSpec(rows or None, columns or None)
    mapped = partition.shard_map(local, (spec, ids_spec, PartitionSpec(*ids_spec, None)), spec)
    return mapped(table, ids, g), None


_lookup.defvjp(_forward, _backward)


def _split(
    table_spec: PartitionSpec, ids_spec: PartitionSpec
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Mesh axes of the table's rows, of its columns (where ids are split over them, too), and of the ids alone."""
    rows, columns = (partition.axes_of(entry) for entry in table_spec)
    of_ids = partition.flat_axes(ids_spec)
    columns = columns if set(columns) <= set(of_ids) else ()
    if set(rows) & set(of_ids):
        raise ValueError(f"table rows on {rows} and ids on {of_ids}: they must lie on different mesh axes")
    return rows, columns, tuple(axis for axis in of_ids if axis not in columns)
