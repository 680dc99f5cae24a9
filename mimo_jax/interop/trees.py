"""Our trees and the tensors of the released layout, one made of the other by the table in `names`.

Neither is ever whole in memory beside the other: arrays are read and tensors are made one by one, in small blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.interop import names
from mimo_jax.interop.names import Path as TreePath
from mimo_jax.interop.names import Row
from mimo_jax.interop.safetensors_files import WeightFolder

Tree = dict[str, Any]

_ALIGNMENT = 64  # bytes


def read_tree(
    weights: WeightFolder,
    rows: Sequence[Row],
    shapes: Tree,
    dtype: str | None = None,
    shardings: Tree | None = None,
    ignored: Mapping[str, str] | None = None,
    lazily: bool = False,
) -> Tree:
    """Our tree from official tensors.

    Args:
      weights: the tensors.
      rows: the table.
      shapes: tree of jax.ShapeDtypeStruct that is wanted.
      dtype: of the result; None = as stored.
      shardings: tree of jax.sharding.Sharding; None = the default device.
      ignored: parts of official names that are left out, with the reason (logged).
      lazily: as in `hf.load_lm`.

    Raises:
      UserError: names every missing, unknown or misshapen tensor.
    """
    flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    names.check_table(rows, flat)
    problems = names.compare(rows, flat, weights.shapes, ignored)
    if problems:
        lines = "\n  ".join(problems[:30] + ([f"... and {len(problems) - 30} more"] if len(problems) > 30 else []))
        raise UserError(f"{weights.folder}: its tensors are not those of the configuration:\n  {lines}")
    for part, reason in (ignored or {}).items():
        if left_out := [name for name in weights.shapes if part in name]:
            logging.info("%s: %d tensors left out: %s", weights.folder, len(left_out), reason)
    where = traverse_util.flatten_dict(shardings) if shardings is not None else {}
    tree = {}
    for row in rows:
        array = FolderArray(weights, row, flat[row.path], dtype)
        tree[row.path] = array if lazily else array.load(where.get(row.path))
    return traverse_util.unflatten_dict(tree)


class FolderArray:
    """One of our arrays in a folder, read when asked for: `x[layer]`, `np.asarray(x)`, or into shards (`load`)."""

    def __init__(self, weights: WeightFolder, row: Row, shape: tuple[int, ...], dtype: str | None):
        self._weights, self._row = weights, row
        stored = np.result_type(*{weights.dtypes[name] for name in row.tensors})
        self.shape, self.dtype = shape, np.dtype(stored if dtype is None else jnp.dtype(dtype))

    def part(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index`, assembled from the official tensors block by block."""
        array = aligned_empty(
            tuple(len(range(*s.indices(size))) for s, size in zip(index, self.shape, strict=True)), self.dtype
        )
        row, weights = self._row, self._weights
        if row.layers is None:
            weights.read_into(row.to_official(array), row.official, row.official_index(index))
        else:
            for place, layer in enumerate(range(*index[0].indices(self.shape[0]))):
                weights.read_into(row.to_official(array[place]), row.tensors[layer], row.official_index(index[1:]))
        return array

    def __getitem__(self, index: int) -> np.ndarray:
        """One entry of the first axis."""
        return self.part((slice(index, index + 1), *[slice(None)] * (len(self.shape) - 1)))[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array on the host."""
        del copy  # never a view of anything
        return np.asarray(self.part((slice(None),) * len(self.shape)), dtype)

    def load(self, sharding: jax.sharding.Sharding | None) -> jax.Array:
        """As a jax array in its shards; None = on the default device."""
        if sharding is None:
            return jax.device_put(np.asarray(self), may_alias=True)
        return jax.make_array_from_callback(
            self.shape, sharding, lambda index: self.part(index or (slice(None),) * len(self.shape))
        )


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that jax on CPU takes over as it is: what is not aligned like this, it copies."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def official_tensors(
    rows: Sequence[Row], flat: Mapping[TreePath, Any], dtype: str | None = None
) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], Callable[[str], np.ndarray]]:
    """Official tensors of our arrays: (name -> (shape, dtype), a function that makes the tensor of a name).

    Args:
      rows: the table.
      flat: our arrays by path: numpy, jax, or anything else with shape, dtype, `x[layer]` and `__array__`, such as what
        a checkpoint or a folder holds. One layer of one array is brought to the host at a time.
      dtype: of the tensors; None = as the arrays are.
    """
    source = {name: (row, layer) for row in rows for layer, name in enumerate(row.tensors)}

    def stored(row: Row) -> np.dtype:
        return np.dtype(flat[row.path].dtype if dtype is None else jnp.dtype(dtype))

    def fetch(name: str) -> np.ndarray:
        row, layer = source[name]
        array = flat[row.path] if row.layers is None else flat[row.path][layer]
        return row.to_official(np.asarray(array)).astype(stored(row), copy=False)

    return {name: (row.official_shape(flat[row.path].shape), stored(row)) for name, (row, _) in source.items()}, fetch
