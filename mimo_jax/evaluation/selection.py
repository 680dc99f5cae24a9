"""Which held-out items are measured: a stable choice that depends on ids alone."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mimo_jax.data.audio import AudioError, load_audio
from mimo_jax.data.manifest import Record, audio_path
from mimo_jax.objectives.transcripts import normalise_text

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Section:
    """A group of held-out records that gets its own figures, such as core/validation."""

    subset: str
    split: str

    @property
    def name(self) -> str:
        """``subset/split``."""
        return f"{self.subset}/{self.split}"


SECTIONS = tuple(
    Section(subset, split) for subset in ("core", "user", "wide") for split in ("validation", "test_voices")
)


def stable_order(record_id: str) -> bytes:
    """Sort key that mixes records of one kind well and never changes."""
    return hashlib.sha256(record_id.encode()).digest()


def select(records: Sequence[Record], section: Section, limit: int, need_text: bool = True) -> list[Record]:
    """Up to ``limit`` records of the section; with ``need_text`` those whose text holds a word."""
    mine = [r for r in records if r.subset == section.subset and r.split == section.split]
    mine = [r for r in mine if not need_text or normalise_text(r.text or "")]
    return sorted(mine, key=lambda r: stable_order(r.id))[:limit]


@dataclasses.dataclass(frozen=True)
class Item:
    """A record with its wave (mono float32 [samples] at the suite's rate)."""

    record: Record
    wave: np.ndarray

    @property
    def text(self) -> str:
        """What is said."""
        return self.record.text or ""


def load_items(records: Sequence[Record], root: str | os.PathLike[str], sample_rate: int) -> list[Item]:
    """Records with their audio; unusable files are left out and logged by reason."""
    items: list[Item] = []
    unusable: Counter[str] = Counter()
    for record in records:
        try:
            items.append(
                Item(record, load_audio(audio_path(record, Path(root)), sample_rate, record.start, record.end))
            )
        except AudioError as error:
            unusable[error.reason] += 1
    if unusable:
        logger.warning(
            "%s: %d held-out recordings left out: %s", root, unusable.total(), dict(sorted(unusable.items()))
        )
    return items


def digest(records: Iterable[Record], items: Iterable[Item]) -> str:
    """Hash of a manifest and of the waves that are measured: figures belong to both."""
    found = hashlib.sha256()
    for record in records:
        found.update(repr(record).encode())
    for item in items:
        found.update(item.wave.tobytes())
    return found.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A held-out utterance, what it should become, and example pairs with the same change."""

    kind: str  # "voice" or "rate"
    query: Record
    target: Record
    shots: tuple[tuple[Record, Record], ...]


def _change(source: Record, target: Record) -> tuple[str, str, str] | None:
    """(kind, from, to) of the one thing that differs, None if it is not one of the two kinds."""
    rates = str(source.attributes.get("rate")), str(target.attributes.get("rate"))
    if source.speaker != target.speaker and source.speaker and target.speaker and rates[0] == rates[1]:
        return "voice", "any", target.speaker  # any voice may be turned into the one the shots show
    if source.speaker == target.speaker and rates[0] != rates[1]:
        return "rate", rates[0], rates[1]
    return None


def _pairs(records: Sequence[Record]) -> list[tuple[tuple[str, str, str], Record, Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.parallel and record.text:
            groups.setdefault(record.parallel, []).append(record)
    found = []
    for group in groups.values():
        for source in group:
            for target in group:
                change = _change(source, target)
                if change:
                    found.append((change, source, target))
    return found


def conversions(records: Sequence[Record], section: Section, shots: int, limit: int) -> list[Conversion]:
    """Conversions whose change is shown by at least one training pair; shots are chosen by id, whatever the limit."""
    examples: dict[tuple[str, str, str], list[tuple[Record, Record]]] = {}
    for change, source, target in _pairs([r for r in records if r.split == "train"]):
        examples.setdefault(change, []).append((source, target))
    held_out = [r for r in records if r.subset == section.subset and r.split == section.split]
    out: list[Conversion] = []
    for change, query, target in sorted(_pairs(held_out), key=lambda x: stable_order(x[1].id + x[2].id)):
        if len(out) == limit:
            break
        if change in examples:
            ranked = sorted(examples[change], key=lambda pair: stable_order(query.id + pair[0].id + pair[1].id))
            out.append(Conversion(change[0], query, target, tuple(ranked[:shots])))
    return out
