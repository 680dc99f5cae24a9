"""Parquet and Arrow files, local or behind URLs: opened once, read where they are asked for."""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from typing import Any

from mimo_jax.data import storage

ARROW = ".arrow"
# Opened files hold their footer, groups the sound of up to a thousand rows.
_OPENED_FILES = 8
_KEPT_GROUPS = 2
# Threads that decode rows of one group must wait for the one that reads it, not each read it as well.
_LOCK = threading.Lock()


def pyarrow() -> Any:
    """The package, with what is used of it.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        hint = storage.EXTRA_HINT
        raise ModuleNotFoundError(f"Parquet and Arrow files are read with pyarrow; {hint}") from error
    return pyarrow


def open_parquet(file: str) -> Any:
    """A ``pyarrow.parquet.ParquetFile`` of a local file or URL: only its footer is read.

    Raises:
      OSError, ValueError: it cannot be read, or is no Parquet.
    """
    return pyarrow().parquet.ParquetFile(storage.open_file(file))


def open_arrow(file: str) -> Any:
    """A ``pyarrow.Table`` of an Arrow stream or file; a local one is mapped into memory, not read.

    Raises:
      OSError, ValueError: it cannot be read, or is no Arrow.
    """
    pa = pyarrow()
    source = storage.open_file(file)
    if not storage.is_url(file):
        source.close()
        source = pa.memory_map(file)
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def cell(file: str, row: int, column: str) -> Any:
    """One cell as a Python object.

    The row group it is in is kept for the next call, as are the opened files: an object behind a URL is taken to stay
    the same while the program runs.

    Raises:
      LookupError: no such row or column.
      OSError, ValueError: the file cannot be read.
    """
    stamp = tuple(storage.signature(file) or ())
    with _LOCK:
        if file.endswith(ARROW):
            table = _opened_arrow(file, stamp)
            _check(table.num_rows, row, table.column_names, column)
            found = table.column(column).slice(row, 1)
            found.validate(full=True)  # what is mapped into memory was checked by nobody
            return found[0].as_py()
        opened, ends = _opened_parquet(file, stamp)
        _check(ends[-1] if ends else 0, row, opened.schema_arrow.names, column)
        group = bisect.bisect_right(ends, row)
        first = ends[group - 1] if group else 0
        return _group(file, stamp, group, column)[row - first].as_py()


def _check(rows: int, row: int, columns: list[str], column: str) -> None:
    if row >= rows:
        raise IndexError(f"the table has {rows} rows")
    if column not in columns:
        raise KeyError(f"no column {column!r}; there are {', '.join(columns)}")


@functools.lru_cache(_OPENED_FILES)
def _opened_arrow(file: str, stamp: tuple[Any, ...]) -> Any:
    return open_arrow(file)


@functools.lru_cache(_OPENED_FILES)
def _opened_parquet(file: str, stamp: tuple[Any, ...]) -> tuple[Any, list[int]]:
    opened = open_parquet(file)
    meta = opened.metadata
    return opened, list(itertools.accumulate(meta.row_group(i).num_rows for i in range(meta.num_row_groups)))


@functools.lru_cache(_KEPT_GROUPS)
def _group(file: str, stamp: tuple[Any, ...], group: int, column: str) -> Any:
    opened, _ = _opened_parquet(file, stamp)
    return opened.read_row_group(group, columns=[column]).column(column)
