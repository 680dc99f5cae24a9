"""Rows of Parquet and Arrow files without the sound in them."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from mimo_jax.data import tables

_BATCH_ROWS = 256


class Special(enum.Enum):
    """What stands for a value that was not read."""

    IN_CELL = "the sound is in the cell"
    UNREADABLE = "the text is not UTF-8"


IN_CELL = Special.IN_CELL
UNREADABLE = Special.UNREADABLE


def open_table(path: str) -> Table:
    """The rows of a file.

    Raises:
        OSError, ValueError: it is damaged.
    """
    return ArrowTable(path) if path.endswith(tables.ARROW) else ParquetTable(path)


class Table:
    """Rows in groups that are read on their own.

    Attributes:
        columns: name -> Arrow type.
        first_rows: number of the first row of each group, and at the end the number of rows.
    """

    columns: dict[str, Any]
    first_rows: list[int]

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self.first_rows) - 1

    def parts(self, items: int) -> Iterator[tuple[int, int]]:
        """(first, last + 1) of consecutive groups that hold about ``items`` rows together."""
        start = 0
        for group in range(1, self.groups + 1):
            if group == self.groups or self.first_rows[group + 1] - self.first_rows[start] > items:
                if self.first_rows[group] > self.first_rows[start]:
                    yield start, group
                start = group

    def rows(
        self, group: int, columns: Sequence[str], sound: str | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, values) of each row; of column ``sound`` IN_CELL, the path that the cell holds, or None.

        Text that is no UTF-8 is UNREADABLE.
        """
        row = self.first_rows[group]
        for batch in self._batches(group, columns, sound):
            found = {name: _values(batch.column(name)) for name in batch.schema.names if name != sound}
            if sound is not None:
                found[sound] = self._sounds(batch, sound)
            for number in range(batch.num_rows):
                yield row, {name: values[number] for name, values in found.items()}
                row += 1

    def _batches(self, group: int, columns: Sequence[str], sound: str | None) -> Iterator[Any]:
        raise NotImplementedError

    def _sounds(self, batch: Any, sound: str) -> list[Any]:
        if sound not in batch.schema.names:
            return [IN_CELL] * batch.num_rows
        return _where(batch.column(sound))


class ParquetTable(Table):
    """Row groups of a Parquet file."""

    def __init__(self, path: str):
        self._file = tables.open_parquet(path)
        meta = self._file.metadata
        sizes = (meta.row_group(i).num_rows for i in range(meta.num_row_groups))
        self.first_rows = list(itertools.accumulate(sizes, initial=0))
        self.columns = {field.name: field.type for field in self._file.schema_arrow}

    def _batches(self, group: int, columns: Sequence[str], sound: str | None) -> Iterator[Any]:
        wanted = [name for name in columns if name != sound]
        if sound is not None and (not wanted or not self._all_in_cells(group, sound)):
            wanted.append(sound)
        yield from self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False)

    def _all_in_cells(self, group: int, sound: str) -> bool:
        """Whether statistics say that each cell has bytes, so that the sound need not be read to know it."""
        kind = self.columns[sound]
        if is_text(kind):
            return False
        path = f"{sound}.bytes" if has_fields(kind) else sound
        meta = self._file.metadata.row_group(group)
        chunks = (meta.column(i) for i in range(meta.num_columns))
        statistics = next((c.statistics for c in chunks if c.path_in_schema == path), None)
        return statistics is not None and statistics.has_null_count and statistics.null_count == 0


class ArrowTable(Table):
    """Blocks of an Arrow file, which is mapped into memory: what is not looked at is not read."""

    def __init__(self, path: str):
        self._table = tables.open_arrow(path)
        self.first_rows = [*range(0, self._table.num_rows, _BATCH_ROWS), self._table.num_rows]
        self.columns = {field.name: field.type for field in self._table.schema}

    def _batches(self, group: int, columns: Sequence[str], sound: str | None) -> Iterator[Any]:
        start, end = self.first_rows[group : group + 2]
        wanted = list(dict.fromkeys([*columns, *([sound] if sound else [])]))
        for batch in self._table.select(wanted).slice(start, end - start).to_batches():
            batch.validate(full=True)  # what is mapped into memory was checked by nobody
            yield batch


def has_fields(kind: Any) -> bool:
    """Whether it is a struct."""
    return tables.pyarrow().types.is_struct(kind)


def is_text(kind: Any) -> bool:
    """Whether values are strings."""
    types = tables.pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind)


def holds_sound(kind: Any) -> bool:
    """Whether values are bytes, or structs of bytes and path as `datasets` has them."""
    types = tables.pyarrow().types
    if types.is_struct(kind):
        return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
    return types.is_binary(kind) or types.is_large_binary(kind)


def is_plain(kind: Any) -> bool:
    """Whether values are strings, numbers or truth values."""
    types = tables.pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _values(array: Any) -> list[Any]:
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in array]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return UNREADABLE


def _where(array: Any) -> list[Any]:
    """Of each cell IN_CELL, its path, or None; bytes are not copied."""
    if is_text(array.type):
        return _values(array)
    if not has_fields(array.type):
        return [IN_CELL if valid else None for valid in array.is_valid().to_pylist()]
    import pyarrow.compute

    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    inside = pyarrow.compute.struct_field(array, "bytes").is_valid().to_pylist()
    paths = _values(pyarrow.compute.struct_field(array, "path")) if "path" in names else [None] * len(array)
    return [IN_CELL if there else path for there, path in zip(inside, paths, strict=True)]
