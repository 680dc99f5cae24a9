"""What a source of preparation is: items in shards, each given out once, as an Element or as Dropped with a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mimo_jax.data.manifest import Record, record_of
from mimo_jax.preparation.elements import Dropped, Element

ITEMS_PER_SHARD = 1024

REASONS: dict[str, str] = {
    "invalid_line": "a line that is no valid record: no JSON, not UTF-8, a missing or wrong field",
    "invalid_fields": "a sample or row with fields that make no valid record",
    "invalid_conversation": "turns that are not in the exchange format",
    "duplicate_id": "an earlier item has the same id",
    "missing_text": "a line of text-only material without text",
    "missing_audio": "a sample or row without a recording",
    "several_recordings": "a sample with more than one recording",
    "missing_recording": "a recording is named that the source does not have",
    "truncated_archive": "an archive that is cut off or damaged; what lies before is used",
    "missing_column": "a table without a column of recordings, or without one that was named, beside others with it",
    "damaged_file": "a file, or a part of it, that cannot be read as what its name says",
    "pipe_refused": "a command instead of a file: commands in data are never run",
    "unknown_length": "a recording inside an archive that does not say where it ends",
}
"""Every reason for which sources quarantine, with its meaning."""

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "test"), "validation"),
}
_NAME_SPLIT = re.compile(rf"^({'|'.join(_SPLIT_NAMES)})(?![A-Za-z0-9])", re.IGNORECASE)


class SourceError(ValueError):
    """A place that is no source, or cannot be read at all; the message says what to do."""


class InvalidItem(Exception):
    """An item that cannot be used. ``reason`` is a key of :data:`REASONS`, ``detail`` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a source that is prepared on its own.

    Attributes:
        name: unique in the source, the same each time; letters, digits, "-" and "_" only.
        fingerprint: changes when something that `Source.read` gives for it, or a local recording behind it, changes.
        spec: what the source needs to find it again; JSON-able.
    """

    name: str
    fingerprint: str = ""
    spec: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


class Source(Protocol):
    """Recordings, texts and conversations from one place. Picklable: workers get it whole."""

    def shards(self) -> list[Shard]:
        """All parts, in the order of the source.

        Raises:
            SourceError: nothing is there, or it cannot be read.
        """
        ...

    def read(self, shard: Shard) -> Iterator[Element | Dropped]:
        """Each item of a shard once, in order: a record without its wave, or why it is quarantined.

        ``Record.audio`` is an absolute path, a URL or a reference (`mimo_jax.data.references`).

        Raises:
            SourceError: the source changed since `shards` was called.
        """
        ...


def fingerprint(*parts: Any) -> str:
    """Hex digest of JSON-able values; names that are no UTF-8 are allowed."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def printable(text: str) -> str:
    """The text, with what cannot be written as UTF-8 (bytes of file names, lone surrogates) escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def quarantined(item_id: str, reason: str, detail: str) -> Dropped:
    """An item that cannot be used, for one of :data:`REASONS`."""
    return Dropped(printable(item_id), "quarantined", reason, printable(detail))


def shard_name(name: str) -> str:
    """A name for the shard of a file: readable, unique for each ``name``, and safe in file names."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[-60:]}-{digest}"


def split_named(name: str) -> str | None:
    """Our split for a usual name of one ("dev", "test": held out, so "validation"); None for other names."""
    return _SPLIT_NAMES.get(name.lower())


def split_of_path(name: str) -> str | None:
    """The split that a relative path tells, like ``data/dev-00001.parquet`` or ``test/data.arrow``; None if none."""
    for part in name.split("/"):
        if found := _NAME_SPLIT.match(part):
            return split_named(found[1])
    return None


def parse_json(raw: bytes, reason: str = "invalid_line") -> Any:
    """The JSON value of UTF-8 bytes.

    Raises:
        InvalidItem: for ``reason``: it is none.
    """
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidItem(reason, f"not UTF-8 ({error})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidItem(reason, f"not JSON ({error})") from error
    if "\\u" in text:
        check_encodable(value, reason)
    return value


def check_encodable(value: Any, reason: str) -> None:
    """Raises InvalidItem for text that cannot be written as UTF-8 (half of a surrogate pair)."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidItem(reason, f"text that is no Unicode ({error.reason})") from error


def as_object(value: Any, reason: str = "invalid_line") -> dict[str, Any]:
    """The value if it is a JSON object; raises InvalidItem otherwise."""
    if not isinstance(value, dict):
        raise InvalidItem(reason, f"a JSON object is needed, found {type(value).__name__}")
    return value


def make_record(fields: Mapping[str, Any], reason: str = "invalid_line", split: str | None = None) -> Record:
    """The record of fields; ``split`` holds where they name none.

    Raises:
        InvalidItem: for ``reason``: they make no valid record.
    """
    given = dict(fields)
    if given.get("split") is None:
        given["split"] = split
    try:
        return record_of(given)
    # Whatever a file holds where another type is expected must not end the run.
    except Exception as error:
        raise InvalidItem(reason, str(error) or type(error).__name__) from error


def tidy(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as other collections write them, in our terms: numbers as names of speakers, usual names of splits."""
    given = dict(fields)
    for name in ("id", "speaker"):
        if isinstance(given.get(name), int) and not isinstance(given[name], bool):
            given[name] = str(given[name])
    if isinstance(given.get("split"), str):
        given["split"] = split_named(given["split"]) or given["split"]
    return given
