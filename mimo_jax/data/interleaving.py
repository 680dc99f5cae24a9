"""Cutting an utterance into spans that are text and audio in turn (arXiv 2512.23808, section 4).

Spans end at words or at sentences. Where a recording has word times they say which frames a span has; otherwise its
share of the frames is its share of the characters. Spans cover all words and all frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

SpanKind = Literal["words", "sentences"]
# Scripts without spaces are cut between signs: Han, kana and their neighbours.
_NO_SPACES = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{_NO_SPACES}][^\w\s]*\s*|[^\s{_NO_SPACES}]+\s*|\s+")
_SENTENCE_END = re.compile(r"[.!?…。！？]['\"”’)\]」』]*\s*$")


def units(text: str) -> list[str]:
    """The words of a text with the spaces behind them; in scripts without spaces, its signs."""
    return _UNIT.findall(text)


def span_sizes(pieces: Sequence[str], kind: SpanKind, words_per_span: int) -> list[int]:
    """How many of the words each span has; a sentence without an end goes to the end of the text."""
    if kind == "words":
        return [min(words_per_span, len(pieces) - start) for start in range(0, len(pieces), words_per_span)]
    sizes = [0]
    for piece in pieces:
        sizes[-1] += 1
        if _SENTENCE_END.search(piece):
            sizes.append(0)
    return sizes if sizes[-1] else sizes[:-1]


def aligned_spans(
    text: str,
    frames: int,
    words: Sequence[Sequence[Any]] = (),
    seconds: float | None = None,
    *,
    kind: SpanKind = "words",
    words_per_span: int = 6,
) -> list[tuple[str, int, int]]:
    """Cut an utterance: (text, first frame, end frame) of each span.

    Args:
        text: what is said.
        frames: code frames of the recording.
        words: (word, start, end) in seconds, where known; used if they are as many as the text's words.
        seconds: length of the recording; word times are measured by it.
        kind: where spans end.
        words_per_span: of spans that end at words.
    """
    pieces = units(text)
    ends = np.cumsum(span_sizes(pieces, kind, words_per_span))
    spans = ["".join(pieces[start:end]).strip() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    if seconds and len(words) == len(pieces):
        # In the middle of the pause between two words.
        cuts = [(words[end - 1][2] + words[end][1]) / 2 / seconds for end in ends[:-1].tolist()] + [1.0]
    else:
        sizes = np.cumsum([len(span) + 1 for span in spans])
        cuts = [size / sizes[-1] for size in sizes.tolist()]
    borders = np.clip([0, *(round(frames * cut) for cut in cuts)], 0, frames)
    borders = np.maximum.accumulate(borders).tolist()
    return [(span, borders[i], borders[i + 1]) for i, span in enumerate(spans)]


def is_audio(count: int, share: float, first: bool) -> list[bool]:
    """Which of ``count`` spans are audio: a ``share`` of them, evenly spread; at one half they take turns.

    Args:
        count: of the spans.
        share: of audio spans, in 0..1.
        first: whether the turn begins with audio, where the share leaves the choice.
    """
    offset = 1.0 - share if first else 0.0
    marks = np.floor(np.arange(count + 1) * share + offset + 1e-9)
    return (np.diff(marks) > 0).tolist()
