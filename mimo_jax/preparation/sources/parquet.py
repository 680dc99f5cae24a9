"""Parquet files and folders of Hugging Face ``datasets`` (Parquet, or Arrow as ``save_to_disk`` writes it).

Rows are read in batches without their sound, which a reference to the cell finds again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mimo_jax.data import references, tables
from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.sources import base, places
from mimo_jax.preparation.sources.base import ITEMS_PER_SHARD, InvalidItem, Shard, SourceError
from mimo_jax.preparation.sources.rows import (
    IN_CELL,
    UNREADABLE,
    Table,
    holds_sound,
    is_plain,
    is_text,
    open_table,
)

ENDINGS = (".parquet", tables.ARROW)
_AUDIO_NAMES = ("audio", "audio_path", "wav", "file", "path", "file_name", "filepath")
# Only what means the same in all collections: `start` and `end`, say, often count in a recording that was cut up.
_GUESSED = {
    "id": ("id", "utt_id", "utterance_id"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "caption": ("caption",),
    "instruction": ("instruction",),
    "split": ("split",),
}


class _NoColumn(SourceError):
    """A table without the columns that are asked for."""


class ParquetSource:
    """See the module's text. A shard is a range of a file's row groups; ids are ``FILE:ROW`` unless a column has them.

    Args:
        path: a file, or a folder (or URL) with files in it or below.
        items_per_shard: rows, about; row groups are not cut.
        columns: field of Record -> name of its column; ``audio``, ``id``, ``text``, ``speaker``, ``caption``,
            ``instruction`` and ``split`` are guessed from usual names otherwise. Other columns of plain values become
            attributes.
        split: of rows that name none; otherwise names like ``data/dev-00001.parquet`` tell it, then chance.

    Raises:
        SourceError: no such file is there, or pyarrow is not.
    """

    def __init__(
        self,
        path: str,
        *,
        items_per_shard: int = ITEMS_PER_SHARD,
        columns: Mapping[str, str] | None = None,
        split: str | None = None,
    ):
        path = places.absolute(path)
        folder = places.is_folder(path)
        self.folder = path if folder else places.parent(path)
        names = places.names_in(path, below=True) if folder else [path[len(self.folder) + 1 :]]
        # The library leaves results of `map` and the like beside the data.
        self._names = [n for n in names if n.endswith(ENDINGS) and not n.rpartition("/")[2].startswith("cache-")]
        self.items_per_shard = items_per_shard
        self.columns = dict(columns or {})
        self.split = split
        if not self._names or not (folder or places.is_file(path)):
            raise SourceError(f"{path}: no *.parquet or *.arrow there")
        try:
            tables.pyarrow()
        except ModuleNotFoundError as error:
            raise SourceError(f"{path}: {error}") from error

    def shards(self) -> list[Shard]:
        """See `base.Source`. Reads footers, and the column of ids where there is one."""
        found: list[Shard] = []
        ids: set[str] = set()
        unfit: list[_NoColumn] = []
        for name in self._names:
            try:
                found += self._shards_of(name, ids)
            except _NoColumn as error:
                unfit.append(error)
                found.append(self._bad(name, "missing_column", str(error)))
        # Tables of something else may lie beside recordings; with nothing else, the wrong columns were named.
        if len(unfit) == len(self._names):
            raise unfit[0]
        return found

    def _bad(self, name: str, reason: str, detail: str) -> Shard:
        spec = {"name": name, "stamp": places.stamp(places.join(self.folder, name)), "error": [reason, detail]}
        return Shard(base.shard_name(name), base.fingerprint("bad table", spec), spec)

    def _shards_of(self, name: str, ids: set[str]) -> Iterator[Shard]:
        path = places.join(self.folder, name)
        spec: dict[str, Any] = {"name": name, "stamp": places.stamp(path)}
        try:
            table = open_table(path)
            repeated = self._repeated(table, path, ids)
        except SourceError:
            raise
        # A damaged file makes the library raise all kinds of errors.
        except Exception as error:
            yield self._bad(name, "damaged_file", f"{path}: {error}")
            return
        for first, last in table.parts(self.items_per_shard):
            rows = (table.first_rows[first], table.first_rows[last])
            marks = [row for row in repeated if rows[0] <= row < rows[1]]
            key = base.fingerprint("table", spec, rows, self.columns, self.split, marks)
            yield Shard(
                f"{base.shard_name(name)}-{rows[0]:08d}", key, {**spec, "groups": [first, last], "repeated": marks}
            )

    def _chosen(self, columns: Mapping[str, Any], path: str) -> dict[str, str]:
        """Field -> column.

        Raises:
            _NoColumn: a column that was named is not there, or none holds recordings.
        """
        if missing := [n for n in self.columns.values() if n not in columns]:
            raise _NoColumn(f"{path}: no column {missing[0]!r}; there are {', '.join(columns)}")
        chosen = {field: next((n for n in names if n in columns), None) for field, names in _GUESSED.items()}
        sounds = [n for n, kind in columns.items() if holds_sound(kind)]
        texts = [n for n in _AUDIO_NAMES if n in columns and is_text(columns[n])]
        chosen["audio"] = next((n for n in _AUDIO_NAMES if n in sounds), next(iter(sounds + texts), None))
        found = {field: column for field, column in {**chosen, **self.columns}.items() if column is not None}
        if "audio" not in found:
            raise _NoColumn(
                f"{path}: no column of recordings among {', '.join(columns)}; name it: columns={{'audio': NAME}}"
            )
        return found

    def _repeated(self, table: Table, path: str, ids: set[str]) -> list[int]:
        """Rows whose id was there before; adds the ids of the others."""
        column = self._chosen(table.columns, path).get("id")
        found = []
        for group in range(table.groups if column else 0):
            for row, values in table.rows(group, [column or ""]):
                given = values.get(column or "")
                if given is not None and str(given) in ids:
                    found.append(row)
                else:
                    ids.add(str(given))
        return found

    def read(self, shard: Shard) -> Iterator[Element | Dropped]:
        """See `base.Source`."""
        spec = shard.spec
        path = places.join(self.folder, spec["name"])
        places.check_size(path, spec["stamp"])
        if "error" in spec:
            reason, detail = spec["error"]
            yield base.quarantined(spec["name"], reason, detail)
            return
        table = open_table(path)
        for group in range(*spec["groups"]):
            yield from self._group(table, group, spec["name"], path, set(spec["repeated"]))

    def _group(self, table: Table, group: int, name: str, path: str, repeated: set[int]) -> Iterator[Element | Dropped]:
        chosen = self._chosen(table.columns, path)
        wanted = [n for n, kind in table.columns.items() if n in chosen.values() or is_plain(kind)]
        done = table.first_rows[group]
        try:
            for row, values in table.rows(group, wanted, sound=chosen["audio"]):
                yield self._outcome(row, values, chosen, name, path, repeated)
                done = row + 1
        # Pages are read late: a damaged one raises here, maybe after rows that are fine, and not one kind of error.
        except Exception as error:
            lost = f"{path}: rows {done} to {table.first_rows[group + 1] - 1} cannot be read ({error})"
            yield base.quarantined(f"{name}:{done}", "damaged_file", lost)

    def _outcome(
        self, row: int, values: dict[str, Any], chosen: dict[str, str], name: str, path: str, repeated: set[int]
    ) -> Element | Dropped:
        item_id = f"{base.printable(name)}:{row}"
        where = f"{path}: row {row}"
        try:
            record = self._record(values, chosen, item_id, name, _place(path, row, chosen["audio"], values))
        except InvalidItem as error:
            return base.quarantined(item_id, error.reason, f"{where}: {error.detail}")
        if row in repeated:
            return base.quarantined(record.id, "duplicate_id", f"{where}: an earlier row has the id {record.id!r}")
        return Element(record)

    def _record(
        self, values: Mapping[str, Any], chosen: Mapping[str, str], item_id: str, name: str, audio: str | None
    ) -> Record:
        if audio is None:
            raise InvalidItem("missing_audio", f"column {chosen['audio']!r} holds neither bytes nor a path")
        if unreadable := [n for n, v in values.items() if v is UNREADABLE]:
            raise InvalidItem("invalid_fields", f"column {unreadable[0]!r} is not UTF-8")
        fields = {field: values[column] for field, column in chosen.items() if field != "audio"}
        others = {n: v for n, v in values.items() if n not in chosen.values() and _is_kept(v)}
        if fields.get("id") is None:
            fields["id"] = item_id
        fields = {**base.tidy(fields), "attributes": others, "audio": audio}
        return base.make_record(fields, "invalid_fields", self.split or base.split_of_path(name))


def _is_kept(value: Any) -> bool:
    """Whether a column's value says something as an attribute."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _place(path: str, row: int, column: str, values: Mapping[str, Any]) -> str | None:
    """The reference of a row's recording: its cell, or the file that the cell names; None if it is empty."""
    sound = values[column]
    if sound is IN_CELL:
        return references.table_cell(path, row, column)
    return references.resolve(sound, places.parent(path)) if isinstance(sound, str) and sound else None
