"""Tar shards in the manner of WebDataset: members ``KEY.flac``, ``KEY.txt``, ``KEY.json`` of one sample in a row.

A recording is named by its range of bytes in the tar, which is never unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from mimo_jax.data import references, storage
from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.sources import base, places
from mimo_jax.preparation.sources.base import ITEMS_PER_SHARD, InvalidItem, Shard, SourceError

AUDIO_ENDINGS = ("flac", "wav", "mp3", "ogg", "opus", "m4a")
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TEXT_ENDINGS = ("txt", "json")
_LARGEST_TEXT = 1 << 24
_BLOCK = 512


class WebDatasetSource:
    """See the module's text. One tar is one shard; ids are ``TAR/KEY``, with the tar's relative name.

    Args:
        path: a tar, or a folder (or URL) with tars in it or below.
        items_per_shard: without effect.
        split: of records whose JSON names none; otherwise names like ``dev-0001.tar`` tell it, then chance.

    Raises:
        SourceError: no tar is there, or compressed ones.
    """

    def __init__(self, path: str, *, items_per_shard: int = ITEMS_PER_SHARD, split: str | None = None):
        path = places.absolute(path)
        folder = places.is_folder(path)
        self.folder = path if folder else places.parent(path)
        names = places.names_in(path, below=True) if folder else [path[len(self.folder) + 1 :]]
        if packed := [name for name in names if name.endswith(PACKED_TARS)]:
            raise SourceError(
                f"{places.join(self.folder, packed[0])}: recordings cannot be found by their place in a compressed "
                "tar; unpack it (gzip -d, or the like): audio formats are compressed already"
            )
        self._names = [name for name in names if name.endswith(".tar")]
        self.split = split
        if not self._names or not (folder or places.is_file(path)):
            raise SourceError(f"{path}: no *.tar there")

    def shards(self) -> list[Shard]:
        """See `base.Source`."""
        found = []
        for name in self._names:
            stamp = places.stamp(places.join(self.folder, name))
            fingerprint = base.fingerprint("tar", name, stamp, self.split)
            found.append(Shard(base.shard_name(name), fingerprint, {"name": name, "stamp": stamp}))
        return found

    def read(self, shard: Shard) -> Iterator[Element | Dropped]:
        """See `base.Source`."""
        name = shard.spec["name"]
        path = places.join(self.folder, name)
        places.check_size(path, shard.spec["stamp"])
        prefix = base.printable(name.removesuffix(".tar"))
        seen: set[str] = set()
        for sample in _samples(path, name):
            if isinstance(sample, Dropped):
                yield sample
                continue
            item_id = f"{prefix}/{base.printable(sample.key)}"
            if item_id in seen:
                yield base.quarantined(item_id, "duplicate_id", f"{name}: {sample.key!r} is there more than once")
                continue
            seen.add(item_id)
            try:
                yield Element(self._record(path, name, item_id, sample))
            except InvalidItem as error:
                yield base.quarantined(item_id, error.reason, f"{name}: {sample.key}: {error.detail}")

    def _record(self, path: str, name: str, item_id: str, sample: _Sample) -> Record:
        if sample.too_large:
            raise InvalidItem("invalid_fields", f"{sample.too_large[0]} has more than {_LARGEST_TEXT} bytes")
        if len(sample.audio) != 1:
            reason = "several_recordings" if sample.audio else "missing_audio"
            raise InvalidItem(reason, f"its members: {', '.join(sample.members)}")
        fields: dict[str, Any] = {}
        if sample.json is not None:
            fields = base.tidy(base.as_object(base.parse_json(sample.json, "invalid_fields"), "invalid_fields"))
        if sample.text is not None:
            try:
                fields["text"] = sample.text.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise InvalidItem("invalid_fields", f"text that is not UTF-8 ({error})") from error
        fields |= {"id": item_id, "audio": references.byte_range(path, *sample.audio[0])}
        return base.make_record(fields, "invalid_fields", self.split or base.split_of_path(name))


class _Sample(NamedTuple):
    """Members of one key: ranges of its recordings, content of its texts, names of all and of texts left unread."""

    key: str
    audio: list[tuple[int, int]]
    members: list[str]
    too_large: list[str]
    text: bytes | None = None
    json: bytes | None = None


class _Cut(NamedTuple):
    """Where an archive ends before its end: what was found, and the member that is not whole, if its name is known."""

    detail: str
    member: str | None


def _key_and_ending(name: str) -> tuple[str, str]:
    """``a/b.left.flac`` -> (``a/b``, ``flac``)."""
    folder, slash, last = name.rpartition("/")
    key, _, endings = last.partition(".")
    return folder + slash + key, endings.rpartition(".")[2].lower()


def _samples(path: str, name: str) -> Iterator[_Sample | Dropped]:
    """Samples in order; at the end one Dropped if the archive is cut, with the sample that is not whole."""
    sample: _Sample | None = None
    for member in _members(path):
        if isinstance(member, _Cut):
            whole = sample is not None and (member.member is None or _key_and_ending(member.member)[0] != sample.key)
            if sample is not None and whole:
                yield sample
            lost = "" if sample is None or whole else f"; the sample {sample.key!r} is not whole"
            yield base.quarantined(name, "truncated_archive", f"{path}: {member.detail}{lost}")
            return
        key, _ = _key_and_ending(member.name)
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = _Sample(key, [], [], [])
        sample = _with(sample, member)
    if sample is not None:
        yield sample


class _Member(NamedTuple):
    """A plain file of a tar: its name, its bytes' range, what it holds if it is a text of sensible size."""

    name: str
    start: int
    end: int
    content: bytes | None


def _with(sample: _Sample, member: _Member) -> _Sample:
    ending = _key_and_ending(member.name)[1]
    sample.members.append(base.printable(member.name))
    if ending in AUDIO_ENDINGS:
        sample.audio.append((member.start, member.end))
    elif ending in _TEXT_ENDINGS and member.content is None:
        sample.too_large.append(member.name)
    elif ending == "txt":
        return sample._replace(text=member.content)
    elif ending == "json":
        return sample._replace(json=member.content)
    return sample


def _members(path: str) -> Iterator[_Member | _Cut]:
    """Plain files of a tar in order, with the content of small texts; a _Cut comes last."""
    try:
        with storage.open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            yield from _walk(file, size)
    except OSError as error:
        yield _Cut(f"cannot be read ({error})", None)


def _walk(file: Any, size: int) -> Iterator[_Member | _Cut]:
    try:
        tar = tarfile.open(fileobj=file, mode="r:")
    except (tarfile.TarError, ValueError) as error:
        yield _Cut(f"no tar ({error})", None)
        return
    while True:
        try:
            info = tar.next()
        # Damaged headers make the module raise more than it promises.
        except Exception as error:
            yield _Cut(f"damaged at byte {tar.offset} of {size} ({error})", None)
            return
        if info is None:
            break
        tar.members = []  # type: ignore[attr-defined]  # or it grows with the archive
        end = info.offset_data + info.size
        if info.isreg() and end > size:
            yield _Cut(f"cut at byte {size}, inside {info.name}", info.name)
            return
        if info.isreg() and not info.issparse() and not info.name.rpartition("/")[2].startswith("."):
            yield _Member(info.name, info.offset_data, end, _text(file, info))
    # The module takes a damaged header for the end; an archive that is whole ends in zeros.
    file.seek(tar.offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK or block.strip(b"\0"):
        where = f"{'damaged' if block else 'cut'} at byte {tar.offset} of {size}"
        yield _Cut(f"{where}: no end mark of an archive", None)


def _text(file: Any, info: tarfile.TarInfo) -> bytes | None:
    if _key_and_ending(info.name)[1] not in _TEXT_ENDINGS or info.size > _LARGEST_TEXT:
        return None
    file.seek(info.offset_data)
    return file.read(info.size)
