"""An array of a checkpoint that is read when, and as far as, it is needed."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class StoredArray:
    """An array of a checkpoint, read when it is asked for, each time anew: `x[layer]`, a `part`, or `np.asarray(x)`.

    Orbax restores whole arrays only; its files are OCDBT with one zarr array a parameter, which tensorstore reads.

    Attributes:
      folder: of the checkpoint's state.
      keys: path in the state.
      shape: of the array.
      dtype: of what is given.
      scale: factor of what is stored.
    """

    folder: Path
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float = 1.0

    def _open(self) -> Any:
        import tensorstore

        base = {"driver": "file", "path": f"{self.folder}/"}
        store = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(self.keys)}/"}
        return tensorstore.open({"driver": "zarr", "kvstore": store}, read=True).result()

    def __getitem__(self, index: int) -> np.ndarray:
        """One entry of the first axis."""
        return self._read(self._open()[index])

    def part(self, index: tuple[slice, ...]) -> np.ndarray:
        """What lies in a slice for each axis, as `jax.make_array_from_callback` asks for it."""
        return self._read(self._open()[index])

    def _read(self, store: Any) -> np.ndarray:
        stored = store.read().result()
        return (stored if self.scale == 1.0 else stored * self.scale).astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array on the host."""
        del copy  # never a view of anything
        store = self._open()
        whole = np.empty(self.shape, dtype or self.dtype)
        steps = store.chunk_layout.read_chunk.shape or ()  # a scalar has none
        starts = [range(0, size, step) for size, step in zip(self.shape, steps, strict=True)]
        for corner in itertools.product(*starts):  # part by part: the reader holds what it unpacks a second time
            part = tuple(
                slice(start, min(start + step, size))
                for start, step, size in zip(corner, steps, self.shape, strict=True)
            )
            whole[part] = self._read(store[part])
        return whole
