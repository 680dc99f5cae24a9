"""Files of the manifest: ``manifest.jsonl``, ``texts.jsonl`` and ``conversations.jsonl`` of a folder, also in volumes.

They are read whole, record by record, or a line at a time where it lies; what a line holds is in `manifest`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mimo_jax.data.manifest import (
    Conversation,
    ManifestError,
    Record,
    TextRecord,
    conversation_of,
    fields_of,
    from_json,
    record_of,
    text_record_of,
    to_json,
)
from mimo_jax.files import write_text

MANIFEST_NAME = "manifest.jsonl"
TEXTS_NAME = "texts.jsonl"
CONVERSATIONS_NAME = "conversations.jsonl"
_ERRORS_SHOWN = 10

Made = TypeVar("Made", Record, TextRecord, Conversation)


def read_manifest(path: str | os.PathLike[str]) -> list[Record]:
    """Reads a manifest file, or what a folder has of ``manifest.jsonl`` and ``manifest-*.jsonl``.

    Missing ``id``s are made from path and range, missing ``split``s by a stable hash of the id (2 % validation), and
    fields that are not of :class:`Record` are kept in ``attributes``. Audio is not looked at.

    Raises:
      FileNotFoundError: there is no such manifest.
      ManifestError: lines that are no valid records, with file, line and what is wrong.
    """
    return [record for _, record in iterate_manifest(path)]


def iterate_manifest(path: str | os.PathLike[str]) -> Iterator[tuple[tuple[int, int], Record]]:
    """As `read_manifest`, one record at a time, each with its place for `ManifestLines`.

    Raises:
      FileNotFoundError: there is no such manifest.
      ManifestError: as there, behind the last record of a file with such lines.
    """
    for number, file in enumerate(_files(path, MANIFEST_NAME)):
        for offset, record in _lines(file, record_of):
            yield (number, offset), record


class ManifestLines:
    """Single records of a manifest, each read from its line when it is asked for.

    Args:
      path: of the manifest, as for `iterate_manifest`. Its files must stay as they are.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._files = [_mapped(file) for file in _files(path, MANIFEST_NAME)]

    def record(self, file: int, offset: int) -> Record:
        """The record at a place that `iterate_manifest` gave."""
        content = self._files[file]
        end = content.find(b"\n", offset)
        line = content[offset : end if end >= 0 else len(content)]
        return from_json(line.decode("utf-8" if offset else "utf-8-sig"))


def read_texts(path: str | os.PathLike[str]) -> list[TextRecord]:
    """Reads text-only material: a file, or what a folder has of ``texts.jsonl`` and ``texts-*.jsonl`` (maybe nothing).

    Raises:
      FileNotFoundError: a file was named and is not there.
      ManifestError: lines that are no valid records.
    """
    return [record for file in _files(path, TEXTS_NAME) for _, record in _lines(file, text_record_of)]


def read_conversations(path: str | os.PathLike[str]) -> list[Conversation]:
    """Reads conversations: a file, or ``conversations*.jsonl`` of a folder, as texts are read.

    Raises:
      FileNotFoundError: a file was named and is not there.
      ManifestError: lines that are no valid conversations.
    """
    return [made for file in _files(path, CONVERSATIONS_NAME) for _, made in _lines(file, conversation_of)]


def write_manifest(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Writes records in their order, atomically; empty fields are left out.

    Raises:
      ValueError: two records have one id.
    """
    _write_lines(path, records)


def write_texts(path: str | os.PathLike[str], records: Iterable[TextRecord]) -> None:
    """Writes text-only records in their order, atomically.

    Raises:
      ValueError: two records have one id.
    """
    _write_lines(path, records)


def _files(path: str | os.PathLike[str], name: str) -> list[Path]:
    """The named file, or all of that name in a folder: ``name.jsonl`` and volumes ``name-*.jsonl``."""
    place = Path(path)
    stem = name.removesuffix(".jsonl")
    found = [place]
    if place.is_dir():
        found = [p for p in (place / name, *sorted(place.glob(f"{stem}-*.jsonl"))) if p.is_file()]
        if not found and name != MANIFEST_NAME:
            return []
    if not found or not found[0].is_file():
        raise FileNotFoundError(
            f"{place if not place.is_dir() else place / name}: no such manifest; it holds one line per recording, like "
            '{"audio": "a.wav", "text": "hello"}'
        )
    return found


def _lines(path: Path, make: Callable[[dict[str, Any]], Made]) -> Iterator[tuple[int, Made]]:
    """(offset in bytes, what `make` makes of its fields) of each good line; at the end an error names the bad ones."""
    errors: list[str] = []
    with open(path, "rb") as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            begin, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                made = make(fields_of(line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")))
            except ManifestError as error:
                errors.append(f"{path}:{number}: {error}")
                continue
            yield begin, made
    if errors:
        more = [f"... and {len(errors) - _ERRORS_SHOWN} more"] if len(errors) > _ERRORS_SHOWN else []
        raise ManifestError("\n".join(errors[:_ERRORS_SHOWN] + more))


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _write_lines(path: str | os.PathLike[str], records: Iterable[Record | TextRecord]) -> None:
    seen: set[str] = set()
    lines: list[str] = []
    for record in records:
        if record.id in seen:
            raise ValueError(f"{path}: id {record.id!r} appears more than once")
        seen.add(record.id)
        lines.append(to_json(record) + "\n")
    write_text(path, "".join(lines))
