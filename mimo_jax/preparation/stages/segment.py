"""Long recordings to segments of speech, cut at pauses and where the speaker changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Dropped, Element, Outcome, Stage
from mimo_jax.preparation.stages.plugins import Detector, Span, recording, setup_plugin, with_scores
from mimo_jax.preparation.stages.voice import Silero, merge_spans

_DECIMALS = 3
_QUIET_SECONDS = 0.05
# What describes a whole recording, or another record's relation to it, and would be wrong of a part.
_OF_THE_WHOLE: dict[str, Any] = {
    "caption": None,
    "instruction": None,
    "qa": [],
    "parallel": None,
    "clean": None,
    "reply": None,
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a recording: start and end in seconds of it, and who speaks, where that is known."""

    start: float
    end: float
    speaker: str | None = None


@dataclasses.dataclass(frozen=True)
class Segment(Stage):
    """Cuts the silence off short recordings, and long ones into segments.

    A recording whose speech fits into ``max_seconds`` keeps its id and text; ``start`` and ``end`` move. A longer one
    becomes segments ``<id>@<start>-<end>`` (seconds of the file), with ``document`` = the recording's id and the
    segment's place. Cuts lie in the last pause of at least ``min_silence`` that fits, else in the longest one, and only
    where there is none at the quietest moment. The text of a segment is that of the ``words`` in it; without word times
    a segment has no text.

    Where ``attributes["turns"]`` (of `diarise.Diarise`) names several speakers, recordings are also cut between them
    and segments are of the speaker ``<id>/<name>``; a short recording with a text but no word times stays whole, to
    keep its text. Recordings that are part of a conversation are never cut: it names them by id.

    Scores: ``speech_share``, speech over length. Without speech: filtered as ``no_speech``; pieces below
    ``min_seconds``: filtered as ``too_short_segment``.

    Attributes:
        detector: voice activity plug-in; see `plugins.Detector`.
        max_seconds: upper limit of a segment.
        min_seconds: lower limit of a segment that was cut; a recording that stays whole may be shorter.
        pad: seconds of the surroundings to keep at both ends, where they belong to no other segment.
        min_silence: seconds from which a pause is a good place to cut.
        max_silence: seconds from which a pause always ends a segment.
        trim: whether a recording that stays whole loses the silence at its ends; it does where it is too long with it.
    """

    name: ClassVar[str] = "segment"
    detector: Detector = Silero()
    max_seconds: float = 30.0
    min_seconds: float = 1.0
    pad: float = 0.1
    min_silence: float = 0.3
    max_silence: float = 2.0
    trim: bool = True

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.pad < self.max_seconds or self.min_seconds > self.max_seconds:
            raise ValueError(
                f"Segment: max_seconds={self.max_seconds:g} must be more than twice pad={self.pad:g} and at least "
                f"min_seconds={self.min_seconds:g}"
            )

    def setup(self) -> None:
        setup_plugin(self.detector)

    def process(self, element: Element) -> Iterator[Outcome]:
        record, wave = recording(element)
        # A word that an alignment names is speech, whatever the detector hears: no cut goes through it.
        spoken = [*self.detector(wave, element.sample_rate), *((word[1], word[2]) for word in record.words)]
        spans = merge_spans((max(0.0, start), min(end, element.seconds)) for start, end in spoken if start < end)
        if not spans:
            yield Dropped(record.id, "filtered", "no_speech", f"{record.audio}: none in {element.seconds:.2f} s")
        elif self._stays_whole(record, spans, element.seconds):
            yield self._whole(element, record, spans)
        else:
            yield from self._cut(element, record, spans)

    def _stays_whole(self, record: Record, spans: Sequence[Span], seconds: float) -> bool:
        if record.part_of is not None:
            return True
        length = min(seconds, spans[-1][1] - spans[0][0] + 2 * self.pad)
        several = len({turn[0] for turn in record.attributes.get("turns", ())}) > 1
        return length <= self.max_seconds and (not several or (record.text is not None and not record.words))

    def _whole(self, element: Element, record: Record, spans: Sequence[Span]) -> Element:
        piece = Piece(0.0, element.seconds)
        if not self.trim and (piece.end <= self.max_seconds or record.part_of is not None):
            return dataclasses.replace(element, record=with_scores(record, _speech_share(piece, spans)))
        piece = _rounded(Piece(max(0.0, spans[0][0] - self.pad), min(piece.end, spans[-1][1] + self.pad)))
        words = [word for number in range(len(record.words)) for word in _moved(record.words[number], piece)]
        changes: dict[str, Any] = {"words": words}
        if turns := record.attributes.get("turns"):
            changes["attributes"] = {**record.attributes, "turns": [moved for t in turns for moved in _moved(t, piece)]}
        return _part(element, with_scores(record, _speech_share(piece, spans)), piece, changes)

    def _cut(self, element: Element, record: Record, spans: Sequence[Span]) -> Iterator[Outcome]:
        texts = _WordTexts(record)
        index = 0
        for piece in self._pieces(element, record, spans):
            start = (record.start or 0.0) + piece.start
            name = f"{record.id}@{start:.{_DECIMALS}f}-{start + piece.end - piece.start:.{_DECIMALS}f}"
            if piece.end - piece.start < self.min_seconds:
                detail = f"{piece.end - piece.start:.3f} s, the limit is {self.min_seconds:g} s"
                yield Dropped(name, "filtered", "too_short_segment", detail)
                continue
            words, text = texts.of(piece)
            kept = {"attributes": {k: v for k, v in record.attributes.items() if k != "turns"}}
            scores = {k: v for k, v in record.scores.items() if k != "speakers"} | _speech_share(piece, spans)
            changes = {
                **_OF_THE_WHOLE,
                **kept,
                "id": name,
                "text": text,
                "words": words,
                "speaker": f"{record.id}/{piece.speaker}" if piece.speaker else record.speaker,
                "document": {"id": record.id, "index": index},
            }
            yield _part(element, dataclasses.replace(record, scores=scores), piece, changes)
            index += 1

    def _pieces(self, element: Element, record: Record, spans: Sequence[Span]) -> list[Piece]:
        """Pieces in their order, padded into the silence around them."""
        _, wave = recording(element)
        bare: list[Piece] = []
        for section in _sections(record.attributes.get("turns", ()), element.seconds):
            inside = [(max(a, section.start), min(b, section.end)) for a, b in spans]
            inside = [span for span in inside if span[0] < span[1]]
            bare += [Piece(a, b, section.speaker) for a, b in self._groups(inside, wave, element.sample_rate)]
        edges = [0.0, *((a.end + b.start) / 2 for a, b in zip(bare, bare[1:], strict=False)), element.seconds]
        return [
            _rounded(Piece(max(p.start - self.pad, low), min(p.end + self.pad, high), p.speaker))
            for p, low, high in zip(bare, edges, edges[1:], strict=False)
        ]

    def _groups(self, spans: Sequence[Span], wave: np.ndarray, rate: int) -> list[Span]:
        """Neighbouring spans together, as many as fit."""
        limit = self.max_seconds - 2 * self.pad
        groups: list[Span] = []
        left = list(reversed(spans))
        while left:
            start, end = left[-1]
            if end - start > limit:
                cut = quietest(wave, rate, start + limit / 2, start + limit)
                left[-1] = (cut, end)
                groups.append((start, cut))
                continue
            fitting = [left.pop()]
            while left and left[-1][0] - fitting[-1][1] <= self.max_silence and left[-1][1] - start <= limit:
                fitting.append(left.pop())
            if left and left[-1][0] - fitting[-1][1] <= self.max_silence:
                kept = self._best_cut([*fitting, left[-1]])
                left.extend(reversed(fitting[kept:]))
                fitting = fitting[:kept]
            groups.append((start, fitting[-1][1]))
        return groups

    def _best_cut(self, spans: Sequence[Span]) -> int:
        """How many spans to keep before the cut: up to the last good pause, else the longest one."""
        gaps = [b[0] - a[1] for a, b in zip(spans, spans[1:], strict=False)]
        good = [number for number, gap in enumerate(gaps) if gap >= self.min_silence]
        return (good[-1] if good else int(np.argmax(gaps))) + 1


def quietest(wave: np.ndarray, sample_rate: int, low: float, high: float) -> float:
    """The second between ``low`` and ``high`` around which 50 ms of float32 ``[samples]`` have the least power."""
    first, width = int(low * sample_rate), max(1, int(_QUIET_SECONDS * sample_rate))
    sums = np.cumsum(np.square(wave[first : int(high * sample_rate)], dtype=np.float64))
    power = sums[width:] - sums[:-width]
    return (first + int(np.argmin(power)) + width // 2) / sample_rate if len(power) else high


def _sections(turns: Sequence[Sequence[Any]], seconds: float) -> list[Piece]:
    """The whole recording as turns of one speaker each; a change lies half-way between two turns."""
    sections: list[Piece] = []
    for speaker, start, end in sorted(turns, key=lambda turn: turn[1]):
        if sections and sections[-1].speaker == speaker:
            sections[-1] = dataclasses.replace(sections[-1], end=max(end, sections[-1].end))
            continue
        change = 0.0
        if sections:
            change = min(seconds, max(sections[-1].start, (sections[-1].end + start) / 2))
            sections[-1] = dataclasses.replace(sections[-1], end=change)
        sections.append(Piece(change, end, str(speaker)))
    if not sections:
        return [Piece(0.0, seconds)]
    return [*sections[:-1], dataclasses.replace(sections[-1], end=seconds)]


def _rounded(piece: Piece) -> Piece:
    return dataclasses.replace(piece, start=round(piece.start, _DECIMALS), end=round(piece.end, _DECIMALS))


def _speech_share(piece: Piece, spans: Sequence[Span]) -> dict[str, float]:
    speech = sum(max(0.0, min(end, piece.end) - max(start, piece.start)) for start, end in spans)
    return {"speech_share": min(1.0, round(speech / (piece.end - piece.start), 6))}


def _moved(item: Sequence[Any], piece: Piece) -> list[list[Any]]:
    """[label, start, end] in seconds of the piece; none where it lies outside."""
    label, start, end = item
    start, end = max(start, piece.start), min(end, piece.end)
    inside = start < end or piece.start <= start == end
    return [[label, round(start - piece.start, _DECIMALS), round(end - piece.start, _DECIMALS)]] if inside else []


def _part(element: Element, record: Record, piece: Piece, changes: dict[str, Any]) -> Element:
    """The element of a part of the wave."""
    _, wave = recording(element)
    part = wave[round(piece.start * element.sample_rate) : round(piece.end * element.sample_rate)]
    offset = record.start or 0.0
    made = dataclasses.replace(
        record,
        start=round(offset + piece.start, _DECIMALS),
        end=round(offset + piece.end, _DECIMALS),
        duration=round(len(part) / element.sample_rate, 6),
        **changes,
    )
    return dataclasses.replace(element, record=made, wave=part)


class _WordTexts:
    """Which words, and which part of the written text, belong to a piece."""

    def __init__(self, record: Record):
        self._words = record.words
        self._text = record.text or ""
        self._starts = _word_starts(self._text, [word[0] for word in record.words])

    def of(self, piece: Piece) -> tuple[list[list[Any]], str | None]:
        """(words in seconds of the piece, text). A word belongs where its middle is."""
        chosen = [i for i, (_, a, b) in enumerate(self._words) if piece.start <= (a + b) / 2 < piece.end]
        words = [moved for i in chosen for moved in _moved(self._words[i], piece)]
        if not chosen:
            return [], None
        if self._starts and chosen == list(range(chosen[0], chosen[-1] + 1)):
            text = self._text[self._starts[chosen[0]] : self._starts[chosen[-1] + 1]]
        else:
            text = " ".join(self._words[i][0] for i in chosen)
        return words, text.strip() or None


def _word_starts(text: str, words: Sequence[str]) -> list[int]:
    """Where in the text each word begins, opening marks included, and its end; empty if the two do not agree."""
    starts: list[int] = []
    at = 0
    for word in words:
        found = text.find(word, at)
        if found < 0 or not word:
            return []
        # Marks between two words belong to the first, unless they stand behind the space.
        starts.append(_after_space(text, at, found))
        at = found + len(word)
    return [0, *starts[1:], len(text)] if starts else []


def _after_space(text: str, low: int, high: int) -> int:
    """Place behind the last space within ``low`` and ``high``; ``high`` if there is none."""
    place = next((i for i in range(high - 1, low - 1, -1) if text[i].isspace()), None)
    return high if place is None else place + 1
