import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.packing import Outline, Span, best_fit, plan_rows, split_at_borders


def used_positions(rows):
    return rows.counts.sum(axis=1).tolist()


@given(st.lists(st.integers(1, 50), max_size=60))
def test_nothing_is_lost_and_nothing_overflows(lengths):
    counts = np.asarray([[n // 2, n - n // 2] for n in lengths], np.int32).reshape(-1, 2)
    rows = plan_rows(counts, 50)
    found = [rows.pieces(r) for r in range(rows.num_rows)]
    assert sorted(piece.example for row in found for piece in row) == list(range(len(lengths)))
    assert used_positions(rows) == [sum(lengths[piece.example] for piece in row) for row in found]
    assert rows.counts.sum(axis=0).tolist() == counts.sum(axis=0).tolist() == list(rows.positions)
    assert all(0 < used <= 50 for used in used_positions(rows))
    # Two rows that fit into one would have been one.
    assert sum(used <= 25 for used in used_positions(rows)) <= 1


def naive_best_fit(lengths, capacity):
    """Item by item into the tightest row it fits."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [r for r in rooms if r >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_as_good_as_item_by_item(lengths):
    bins = best_fit(np.asarray(lengths), 64)
    assert bins.max() + 1 <= naive_best_fit(lengths, 64) + 1
    assert sorted(set(bins.tolist())) == list(range(bins.max() + 1))


def test_a_log_normal_million_fills_99_percent_quickly():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 1.0, 1_000_000), 1, 8192).astype(np.int64)
    start = time.monotonic()
    rows = plan_rows(np.stack([lengths, 0 * lengths], 1), 8192)
    assert time.monotonic() - start < 20
    assert rows.fill >= 0.99


def outline(borders, is_audio, loss=True):
    return Outline(borders, np.asarray(is_audio), np.broadcast_to(loss, len(is_audio)))


def test_overlong_examples_are_split_at_borders_or_listed():
    counts = np.asarray([[10, 0], [3, 20], [0, 40]])
    outlines = {1: outline((0, 3, 8, 13), np.arange(23) >= 3), 2: outline((0,), np.ones(40, bool))}

    rows = plan_rows(counts, 12, overlong="split", outline=outlines.__getitem__)
    pieces = sorted(piece for row in range(rows.num_rows) for piece in rows.pieces(row))
    assert pieces == [(0, None), (1, (0, 8, 0, 0)), (1, (8, 13, 0, 0)), (1, (13, 23, 0, 0))]
    assert list(rows.positions) == [13, 20]
    assert rows.dropped.tolist() == [2]
    assert plan_rows(counts, 12).dropped.tolist() == [1, 2]
    with pytest.raises(ValueError, match="outline"):
        plan_rows(counts, 12, overlong="split")
    with pytest.raises(ValueError, match="'cut': use one of quarantine, split, split_with_context"):
        plan_rows(counts, 12, overlong="cut")


def test_later_parts_repeat_the_prompt_or_what_came_before():
    loss = np.arange(40) >= 3
    chat = outline((0, 3, 13, 22, 31), np.arange(40) >= 30, loss)
    plain = outline((0, 3, 13, 16, 26), np.zeros(40, bool))
    rows = plan_rows(
        np.asarray([[30, 10], [40, 0]]), 20, overlong="split_with_context", outline=[chat, plain].__getitem__
    )
    pieces = sorted(piece for row in range(rows.num_rows) for piece in rows.pieces(row))
    assert pieces == [
        (0, (0, 13, 0, 0)),
        (0, (13, 22, 0, 3)),
        (0, (22, 31, 0, 3)),
        (0, (31, 40, 0, 3)),
        (1, (0, 16, 0, 0)),
        (1, (16, 26, 13, 16)),
        (1, (26, 40, 0, 0)),
    ]
    # Positions 30 .. 40 are audio; the repetitions are text.
    assert list(rows.positions) == [30 + 9 + 40 + 3, 10]
    assert used_positions(rows) == [
        sum(20 if span is None else span.length for _, span in rows.pieces(row)) for row in range(rows.num_rows)
    ]


@given(
    st.integers(1, 60),
    st.lists(st.integers(0, 59), max_size=8),
    st.integers(1, 60),
    st.integers(0, 20),
    st.integers(0, 30),
)
def test_split_covers_everything(length, borders, context, prompt, repeat):
    borders = sorted({0, *(b for b in borders if b < length)})
    prompt = max((b for b in borders if b <= prompt), default=0)
    parts = split_at_borders(length, borders, context, prompt, repeat)
    if parts is None:
        assert any(b - a > context for a, b in zip(borders, [*borders[1:], length], strict=True))
        return
    assert parts[0].start == 0 and parts[-1].stop == length
    assert all(a.stop == b.start and b.start in borders for a, b in zip(parts, parts[1:], strict=False))
    assert all(part.start < part.stop and part.length <= context for part in parts)
    for part in parts[1:]:
        repeated = part.context_stop - part.context_start
        assert 0 <= repeated <= repeat and part.context_stop <= part.start
        if repeated:
            assert part.context_start in borders and part.context_stop in (prompt, part.start)
    assert parts[0][2:] == (0, 0)
    assert split_at_borders(length, borders, context) == [Span(*p[:2]) for p in parts] or repeat


def test_plans_are_deterministic_and_differ_by_seed_and_block():
    counts = np.random.default_rng(1).integers(1, 30, (500, 2))
    rows = plan_rows(counts, 64, seed=3)
    np.testing.assert_array_equal(plan_rows(counts, 64, seed=3).example, rows.example)
    assert not np.array_equal(plan_rows(counts, 64, seed=4).example, rows.example)
    assert not np.array_equal(plan_rows(counts, 64, seed=3, block=1).example, rows.example)
