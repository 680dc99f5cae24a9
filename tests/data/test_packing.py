import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.packing import best_fit, load_rows, plan_rows, save_rows, split_at_borders


@given(st.lists(st.integers(1, 50), max_size=60))
def test_nothing_is_lost_and_nothing_overflows(lengths):
    counts = np.asarray([[n // 2, n - n // 2] for n in lengths], np.int32).reshape(-1, 2)
    rows = plan_rows(counts, 50)
    assert sorted(rows.example.tolist()) == list(range(len(lengths)))
    used = [rows.stop[a:b].sum() for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]
    assert all(0 < u <= 50 for u in used)
    text, audio = rows.row_counts()
    assert (text + audio).tolist() == used
    # Two rows that fit into one would have been one.
    assert sum(u <= 25 for u in used) <= 1


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


def test_overlong_examples_are_split_at_borders_or_listed():
    counts = np.asarray([[10, 0], [3, 20], [0, 40]])
    is_audio = np.arange(23) >= 3

    def read(example):
        return ((0, 3, 8, 13), is_audio) if example == 1 else ((0,), np.ones(40, bool))

    rows = plan_rows(counts, 12, overlong="split", read=read)
    pieces = sorted(zip(rows.example.tolist(), rows.start.tolist(), rows.stop.tolist(), strict=True))
    assert pieces == [(0, 0, 10), (1, 0, 8), (1, 8, 13), (1, 13, 23)]
    assert rows.text.sum() == 13 and rows.audio.sum() == 20
    assert rows.dropped.tolist() == [2]
    assert plan_rows(counts, 12).dropped.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read"):
        plan_rows(counts, 12, overlong="split")


@given(st.integers(1, 60), st.lists(st.integers(0, 59), max_size=8), st.integers(1, 60))
def test_split_covers_everything(length, borders, context):
    borders = sorted({b for b in borders if b < length})
    parts = split_at_borders(length, borders, context)
    if parts is None:
        return
    assert parts[0][0] == 0 and parts[-1][1] == length
    assert all(a[1] == b[0] and b[0] in borders for a, b in zip(parts, parts[1:], strict=False))
    assert all(stop - start <= context for start, stop in parts)


def test_plans_are_deterministic_and_read_back(tmp_path):
    counts = np.random.default_rng(1).integers(1, 30, (500, 2))
    rows = plan_rows(counts, 64, seed=3)
    save_rows(tmp_path / "a.npz", rows)
    save_rows(tmp_path / "b.npz", plan_rows(counts, 64, seed=3))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = load_rows(tmp_path / "a.npz")
    assert back.context == 64 and back.fill == rows.fill
    np.testing.assert_array_equal(back.example, rows.example)
    assert not np.array_equal(plan_rows(counts, 64, seed=4).example, rows.example)
