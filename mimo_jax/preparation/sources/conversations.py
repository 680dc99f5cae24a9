"""Conversations in the fine-tuning exchange format: JSON files, or JSON lines.

A ``*.json`` file holds one conversation (a list of turns, or an object with ``turns``) or a list of conversations, a
``*.jsonl`` file one conversation a line. Each gives a Conversation whose audio items name Records, which are given out
before it: one for each recording, ``part_of`` the conversation and without text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mimo_jax.data import references
from mimo_jax.data.manifest import Conversation, Record, conversation_of
from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.sources import base, lines, places
from mimo_jax.preparation.sources.base import ITEMS_PER_SHARD, InvalidItem, Shard, SourceError
from mimo_jax.preparation.sources.turns import check_turns, recordings, rename_recordings

ENDINGS = (".json", ".jsonl")
_TURNS = ("turns", "messages")


class _Place(NamedTuple):
    """A conversation: its file, number (from 1: of the line, or in the list), and bytes' range in a ``.jsonl``."""

    file: str
    number: int
    start: int
    end: int


class ConversationsSource:
    """See the module's text.

    Ids are those given (``id``), or ``FILE:NUMBER``; those of recordings ``CONVERSATION/0`` and so on.

    Args:
        path: a file, or a folder (or URL) with files in it or below.
        items_per_shard: conversations.
        split: of conversations that name none; otherwise names like ``dev.jsonl`` tell it, then chance.
        root: where relative paths of recordings begin; None is the folder of the file.

    Raises:
        SourceError: no such file is there.
    """

    def __init__(
        self,
        path: str,
        *,
        items_per_shard: int = ITEMS_PER_SHARD,
        split: str | None = None,
        root: str | None = None,
    ):
        path = places.absolute(path)
        folder = places.is_folder(path)
        self.folder = path if folder else places.parent(path)
        names = places.names_in(path, below=True) if folder else [path[len(self.folder) + 1 :]]
        self._names = [name for name in names if name.endswith(ENDINGS)]
        self.items_per_shard = items_per_shard
        self.split = split
        self.root = None if root is None else places.absolute(root)
        self._parsed: tuple[str, list[Any]] | None = None
        if not self._names or not (folder or places.is_file(path)):
            raise SourceError(f"{path}: no *.json or *.jsonl there")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parsed": None}

    def shards(self) -> list[Shard]:
        """See `base.Source`. Reads every conversation; ids stay in memory meanwhile."""
        self._parsed = None
        found: list[Shard] = []
        waiting: list[tuple[_Place, str, list[Any] | None]] = []
        ids: set[str] = set()
        for place, value in self._all():
            waiting.append((place, *self._seen(place, value, ids)))
            if len(waiting) == self.items_per_shard:
                found.append(self._shard(len(found), waiting))
                waiting = []
        if waiting:
            found.append(self._shard(len(found), waiting))
        return found

    def _shard(self, number: int, waiting: list[tuple[_Place, str, list[Any] | None]]) -> Shard:
        files = list(dict.fromkeys(place.file for place, _, _ in waiting))
        spec = {
            "files": [[name, places.stamp(places.join(self.folder, name))] for name in files],
            "places": [list(place) for place, _, _ in waiting],
            "marks": [[i, *mark] for i, (_, _, mark) in enumerate(waiting) if mark is not None],
        }
        seen = [[place.file, place.number, digest, mark] for place, digest, mark in waiting]
        return Shard(f"items-{number:06d}", base.fingerprint("conversations", self.split, seen), spec)

    def _seen(self, place: _Place, value: Any, ids: set[str]) -> tuple[str, list[Any] | None]:
        """(digest of a conversation and its recordings' files, [reason, detail] if its ids were there before)."""
        try:
            made = self._elements(place, value)
        except InvalidItem:
            return base.fingerprint(repr(value)), None
        stamps = [references.signature(one.audio) for one in made if isinstance(one, Record)]
        taken = next((one.id for one in made if one.id in ids), None)
        if taken is None:
            ids.update(one.id for one in made)
        mark = None if taken is None else ["duplicate_id", f"an earlier item has the id {taken!r}"]
        return base.fingerprint(value, stamps), mark

    def read(self, shard: Shard) -> Iterator[Element | Dropped]:
        """See `base.Source`; a quarantined conversation takes its recordings with it."""
        for name, stamp in shard.spec["files"]:
            places.check_size(places.join(self.folder, name), stamp)
        marks = {position: (reason, detail) for position, reason, detail in shard.spec["marks"]}
        found = [_Place(*one) for one in shard.spec["places"]]
        for position, (place, value) in enumerate(zip(found, self._values(found), strict=True)):
            where = f"{place.file}:{place.number}"
            try:
                made = self._elements(place, value)
            except InvalidItem as error:
                yield base.quarantined(_given_id(value) or where, error.reason, f"{where}: {error.detail}")
                continue
            if position in marks:
                reason, detail = marks[position]
                yield base.quarantined(made[-1].id, reason, f"{where}: {detail}")
                continue
            yield from (Element(one) for one in made)

    def _all(self) -> Iterator[tuple[_Place, Any]]:
        """Every conversation as it is in its file; InvalidItem for what is no JSON."""
        for name in self._names:
            path = places.join(self.folder, name)
            if name.endswith(".json"):
                for number, value in enumerate(self._whole(name), start=1):
                    yield _Place(name, number, 0, 0), value
            else:
                for line in lines.read_lines(path):
                    yield _Place(name, line.number, line.start, line.end), _value(line.raw)

    def _values(self, found: list[_Place]) -> Iterator[Any]:
        """The conversations at some places."""
        for_lines = [place for place in found if place.end]
        raw: dict[_Place, bytes] = {}
        for name in dict.fromkeys(place.file for place in for_lines):
            mine = [place for place in for_lines if place.file == name]
            read = places.read_ranges(places.join(self.folder, name), [(p.start, p.end) for p in mine])
            raw.update(zip(mine, read, strict=True))
        for place in found:
            yield _value(raw[place]) if place.end else self._whole(place.file)[place.number - 1]

    def _whole(self, name: str) -> list[Any]:
        """Conversations of a ``.json`` file; the last file is kept, as its other shards often come next."""
        if self._parsed is None or self._parsed[0] != name:
            path = places.join(self.folder, name)
            [data] = places.read_ranges(path, [(0, places.stamp(path)[0])])
            self._parsed = (name, _split_list(_value(data)))
        return self._parsed[1]

    def _elements(self, place: _Place, value: Any) -> list[Record | Conversation]:
        """The recordings of a conversation, then itself.

        Raises:
            InvalidItem: it is none.
        """
        if isinstance(value, InvalidItem):
            raise value
        fields = base.tidy(_fields(value))
        turns = check_turns(fields["turns"])
        if fields.get("id") is None:
            fields["id"] = f"{base.printable(place.file)}:{place.number}"
        if fields.get("split") is None:
            fields["split"] = self.split or base.split_of_path(place.file)
        try:
            conversation = conversation_of(fields)
        # Whatever a file holds where another type is expected must not end the run.
        except Exception as error:
            raise InvalidItem("invalid_conversation", str(error) or type(error).__name__) from error
        names = {audio: f"{conversation.id}/{n}" for n, audio in enumerate(recordings(turns))}
        root = self.root or places.parent(places.join(self.folder, place.file))
        shared = {"part_of": conversation.id, "split": conversation.split, "subset": conversation.subset}
        found: list[Record | Conversation] = [
            base.make_record({"id": name, "audio": references.resolve(audio, root), **shared}, "invalid_conversation")
            for audio, name in names.items()
        ]
        renamed = Conversation(
            conversation.id, rename_recordings(turns, lambda a: names[a]), conversation.split, conversation.subset
        )
        return [*found, renamed]


def _value(raw: bytes) -> Any:
    """The JSON value, or the InvalidItem that says why there is none."""
    try:
        return base.parse_json(raw, "invalid_conversation")
    except InvalidItem as error:
        return error


def _split_list(value: Any) -> list[Any]:
    """A file's conversations: a list of turns is one, a list of anything else several."""
    if isinstance(value, list) and not (value and isinstance(value[0], dict) and "role" in value[0]):
        return value
    return [value]


def _fields(value: Any) -> dict[str, Any]:
    """id, turns, split and subset of a conversation; what else an object has is left out."""
    if isinstance(value, list):
        return {"turns": value}
    if not isinstance(value, dict):
        raise InvalidItem("invalid_conversation", f"a list of turns is needed, found {type(value).__name__}")
    turns = next((value[name] for name in _TURNS if name in value), None)
    return {"turns": turns, **{name: value[name] for name in ("id", "split", "subset") if name in value}}


def _given_id(value: Any) -> str:
    given = value.get("id") if isinstance(value, dict) else None
    return str(given) if isinstance(given, (str, int)) else ""
