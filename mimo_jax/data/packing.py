"""Packing planned ahead: from example lengths alone, which examples fill which row of the context length.

Best fit decreasing, in bulk: all examples of one length that go into rows with the same room are placed by one numpy
operation, so a million examples take about a second. `row_index` keeps plans as files.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from mimo_jax.data.permutation import key_of

Overlong = Literal["quarantine", "split", "split_with_context"]


class Span(NamedTuple):
    """A part of an example: positions ``start .. stop``, after a repetition of ``context_start .. context_stop``."""

    start: int
    stop: int
    context_start: int = 0
    context_stop: int = 0

    @property
    def length(self) -> int:
        """Positions of the part, repetition included."""
        return self.stop - self.start + self.context_stop - self.context_start


class Piece(NamedTuple):
    """What lies in a row: an example by its number in its task's records, whole (None) or a part of it."""

    example: int
    span: Span | None


@dataclasses.dataclass(frozen=True)
class Outline:
    """What splitting needs to know of an example of n positions.

    Attributes:
        borders: starts of its segments.
        is_audio: bool [n].
        loss: bool [n], the position is a target.
    """

    borders: Sequence[int]
    is_audio: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
    """A packing plan: row r holds the pieces ``offsets[r] .. offsets[r + 1]``. Arrays may be memory-mapped.

    Attributes:
        context: positions of a row.
        offsets: int64 [R + 1].
        example: int32 [P], number of the piece's example, counted from its block's first example.
        counts: int32 [R, 2], text and audio positions of each row.
        cut: int64 [K], ascending: the pieces that are parts of examples. All others are whole.
        spans: int32 [K, 4], the `Span` of each of these.
        dropped: int64 [D], examples that were too long for the context and could not or should not be split.
        blocks: int64 [B, 2], first row and first example of each block that was planned by itself.
        positions: text and audio positions of all rows.
    """

    context: int
    offsets: np.ndarray
    example: np.ndarray
    counts: np.ndarray
    cut: np.ndarray
    spans: np.ndarray
    dropped: np.ndarray
    blocks: np.ndarray
    positions: tuple[int, int]

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.offsets) - 1

    @property
    def num_pieces(self) -> int:
        """P."""
        return len(self.example)

    @property
    def fill(self) -> float:
        """Share of the rows' positions that hold an example."""
        return sum(self.positions) / max(1, self.num_rows * self.context)

    def pieces(self, row: int) -> list[Piece]:
        """The pieces of a row, in their order."""
        first, last = self.offsets[row : row + 2].tolist()
        block = int(np.searchsorted(self.blocks[:, 0], row, side="right")) - 1
        examples = (self.example[first:last].astype(np.int64) + self.blocks[block, 1]).tolist()
        if not len(self.cut):
            return [Piece(number, None) for number in examples]
        from_cut, to_cut = np.searchsorted(self.cut, (first, last)).tolist()
        spans = {int(self.cut[i]) - first: Span(*self.spans[i].tolist()) for i in range(from_cut, to_cut)}
        return [Piece(number, spans.get(place)) for place, number in enumerate(examples)]


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Bin of each item, int64 [N], by best fit decreasing; every length must be in 1 .. capacity.

    Items of one length are taken in their order, so shuffle before if neighbours should not end up together.
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"lengths {lengths.min()}..{lengths.max()} do not fit the capacity {capacity}")
    order = np.argsort(-lengths, kind="stable")
    distinct, counts = np.unique(lengths, return_counts=True)
    bins = np.empty(len(lengths), np.int64)
    by_room: dict[int, list[np.ndarray]] = defaultdict(list)  # room left -> bins with that room
    used = 0
    position = 0
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        items = order[position : position + count]
        position += count
        for room in sorted(r for r in by_room if r >= length):
            if not len(items):
                break
            open_bins = np.concatenate(by_room.pop(room))
            items, rest = _fill(items, open_bins, room // length, bins)
            _keep(by_room, open_bins, room, length, rest)
        if len(items):
            per_bin = capacity // length
            new = used + np.arange(-(-len(items) // per_bin))
            used += len(new)
            items, rest = _fill(items, new, per_bin, bins)
            _keep(by_room, new, capacity, length, rest)
    return bins


def _fill(items: np.ndarray, open_bins: np.ndarray, per_bin: int, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put ``per_bin`` items into each bin in turn; returns (items left over, items put into each bin)."""
    here = min(len(items), per_bin * len(open_bins))
    bins[items[:here]] = np.repeat(open_bins, per_bin)[:here]
    taken = np.clip(here - per_bin * np.arange(len(open_bins)), 0, per_bin)
    return items[here:], taken


def _keep(
    by_room: dict[int, list[np.ndarray]], open_bins: np.ndarray, room: int, length: int, taken: np.ndarray
) -> None:
    for amount in np.unique(taken).tolist():
        if room - amount * length > 0:
            by_room[room - amount * length].append(open_bins[taken == amount])


def split_at_borders(
    length: int, borders: Sequence[int], context: int, prompt: int = 0, repeat: int = 0
) -> list[Span] | None:
    """Cut ``length`` positions into parts of at most ``context`` that begin at borders.

    Args:
        length: positions of the example.
        borders: starts of its segments.
        context: positions of a row.
        prompt: end of what later parts repeat if there is room for it, for instance a chat's prompt.
        repeat: positions that may be repeated at the beginning of a later part: the prompt if it fits and lies before
            the cut, otherwise as many whole segments before the cut as fit. Less where the part's first segment needs
            the room.

    Returns:
        The parts; None where one segment alone is longer than the context.
    """
    cuts = [*sorted({0, *borders}), length]
    parts: list[Span] = []
    start, repeated = 0, (0, 0)
    for here, after in zip(cuts, cuts[1:], strict=False):
        if after - here > context:
            return None
        if after - start > context - (repeated[1] - repeated[0]):
            parts.append(Span(start, here, *repeated))
            start, repeated = here, _repeated(cuts, here, prompt, min(repeat, context - (after - here)))
    return [*parts, Span(start, length, *repeated)]


def _repeated(cuts: Sequence[int], here: int, prompt: int, room: int) -> tuple[int, int]:
    if 0 < prompt <= min(here, room):
        return 0, prompt
    first = min(cut for cut in cuts if here - room <= cut <= here)
    return (first, here) if first < here else (0, 0)


def _spans(outline: Outline, length: int, context: int, overlong: Overlong) -> list[Span] | None:
    borders = outline.borders
    if overlong == "split":
        return split_at_borders(length, borders, context)
    ends = [*borders[1:], length]
    with_loss = [start for start, end in zip(borders, ends, strict=True) if outline.loss[start:end].any()]
    # A quarter, so that at least three quarters of every row are new.
    return split_at_borders(length, borders, context, prompt=with_loss[0] if with_loss else 0, repeat=context // 4)


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """Columns of one entry per piece; the first ones are whole, the last ``len(spans)`` are parts."""

    example: np.ndarray
    counts: np.ndarray
    spans: np.ndarray
    dropped: np.ndarray


def _pieces(counts: np.ndarray, context: int, overlong: Overlong, outline: Callable[[int], Outline] | None) -> _Pieces:
    totals = counts.sum(axis=1)
    whole = np.flatnonzero((totals <= context) & (totals > 0))
    examples: list[int] = []
    part_counts: list[tuple[int, int]] = []
    spans: list[Span] = []
    dropped: list[int] = []
    for example in np.flatnonzero(totals > context).tolist():
        found = outline(example) if outline and overlong != "quarantine" else None
        parts = _spans(found, int(totals[example]), context, overlong) if found else None
        if found is None or parts is None:
            dropped.append(example)
            continue
        for span in parts:
            audio = found.is_audio[span.start : span.stop].sum()
            audio += found.is_audio[span.context_start : span.context_stop].sum()
            part_counts.append((span.length - int(audio), int(audio)))
        examples += [example] * len(parts)
        spans += parts
    return _Pieces(
        example=np.concatenate([whole, np.asarray(examples, np.int64)]),
        counts=np.concatenate([counts[whole], np.asarray(part_counts, np.int64).reshape(-1, 2)]),
        spans=np.asarray(spans, np.int32).reshape(-1, 4),
        dropped=np.asarray(dropped, np.int64),
    )


def plan_rows(
    counts: np.ndarray,
    context: int,
    *,
    seed: int = 0,
    block: int = 0,
    overlong: Overlong = "quarantine",
    outline: Callable[[int], Outline] | None = None,
) -> Rows:
    """Plan the rows of one block of examples.

    Args:
        counts: int [N, 2], text and audio positions of each example.
        context: positions of a row.
        seed: shuffles the examples of equal length, so that neighbours in the records do not share rows.
        block: number of the block among those of its task, which differ in their shuffles.
        overlong: an example longer than the context is left out and listed ("quarantine"), or cut at segment borders
            ("split"), later parts beginning with a repetition of the context without loss ("split_with_context", see
            `split_at_borders`). One with a segment that is longer than the context is always left out and listed.
        outline: for splitting, example number -> what splitting needs to know of it.

    Raises:
        ValueError: a context below 1, an unknown way with overlong examples, or splitting without ``outline``.
    """
    if context < 1:
        raise ValueError(f"context {context} must be at least 1")
    if overlong not in get_args(Overlong):
        raise ValueError(f"overlong = {overlong!r}: use one of {', '.join(get_args(Overlong))}")
    if overlong != "quarantine" and outline is None:
        raise ValueError("splitting needs the segment borders: pass outline")
    counts = np.asarray(counts, np.int64).reshape(-1, 2)
    pieces = _pieces(counts, context, overlong, outline)
    # The first block's key has no number in it: most data is one block, whose plan then has the same key as ever.
    key = key_of(seed, context, block) if block else key_of(seed, context)
    shuffle = np.random.Generator(np.random.Philox(key)).permutation(len(pieces.example))
    bins = np.empty(len(shuffle), np.int64)
    bins[shuffle] = best_fit(pieces.counts.sum(axis=1)[shuffle], context)
    return _in_rows(pieces, bins, context)


def _in_rows(pieces: _Pieces, bins: np.ndarray, context: int) -> Rows:
    order = np.argsort(bins, kind="stable")
    num_rows = int(bins.max()) + 1 if len(bins) else 0
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=num_rows))]).astype(np.int64)
    ends = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(pieces.counts[order], axis=0)])
    row_counts = np.diff(ends[offsets], axis=0)
    part = order - (len(order) - len(pieces.spans))  # number of the piece among the parts, negative for a whole one
    return Rows(
        context=context,
        offsets=offsets,
        example=pieces.example[order].astype(np.int32),
        counts=row_counts.astype(np.int32),
        cut=np.flatnonzero(part >= 0),
        spans=pieces.spans[part[part >= 0]],
        dropped=pieces.dropped,
        blocks=np.zeros((1, 2), np.int64),
        positions=(int(row_counts[:, 0].sum()), int(row_counts[:, 1].sum())),
    )
