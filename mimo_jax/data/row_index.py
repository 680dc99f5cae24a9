"""Packing plans as files: one folder per task, split, context length and way with overlong examples.

A folder holds the arrays of `packing.Rows` as .npy files, which are memory-mapped, and ``plan.json``. Examples are
planned in blocks of consecutive ones, so that planning takes the memory of a few blocks whatever the number of
examples; a plan costs a reader nothing but the pages it looks at.
"""

import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from mimo_jax.data import packing
from mimo_jax.data.packing import Outline, Overlong, Rows

VERSION = 1
BLOCK = 1 << 22
_PLAN = "plan.json"
_DTYPES: dict[str, np.dtype] = {
    "offsets": np.dtype("<i8"),
    "example": np.dtype("<i4"),
    "counts": np.dtype("<i4"),
    "cut": np.dtype("<i8"),
    "spans": np.dtype("<i4"),
    "dropped": np.dtype("<i8"),
}
_WIDTHS = {"counts": (2,), "spans": (4,)}


@dataclasses.dataclass(frozen=True)
class StoredRows(Rows):
    """A plan that lies in a folder; pickled by the folder's name."""

    folder: pathlib.Path

    def __reduce__(self) -> tuple[Any, ...]:
        return load_rows, (self.folder,)


def load_rows(folder: str | os.PathLike[str]) -> StoredRows:
    """Open a plan; its arrays are memory-mapped.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = pathlib.Path(folder)
    plan = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    # Plain views: every slice of a memmap object is costly to make.
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in _DTYPES}
    blocks = np.asarray(plan["blocks"], np.int64).reshape(-1, 2)
    return StoredRows(plan["context"], blocks=blocks, positions=tuple(plan["positions"]), folder=folder, **arrays)


def planned(
    folder: pathlib.Path,
    counts: np.ndarray,
    context: int,
    overlong: Overlong,
    outline: Callable[[int], Outline],
    block: int = BLOCK,
) -> StoredRows:
    """The plan in ``folder``, made first if it is not there. Equal input gives equal bytes.

    Args:
        folder: of the plan; it appears when it is complete. Processes of one machine may ask at the same time.
        counts: int [N, 2], text and audio positions of each example; may be memory-mapped.
        context, overlong, outline: as in `packing.plan_rows`.
        block: examples that are planned together.
    """
    wanted = {"version": VERSION, "context": context, "overlong": overlong, "examples": len(counts), "block": block}
    if not _is_there(folder, wanted):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_there(folder, wanted):
                _write(folder, wanted, _plan_blocks(counts, context, overlong, outline, block))
    return load_rows(folder)


def _is_there(folder: pathlib.Path, wanted: dict[str, Any]) -> bool:
    try:
        plan = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return {name: plan.get(name) for name in wanted} == wanted


def _plan_blocks(
    counts: np.ndarray, context: int, overlong: Overlong, outline: Callable[[int], Outline], block: int
) -> Iterator[Rows]:
    """The plans of the blocks in order; example numbers in them count from the block's first."""

    def plan(number: int) -> Rows:
        first = number * block
        part = counts[first : first + block]
        return packing.plan_rows(
            part, context, block=number, overlong=overlong, outline=lambda example: outline(first + example)
        )

    numbers = range(max(1, -(-len(counts) // block)))
    if len(numbers) == 1:
        yield plan(0)
        return
    # Four: the memory that planning 4 Mi examples takes, about half a GiB, is not wanted once per core.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(numbers), 4):
            yield from pool.map(plan, numbers[start : start + 4])


def _write(folder: pathlib.Path, wanted: dict[str, Any], planned_blocks: Iterable[Rows]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    files = {name: _Growing(partial / f"{name}.npy", dtype, _WIDTHS.get(name, ())) for name, dtype in _DTYPES.items()}
    files["offsets"].append(np.zeros(1, np.int64))
    blocks: list[tuple[int, int]] = []
    positions = [0, 0]
    for number, rows in enumerate(planned_blocks):
        first_piece, first_example = files["example"].length, number * wanted["block"]
        blocks.append((files["counts"].length, first_example))
        files["offsets"].append(rows.offsets[1:] + first_piece)
        files["cut"].append(rows.cut + first_piece)
        files["dropped"].append(rows.dropped + first_example)
        for name in ("example", "counts", "spans"):
            files[name].append(getattr(rows, name))
        positions = [total + here for total, here in zip(positions, rows.positions, strict=True)]
    for file in files.values():
        file.close()
    text = json.dumps({**wanted, "positions": positions, "blocks": blocks}, sort_keys=True)
    (partial / _PLAN).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


class _Growing:
    """An .npy file that is written in parts: numpy leaves room in the header for the number of rows to grow."""

    def __init__(self, path: pathlib.Path, dtype: np.dtype, width: tuple[int, ...]):
        self.length = 0
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._width = dtype, width
        self._header()

    def _header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length, *self._width)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.length += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()
