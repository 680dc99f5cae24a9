"""Which kind of source lies in a place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mimo_jax.preparation.sources import lines, places
from mimo_jax.preparation.sources.base import InvalidItem, Source, SourceError, parse_json
from mimo_jax.preparation.sources.conversations import ENDINGS as CONVERSATION_ENDINGS
from mimo_jax.preparation.sources.conversations import ConversationsSource
from mimo_jax.preparation.sources.kaldi import WAV_SCP, KaldiSource
from mimo_jax.preparation.sources.manifest import ManifestSource, kind_of_file
from mimo_jax.preparation.sources.parquet import ENDINGS as TABLE_ENDINGS
from mimo_jax.preparation.sources.parquet import ParquetSource
from mimo_jax.preparation.sources.webdataset import PACKED_TARS, WebDatasetSource

KINDS: dict[str, Callable[..., Source]] = {
    "manifest": ManifestSource,
    "webdataset": WebDatasetSource,
    "parquet": ParquetSource,
    "kaldi": KaldiSource,
    "conversations": ConversationsSource,
}
_LOOKED_FOR = (
    "manifest.jsonl, texts.jsonl or conversations.jsonl (manifest), *.tar (webdataset), *.parquet or *.arrow "
    "(parquet), wav.scp (kaldi), *.json or *.jsonl (conversations)"
)


def open_source(path: str | os.PathLike[str], kind: str | None = None, **options: Any) -> Source:
    """The source in a folder, file or URL.

    Args:
        path: of the place; relative to the working folder.
        kind: a key of :data:`KINDS`; None looks at what is there.
        **options: of the kind's class; ``items_per_shard`` is one of all.

    Raises:
        SourceError: nothing is there, or things of several kinds, or an option that the kind does not have.
    """
    place = places.absolute(os.fspath(path))
    if kind is not None and kind not in KINDS:
        raise SourceError(f"unknown kind of source {kind!r}; known are {', '.join(KINDS)}")
    kind = kind or _guess(place)
    try:
        return KINDS[kind](place, **options)
    except TypeError as error:
        raise SourceError(f"{place}: a source of kind {kind!r} does not take this: {error}") from error


def _guess(place: str) -> str:
    if not places.is_folder(place):
        if not places.is_file(place):
            raise SourceError(f"{place}: no such file or folder")
        return _kind_of_file(place)
    for below in (False, True):
        names = places.names_in(place, below=below)
        kinds = sorted({kind for name in names if (kind := _sign(name))})
        if len(kinds) > 1:
            raise SourceError(
                f"{place}: more than one kind of source is there: {', '.join(kinds)}; say which: kind=..."
            )
        if kinds:
            return _alone(names) or kinds[0]
    # Such files lie beside data of every kind, so they tell nothing where there is anything else.
    if any(name.endswith(PACKED_TARS) for name in names):
        return "webdataset"
    if any(name.endswith(CONVERSATION_ENDINGS) for name in names):
        return "conversations"
    raise SourceError(f"{place}: no source there; looked for {_LOOKED_FOR}")


def _sign(name: str) -> str | None:
    """The kind of source that a file of a folder stands for."""
    folder, _, last = name.rpartition("/")
    if not folder and kind_of_file(last):
        return "manifest"
    if last.endswith(".tar"):
        return "webdataset"
    if last.endswith(TABLE_ENDINGS):
        return "parquet"
    return "kaldi" if not folder and last == WAV_SCP else None


def _alone(names: list[str]) -> str | None:
    """ "conversations" where a folder has such lines but no recordings that they could name: they name files."""
    return "conversations" if {kind_of_file(name) for name in names} - {None} == {"conversations"} else None


def _kind_of_file(place: str) -> str:
    name = place.rpartition("/")[2]
    if name.endswith(".scp"):
        return "kaldi"
    if name.endswith(PACKED_TARS):
        return "webdataset"
    if kind := _sign(f"below/{name}"):
        return kind
    if name.endswith(".json"):
        return "conversations"
    if kind_of_file(name) in ("manifest", "texts"):
        return "manifest"
    if name.endswith(".jsonl"):
        return "conversations" if _holds_conversations(place) else "manifest"
    raise SourceError(f"{place}: no source; looked for {_LOOKED_FOR}")


def _holds_conversations(place: str) -> bool:
    """Whether the first line that is JSON is a conversation."""
    for line in lines.read_lines(place):
        try:
            value = parse_json(line.raw)
        except InvalidItem:
            continue
        return isinstance(value, list) or (isinstance(value, dict) and ("turns" in value or "messages" in value))
    return False
