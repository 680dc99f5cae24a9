"""Packing planned ahead: from example lengths alone, which examples fill which row of the context length.

The plan is a small index beside the records. Best fit decreasing, in bulk: all examples of one length that go into rows
with the same room are placed by one numpy operation, so a million examples take about a second.
"""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from mimo_jax.data.permutation import key_of
from mimo_jax.files import replacing

Overlong = Literal["split", "quarantine"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """A packing plan: row r holds the pieces ``offsets[r] .. offsets[r + 1]``.

    Attributes:
        context: positions of a row.
        offsets: int64 [R + 1].
        example: int64 [P], number of the piece's example in its task's records.
        start, stop: int32 [P], the part of the example; all of it unless it was split.
        text, audio: int32 [P], text and audio positions of the piece.
        dropped: int64 [D], examples that were too long for the context and could not or should not be split.
    """

    context: int
    offsets: np.ndarray
    example: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    text: np.ndarray
    audio: np.ndarray
    dropped: np.ndarray

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """Share of the rows' positions that hold an example."""
        return float((self.stop - self.start).sum() / max(1, self.num_rows * self.context))

    def row_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """(text positions, audio positions) of each row, int64 [R] each."""
        ends = [np.concatenate([[0], np.cumsum(a, dtype=np.int64)]) for a in (self.text, self.audio)]
        text, audio = (np.diff(e[self.offsets]) for e in ends)
        return text, audio


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


def split_at_borders(length: int, borders: Sequence[int], context: int) -> list[tuple[int, int]] | None:
    """Cut ``length`` positions into parts of at most ``context`` that begin at borders.

    None where one segment alone is longer.
    """
    cuts = [*sorted({0, *borders}), length]
    parts: list[tuple[int, int]] = []
    start = 0
    for here, after in zip(cuts, cuts[1:], strict=False):
        if after - here > context:
            return None
        if after - start > context:
            parts.append((start, here))
            start = here
    return [*parts, (start, length)]


@dataclasses.dataclass(frozen=True)
class _Pieces:
    example: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    text: np.ndarray
    audio: np.ndarray
    dropped: np.ndarray


def _pieces(
    counts: np.ndarray, context: int, overlong: Overlong, read: Callable[[int], tuple[Sequence[int], np.ndarray]]
) -> _Pieces:
    totals = counts.sum(axis=1)
    whole = np.flatnonzero((totals <= context) & (totals > 0))
    rows = [np.stack([whole, 0 * whole, totals[whole], counts[whole, 0], counts[whole, 1]], axis=1)]
    dropped: list[int] = []
    for example in np.flatnonzero(totals > context).tolist():
        parts = None
        if overlong == "split":
            borders, is_audio = read(example)
            parts = split_at_borders(int(totals[example]), borders, context)
        if parts is None:
            dropped.append(example)
            continue
        for start, stop in parts:
            audio = int(is_audio[start:stop].sum())
            rows.append(np.asarray([[example, start, stop, stop - start - audio, audio]]))
    table = np.concatenate(rows).astype(np.int64)
    columns = zip(("example", "start", "stop", "text", "audio"), table.T, strict=True)
    return _Pieces(dropped=np.asarray(dropped, np.int64), **dict(columns))


def plan_rows(
    counts: np.ndarray,
    context: int,
    *,
    seed: int = 0,
    overlong: Overlong = "quarantine",
    read: Callable[[int], tuple[Sequence[int], np.ndarray]] | None = None,
) -> Rows:
    """Plan the rows of one task and split.

    Args:
        counts: int [N, 2], text and audio positions of each example.
        context: positions of a row.
        seed: shuffles the examples of equal length, so that neighbours in the records do not share rows.
        overlong: an example longer than the context is split at segment borders, or left out and listed.
        read: for splitting, example number -> (segment borders, bool [n] audio positions).

    Raises:
        ValueError: a context below 1, or splitting without ``read``.
    """
    if context < 1:
        raise ValueError(f"context {context} must be at least 1")
    if overlong == "split" and read is None:
        raise ValueError("splitting needs the segment borders: pass read")
    counts = np.asarray(counts, np.int64).reshape(-1, 2)
    pieces = _pieces(counts, context, overlong, read or (lambda example: ((), np.zeros(0, bool))))
    shuffle = np.random.Generator(np.random.Philox(key_of(seed, context))).permutation(len(pieces.example))
    bins = np.empty(len(shuffle), np.int64)
    bins[shuffle] = best_fit((pieces.stop - pieces.start)[shuffle], context)
    order = np.argsort(bins, kind="stable")
    num_rows = int(bins.max()) + 1 if len(bins) else 0
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=num_rows))]).astype(np.int64)
    int32 = {name: getattr(pieces, name)[order].astype(np.int32) for name in ("start", "stop", "text", "audio")}
    return Rows(context=context, offsets=offsets, example=pieces.example[order], dropped=pieces.dropped, **int32)


def save_rows(path: str | os.PathLike[str], rows: Rows) -> None:
    """Write the plan as npz, atomically; equal plans give equal bytes."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **dataclasses.asdict(rows))


def load_rows(path: str | os.PathLike[str]) -> Rows:
    """Read a plan written by `save_rows`."""
    with np.load(path) as data:
        return Rows(**{name: data[name] for name in data if name != "context"}, context=int(data["context"]))
