"""A Kaldi data folder: ``wav.scp``, and ``text``, ``utt2spk``, ``segments``, ``utt2lang``, ``spk2gender`` if there.

With ``segments`` each of its lines is an item, otherwise each line of ``wav.scp``. Commands ("sox ... |") are refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from mimo_jax.data import references, storage
from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.sources import base, lines, places
from mimo_jax.preparation.sources.base import ITEMS_PER_SHARD, InvalidItem, Shard, SourceError

WAV_SCP = "wav.scp"
_TABLES = ("text", "utt2spk", "utt2lang", "spk2gender")
_GENDERS = {"m": "male", "f": "female"}
_ARK_ENTRY = re.compile(r"^(?P<file>.+):(?P<offset>\d{1,18})$", re.DOTALL)
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)


class _Item(NamedTuple):
    """A line that stands for an utterance: file, number, first word, the rest; or what is wrong with it."""

    file: str
    number: int
    key: str
    value: str
    problem: tuple[str, str] | None = None


class KaldiSource:
    """See the module's text. Ids are those of the utterances. Each process keeps the folder's lists in memory.

    Args:
        path: the folder (or URL), or its ``wav.scp``.
        items_per_shard: utterances.
        split: of all utterances; None leaves it to chance (2 % validation). The folder's name is not asked.
        root: where relative paths in ``wav.scp`` begin; None is the folder.

    Raises:
        SourceError: there is no ``wav.scp``.
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
        self.folder = path if places.is_folder(path) else places.parent(path)
        self.scp = WAV_SCP if path == self.folder else path[len(self.folder) + 1 :]
        self.root = self.folder if root is None else places.absolute(root)
        self.items_per_shard = items_per_shard
        self.split = split
        self._names = places.names_in(self.folder) if places.is_folder(self.folder) else []
        self._loaded: _Lists | None = None
        if self.scp not in self._names:
            raise SourceError(f"{path}: no {self.scp} there")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def _lists(self) -> _Lists:
        if self._loaded is None:
            self._loaded = _Lists(self.folder, self.scp, self._names)
        return self._loaded

    def shards(self) -> list[Shard]:
        """See `base.Source`."""
        self._loaded = None
        lists = self._lists()
        found = []
        for number, start in enumerate(range(0, len(lists.items), self.items_per_shard)):
            part = lists.items[start : start + self.items_per_shard]
            parts = [[item, lists.recording_of(item), lists.facts(item.key), self._stamp(item, lists)] for item in part]
            spec = {"start": start, "stop": start + len(part), "files": lists.stamps}
            found.append(Shard(f"items-{number:06d}", base.fingerprint("kaldi", self.split, parts), spec))
        return found

    def _stamp(self, item: _Item, lists: _Lists) -> list[Any] | None:
        """Size and time of the file that an utterance is in."""
        path = lists.recording_of(item)
        if path is None:
            return None
        ark = _ARK_ENTRY.match(path)
        return references.signature(references.resolve(path, self.root)) or (
            references.signature(references.resolve(ark["file"], self.root)) if ark else None
        )

    def read(self, shard: Shard) -> Iterator[Element | Dropped]:
        """See `base.Source`."""
        for name, stamp in shard.spec["files"]:
            places.check_size(places.join(self.folder, name), stamp)
        lists = self._lists()
        for item in lists.items[shard.spec["start"] : shard.spec["stop"]]:
            try:
                yield Element(base.make_record(self._fields(item, lists), "invalid_line", self.split))
            except InvalidItem as error:
                where = f"{item.file}:{item.number}"
                named = item.key if item.key and error.reason != "invalid_line" else where
                yield base.quarantined(named, error.reason, f"{where}: {error.detail}")

    def _fields(self, item: _Item, lists: _Lists) -> dict[str, Any]:
        """Fields of the utterance's record.

        Raises:
            InvalidItem: it has no usable recording.
        """
        if item.problem is not None:
            raise InvalidItem(*item.problem)
        path = lists.recording_of(item)
        if path is None:
            raise InvalidItem("missing_recording", f"{self.scp} has no {item.value.split()[0]!r}")
        fields = {"id": item.key, "audio": _located(path, self.root), **lists.facts(item.key)}
        if lists.segmented:
            begin, end = (float(number) for number in item.value.split()[1:3])
            fields |= {"start": begin, "end": end} if end >= 0 else {"start": begin}
        return fields


class _Lists:
    """The folder's lists.

    Attributes:
        items: what stands for utterances, in order; lines of ``wav.scp`` that are none come first.
        segmented: whether items are lines of ``segments``.
        stamps: [name, size and time] of each file.
    """

    def __init__(self, folder: str, scp: str, names: list[str]):
        self.segmented = "segments" in names
        used = [name for name in (scp, "segments", *_TABLES) if name in names]
        self.stamps = [[name, places.stamp(places.join(folder, name))] for name in used]
        recordings = list(_read(folder, scp))
        self._recordings = {item.key: item.value for item in recordings if item.problem is None}
        self.items = recordings
        if self.segmented:
            bad = [item for item in recordings if item.problem is not None]
            self.items = bad + [_checked_segment(item) for item in _read(folder, "segments")]
        self._tables = {
            name: {item.key: item.value for item in _read(folder, name) if item.problem is None}
            for name in used
            if name in _TABLES
        }

    def recording_of(self, item: _Item) -> str | None:
        """The entry of ``wav.scp`` for an utterance."""
        if item.problem is not None:
            return None
        return self._recordings.get(item.value.split()[0]) if self.segmented else item.value

    def facts(self, utterance: str) -> dict[str, Any]:
        """Text, speaker and attributes of an utterance, as far as they are listed."""
        known = {name: table[utterance] for name, table in self._tables.items() if utterance in table}
        speaker = known.get("utt2spk")
        attributes = {}
        if gender := self._tables.get("spk2gender", {}).get(speaker or ""):
            attributes["gender"] = _GENDERS.get(gender.lower(), gender)
        if language := known.get("utt2lang"):
            attributes["language"] = language
        return {"text": known.get("text"), "speaker": speaker, "attributes": attributes}


def _read(folder: str, name: str) -> Iterator[_Item]:
    """Lines "KEY VALUE" of a list; a line without value, or with a key that was there, has a problem."""
    seen: set[str] = set()
    for line in lines.read_lines(places.join(folder, name)):
        try:
            key, *rest = re.split(r"[ \t]+", line.raw.decode("utf-8").strip(), maxsplit=1)
        except UnicodeDecodeError as error:
            yield _Item(name, line.number, "", "", ("invalid_line", f"not UTF-8 ({error})"))
            continue
        value = rest[0] if rest else ""
        problem = None
        if not value and name != "text":
            problem = ("invalid_line", f"a key and a value are needed, found {key!r}")
        elif key in seen:
            problem = ("duplicate_id", f"an earlier line has the key {key!r}")
        else:
            seen.add(key)
        yield _Item(name, line.number, key, value, problem)


def _checked_segment(item: _Item) -> _Item:
    """With a problem, where it is not "RECORDING START END"."""
    if item.problem is not None:
        return item
    try:
        begin, end = (float(number) for number in item.value.split()[1:3])
        if begin >= 0 and (end > begin or end == -1):
            return item
    except ValueError:
        pass
    message = f"a recording, start and end in seconds (or -1) are needed, found {item.value!r}"
    return item._replace(problem=("invalid_line", message))


def _located(path: str, root: str) -> str:
    """The reference for an entry of ``wav.scp``; nothing is run.

    Raises:
        InvalidItem: a command, or an entry of an archive that does not say where it ends.
    """
    if path.endswith("|") or path.startswith("|"):
        raise InvalidItem("pipe_refused", f"{path!r} is a command; write its output to a file first and name that")
    whole = references.resolve(path, root)
    found = _ARK_ENTRY.match(path)
    if found is None or (not storage.is_url(whole) and references.signature(whole) is not None):
        return whole
    ark, offset = references.resolve(found["file"], root), int(found["offset"])
    return references.byte_range(ark, offset, _end_of_wav(ark, offset))


def _end_of_wav(ark: str, offset: int) -> int | None:
    """Where the entry ends by its own header; None where that cannot be told: decoding will say what is wrong.

    Raises:
        InvalidItem: a WAV of unknown length, which would go on into its neighbour.
    """
    try:
        with references.open_reference(references.byte_range(ark, offset)) as file:
            head = file.read(12)
    except references.AudioError:
        return None
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    size = struct.unpack("<I", head[4:8])[0]
    if size in _UNKNOWN_SIZES:
        raise InvalidItem("unknown_length", f"{ark}: the WAV at byte {offset} does not say how long it is")
    return offset + 8 + size
