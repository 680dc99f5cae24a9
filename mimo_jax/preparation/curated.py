"""What curation leaves: the good records, as manifests in volumes, beside the shards that they are made of.

    curated/shards/NAME.{jsonl,texts.jsonl,conversations.jsonl,dropped.jsonl,json}    one shard of the source
    curated/manifest.jsonl, texts.jsonl, conversations.jsonl                         all of them, as training reads them
    curated/quarantine.jsonl, filtered.jsonl                                          what was dropped
    curated/index.json                                                                volumes, accounts

A *volume* is what the formats see at once when they combine records (documents, pairs, voices): all records of
consecutive shards up to a limit. More than one volume makes ``manifest-00000.jsonl`` and so on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mimo_jax.data.manifest import Conversation, Record, TextRecord
from mimo_jax.data.manifest import from_json as record_from_json
from mimo_jax.data.manifest import to_json as to_line
from mimo_jax.data.manifest_files import read_conversations, read_manifest, read_texts
from mimo_jax.data.stages import file_hash, fingerprint, to_json
from mimo_jax.files import replacing, write_text
from mimo_jax.preparation.accounts import Account
from mimo_jax.preparation.elements import Dropped, Element, Outcome
from mimo_jax.preparation.shards import read_dropped, read_side, write_lines
from mimo_jax.preparation.sources.base import Shard

INDEX = "index.json"
SHARDS = "shards"
_KINDS: dict[type, str] = {Record: "manifest", TextRecord: "texts", Conversation: "conversations"}
_SUFFIXES = {"manifest": ".jsonl", "texts": ".texts.jsonl", "conversations": ".conversations.jsonl"}


def relative_audio(audio: str, folder: pathlib.Path) -> str:
    """An absolute local path or reference as seen from ``folder``; URLs stay as they are."""
    path, mark, rest = audio.partition("#")
    if "://" in path or not os.path.isabs(path):
        return audio
    return os.path.relpath(path, folder.absolute()) + mark + rest


def absolute_audio(audio: str, folder: pathlib.Path) -> str:
    """The inverse of `relative_audio`."""
    if "://" in audio.partition("#")[0]:
        return audio
    return os.path.normpath(folder.absolute() / audio)


@dataclasses.dataclass(frozen=True)
class CuratedSink:
    """Writes the records of a shard; their sound is left behind.

    Attributes:
        root: the curated folder; paths of recordings are written relative to it.
    """

    root: pathlib.Path = dataclasses.field(compare=False)

    @property
    def folder(self) -> pathlib.Path:
        """Where the shards lie."""
        return self.root / SHARDS

    def slim(self, outcome: Outcome) -> Outcome:
        """Without the wave."""
        return dataclasses.replace(outcome, wave=None) if isinstance(outcome, Element) else outcome

    def files(self, name: str, elements: Sequence[Element]) -> tuple[list[pathlib.Path], dict[str, Any]]:
        """One file for each kind of record; the recordings' is there even if it is empty."""
        lines: dict[str, list[str]] = {kind: [] for kind in _KINDS.values()}
        splits: Counter[str] = Counter()
        for element in elements:
            record = element.record
            if isinstance(record, Record):
                record = dataclasses.replace(record, audio=relative_audio(record.audio, self.root))
                splits[f"{record.split} {record.subset}"] += 1
            lines[_KINDS[type(record)]].append(to_line(record))
        paths = [
            write_lines(self.folder / f"{name}{_SUFFIXES[kind]}", lines[kind])
            for kind in lines
            if lines[kind] or kind == "manifest"
        ]
        counts = {kind: len(lines[kind]) for kind in lines}
        return paths, {"counts": counts, "splits": dict(sorted(splits.items()))}


@dataclasses.dataclass(frozen=True)
class Volume:
    """Records that are combined with each other.

    Attributes:
        number: of the volume.
        shards: names of the shards in it, in order.
        key: fingerprint of its content.
        manifest, texts, conversations: names of its files in the curated folder.
    """

    number: int
    shards: tuple[str, ...]
    key: str
    manifest: str
    texts: str
    conversations: str


@dataclasses.dataclass(frozen=True)
class Curated:
    """A finished curation.

    Attributes:
        folder: of the curation.
        account: of all its shards.
        volumes: in order.
        splits: recordings by "split subset".
    """

    folder: pathlib.Path
    account: Account
    volumes: tuple[Volume, ...]
    splits: dict[str, int]

    @property
    def key(self) -> str:
        """Fingerprint of the content."""
        return fingerprint([volume.key for volume in self.volumes])

    def records(self, volume: Volume) -> list[Record]:
        """Recordings of a volume, in order."""
        return read_manifest(self.folder / volume.manifest)

    def texts(self, volume: Volume) -> list[TextRecord]:
        """Texts of a volume."""
        path = self.folder / volume.texts
        return read_texts(path) if path.is_file() else []

    def conversations(self, volume: Volume) -> list[Conversation]:
        """Conversations of a volume."""
        path = self.folder / volume.conversations
        return read_conversations(path) if path.is_file() else []

    def attributes_without_text(self) -> dict[str, int] | None:
        """How often each attribute occurs, the commonest first, where no recording has words; None if one has.

        Fields of a name that is not known are attributes too, so a misnamed `text` is among them. Recordings that
        belong to conversations do not count; None without any other.
        """
        found: Counter[str] = Counter()
        alone = False
        # Where words are given, one of the first records has them: only recordings without any are read to the end.
        names = [name for volume in self.volumes for name in volume.shards]
        for record in _shard_records(self.folder, names):
            if record.text:
                return None
            if record.part_of is None:
                alone = True
                found.update(record.attributes.keys())
        return dict(found.most_common()) if alone else None


def finish(root: pathlib.Path, names: Sequence[str], volume_records: int) -> Curated:
    """Puts the shards together.

    Args:
        root: the curated folder.
        names: the finished shards, in the source's order.
        volume_records: records of a volume at most; a shard is never cut.
    """
    sides = {name: read_side(root / SHARDS, name) for name in names}
    account = Account.total(Account.from_json(side["account"]) for side in sides.values())
    groups = _groups(names, [sum(sides[name]["counts"].values()) for name in names], volume_records)
    splits: Counter[str] = Counter()
    for side in sides.values():
        splits.update(side["splits"])
    moved = _held_out(root, names) if not any(key.startswith("validation ") for key in splits) else None
    if moved:
        splits[f"{moved.split} {moved.subset}"] -= 1
        splits[f"validation {moved.subset}"] += 1
    volumes = []
    for number, group in enumerate(groups):
        mark = f"-{number:05d}" if len(groups) > 1 else ""
        files = {kind: f"{kind}{mark}.jsonl" for kind in _SUFFIXES}
        for kind, name in files.items():
            _merge(root, [root / SHARDS / f"{shard}{_SUFFIXES[kind]}" for shard in group], name, moved)
        hashes = [
            [
                sides[shard]["sha256"][f"{shard}{s}"]
                for s in _SUFFIXES.values()
                if f"{shard}{s}" in sides[shard]["sha256"]
            ]
            for shard in group
        ]
        key = fingerprint(hashes, moved.id if moved else None)
        volumes.append(Volume(number, tuple(group), key, **files))
    _remove_old(root, {name for v in volumes for name in (v.manifest, v.texts, v.conversations)})
    for kind in ("quarantined", "filtered"):
        file = "quarantine.jsonl" if kind == "quarantined" else "filtered.jsonl"
        with replacing(root / file) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape") as out:
            for name in names:
                out.writelines(dropped_line(one) for one in read_dropped(root / SHARDS, name) if one.kind == kind)
    curated = Curated(root, account, tuple(volumes), {k: n for k, n in sorted(splits.items()) if n})
    index = {
        "account": account.to_json(),
        "splits": curated.splits,
        "volumes": [dataclasses.asdict(volume) for volume in volumes],
    }
    write_text(root / INDEX, to_json(index))
    return curated


def dropped_line(dropped: Dropped) -> str:
    """A line of quarantine.jsonl."""
    return json.dumps({"id": dropped.id, "reason": dropped.reason, "detail": dropped.detail}, ensure_ascii=False) + "\n"


def _groups(names: Sequence[str], counts: Sequence[int], limit: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name, count in zip(names, counts, strict=True):
        if not groups or (count > room and groups[-1]):
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= count
    return groups


def _shard_records(root: pathlib.Path, names: Sequence[str]) -> Iterator[Record]:
    for name in names:
        with open(root / SHARDS / f"{name}.jsonl", encoding="utf-8") as lines:
            yield from map(record_from_json, lines)


def _held_out(root: pathlib.Path, names: Sequence[str]) -> Record | None:
    """The record to move to "validation" where none is there: every figure needs held-out speech.

    A small folder may well have none, as splits that are not given go by hash and 2 % share. A single record stays in
    training, and so do recordings of conversations; nothing can be held out then.
    """
    chosen: tuple[tuple[bool, bool, bytes], Record] | None = None
    count = 0
    for record in _shard_records(root, names):
        count += 1
        # A recording of a conversation would stay behind in training's conversation.
        rank = (record.part_of is not None, not record.text, hashlib.sha256(record.id.encode()).digest())
        if chosen is None or rank < chosen[0]:
            chosen = rank, record
    return chosen[1] if chosen and count > 1 and chosen[1].part_of is None else None


def _merge(root: pathlib.Path, parts: Sequence[pathlib.Path], name: str, moved: Record | None) -> None:
    """One file of a volume, from its shards; the moved record with its new split. No parts, no file."""
    there = [part for part in parts if part.is_file()]
    if not there:
        return
    with replacing(root / name) as partial, partial.open("wb") as out:
        for part in there:
            with part.open("rb") as lines:
                if moved is None:
                    shutil.copyfileobj(lines, out)
                    continue
                for line in lines:
                    out.write(_with_split(line, moved.id, "validation"))


def _with_split(line: bytes, record_id: str, split: str) -> bytes:
    with contextlib.suppress(ValueError):
        fields = json.loads(line)
        if fields.get("id") == record_id and "audio" in fields:
            return (to_line(dataclasses.replace(record_from_json(line.decode()), split=split)) + "\n").encode()
    return line


def _remove_old(root: pathlib.Path, wanted: set[str]) -> None:
    """Volumes of an earlier curation with other numbers."""
    for kind in _SUFFIXES:
        for path in [*root.glob(f"{kind}.jsonl"), *root.glob(f"{kind}-*.jsonl")]:
            if path.name not in wanted:
                path.unlink()


@dataclasses.dataclass(frozen=True)
class CuratedSource:
    """The recordings of a curation, shard by shard, to be tokenized."""

    root: pathlib.Path
    names: tuple[str, ...]

    def shards(self) -> list[Shard]:
        """One shard for each of the curation's."""
        return [Shard(name, fingerprint=file_hash(self.root / SHARDS / f"{name}.jsonl")) for name in self.names]

    def read(self, shard: Shard) -> Iterator[Element]:
        """The shard's recordings, with absolute paths."""
        for record in _shard_records(self.root, [shard.name]):
            yield Element(dataclasses.replace(record, audio=absolute_audio(record.audio, self.root)))
