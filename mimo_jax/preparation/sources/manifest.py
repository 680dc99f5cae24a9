"""A folder with ``manifest.jsonl`` (and ``texts.jsonl``, ``conversations.jsonl``): the project's own form.

Records that the formats combine stay in one shard: a document, utterances of one text, questions and answers, noisy
and clean, conversations and their recordings. Otherwise the order is that of the lines.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterator

from mimo_jax.data import references
from mimo_jax.data.manifest import Conversation, Record, TextRecord, conversation_of, text_record_of
from mimo_jax.preparation.elements import AnyRecord, Dropped, Element
from mimo_jax.preparation.sources import base, lines, places
from mimo_jax.preparation.sources.base import ITEMS_PER_SHARD, InvalidItem, Shard, SourceError
from mimo_jax.preparation.sources.grouping import GROUP_LIMIT, Groups
from mimo_jax.preparation.sources.turns import check_turns, recordings

_KINDS = ("manifest", "texts", "conversations")
_DIGEST_BYTES = 16


def kind_of_file(name: str) -> str | None:
    """Which of manifest, texts and conversations a file of a manifest's folder holds; None for none of them."""
    found = (kind for kind in _KINDS if name.startswith(kind) and name.endswith(".jsonl"))
    return next(found, None)


def parse_line(kind: str, raw: bytes) -> AnyRecord:
    """The record of a line.

    Raises:
        InvalidItem: there is none.
    """
    fields = base.as_object(base.parse_json(raw))
    if kind == "manifest":
        return base.make_record(fields)
    if kind == "texts" and fields.get("text") in (None, ""):
        raise InvalidItem("missing_text", f"`text` is missing or empty in {fields!r:.200}")
    try:
        record = text_record_of(fields) if kind == "texts" else conversation_of(fields)
    # Whatever a file holds where another type is expected must not end the run.
    except Exception as error:
        raise InvalidItem("invalid_line", str(error) or type(error).__name__) from error
    if isinstance(record, Conversation):
        check_turns(record.turns)
    return record


class ManifestSource:
    """See the module's text.

    Args:
        path: the folder (or URL), or a manifest in it; of texts and conversations, all files of the folder are taken.
        items_per_shard: lines, about.

    Raises:
        SourceError: there is no such file.
    """

    def __init__(self, path: str, *, items_per_shard: int = ITEMS_PER_SHARD):
        path = places.absolute(path)
        self.folder = path if places.is_folder(path) else places.parent(path)
        self.items_per_shard = items_per_shard
        names = places.names_in(self.folder) if places.is_folder(self.folder) else []
        given = None if path == self.folder else path[len(self.folder) + 1 :]
        self._files = _choose(names, given)
        if not self._files or (given is not None and given not in names):
            raise SourceError(
                f"{path}: no manifest.jsonl, texts.jsonl or conversations.jsonl; a manifest has one line per "
                'recording, like {"audio": "a.wav", "text": "hello"}'
            )

    def shards(self) -> list[Shard]:
        """See `base.Source`. Reads every line; ids and links stay in memory meanwhile."""
        return list(_Plan(self.folder, self._files).shards(self.items_per_shard))

    def read(self, shard: Shard) -> Iterator[Element | Dropped]:
        """See `base.Source`."""
        files = shard.spec["files"]
        for _, name, stamp in files:
            places.check_size(places.join(self.folder, name), stamp)
        marks = {position: (reason, detail) for position, reason, detail in shard.spec["marks"]}
        runs = [lines.Run(*run) for run in shard.spec["runs"]]
        found = lines.read_runs([places.join(self.folder, name) for _, name, _ in files], runs)
        for position, (file, line) in enumerate(found):
            kind, name, _ = files[file]
            try:
                record = parse_line(kind, line.raw)
            except InvalidItem as error:
                yield base.quarantined(f"{name}:{line.number}", error.reason, error.detail)
                continue
            if position in marks:
                yield base.quarantined(record.id, *marks[position])
                continue
            if isinstance(record, Record):
                record = dataclasses.replace(record, audio=references.resolve(record.audio, self.folder))
            yield Element(record)


def _choose(names: list[str], given: str | None) -> list[tuple[str, str]]:
    """(kind, name) of the files to read: recordings, then texts, then conversations; ``manifest.jsonl`` first."""
    found = [(kind, name) for name in names if (kind := kind_of_file(name))]
    if given is not None:
        kind = kind_of_file(given) or "manifest"
        beside = [(k, name) for k, name in found if k != "manifest" and name != given]
        found = [(kind, given), *(beside if kind == "manifest" else ())]
    return sorted(found, key=lambda one: (_KINDS.index(one[0]), one[1] != f"{one[0]}.jsonl", one[1]))


class _Plan:
    """One reading of all lines: where each lies, what belongs together, which are duplicates."""

    def __init__(self, folder: str, files: list[tuple[str, str]]):
        self.folder = folder
        self.files = [(kind, name, places.stamp(places.join(folder, name))) for kind, name in files]
        self.groups = Groups()
        # Of each item: its file, line, byte offsets; and a digest of the line and of the file that it names.
        self.file, self.line, self.start, self.end = (array(code) for code in "iqqq")
        self.digests = bytearray()
        self.marks: dict[int, tuple[str, str]] = {}
        self._ids: set[str] = set()
        self._recordings: set[str] = set()
        for number, (kind, name, _) in enumerate(self.files):
            for line in lines.read_lines(places.join(folder, name)):
                self._add(number, kind, name, line)

    def _add(self, number: int, kind: str, name: str, line: lines.Line) -> None:
        for column, value in zip(
            (self.file, self.line, self.start, self.end), (number, line.number, line.start, line.end), strict=True
        ):
            column.append(value)
        seen = [line.raw, kind.encode()]
        try:
            record = parse_line(kind, line.raw)
        except InvalidItem:
            # The place of a bad line is its name.
            self._digest([*seen, f"{name}:{line.number}".encode()])
            self.groups.add(())
            return
        if isinstance(record, Record):
            seen.append(json.dumps(references.signature(references.resolve(record.audio, self.folder))).encode())
        self._digest(seen)
        if problem := self._problem(record, name, line):
            self.marks[self.groups.add(())] = problem
            return
        self._ids.add(record.id)
        if isinstance(record, Record):
            self._recordings.add(record.id)
        self.groups.add(_keys(record))

    def _digest(self, parts: list[bytes]) -> None:
        made = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for part in parts:
            made.update(len(part).to_bytes(8, "big") + part)
        self.digests += made.digest()

    def _problem(self, record: AnyRecord, name: str, line: lines.Line) -> tuple[str, str] | None:
        """What is wrong with a valid line, seen beside the others."""
        if record.id in self._ids:
            return "duplicate_id", f"{name}:{line.number}: an earlier item has the id {record.id!r}"
        if isinstance(record, Conversation):
            # Conversations come after all recordings.
            missing = [audio for audio in recordings(record.turns) if audio not in self._recordings]
            if missing:
                return (
                    "missing_recording",
                    f"{name}:{line.number}: no recording of the manifest has the id {missing[0]!r}",
                )
        return None

    def shards(self, items_per_shard: int) -> Iterator[Shard]:
        for number, part in enumerate(self.groups.parts(items_per_shard, GROUP_LIMIT)):
            runs = lines.runs_of([(i, self.file[i], self.line[i], self.start[i], self.end[i]) for i in part])
            marks = [(position, *self.marks[item]) for position, item in enumerate(part) if item in self.marks]
            digests = b"".join(self.digests[i * _DIGEST_BYTES : (i + 1) * _DIGEST_BYTES] for i in part)
            yield Shard(
                f"items-{number:06d}",
                base.fingerprint(digests.hex(), [(position, reason) for position, reason, _ in marks]),
                {"files": [list(file) for file in self.files], "runs": [list(r) for r in runs], "marks": marks},
            )


def _keys(record: AnyRecord) -> Iterator[str]:
    """What the items that belong with a record share with it. Ids are as they are; other keys cannot be ids."""
    yield record.id
    if isinstance(record, TextRecord):
        return
    if isinstance(record, Conversation):
        yield from recordings(record.turns)
        return
    yield from (link for link in (record.reply, record.clean, record.part_of) if link)
    if record.document is not None:
        yield f"\0document {record.document['id']}"
    if record.parallel is not None:
        yield f"\0parallel {record.parallel}"
