"""Plans as files: blocks, memory mapping, the same bytes whoever makes them."""

import json
import multiprocessing
import pickle

import numpy as np
import pytest

from mimo_jax.data import row_index
from mimo_jax.data.packing import Outline, plan_rows

LENGTHS = np.random.default_rng(1).integers(0, 40, (500, 2)).astype(np.int32)


def outline(example):
    n = int(LENGTHS[example].sum())
    return Outline(tuple(range(0, n, 5)), np.arange(n) >= LENGTHS[example, 0], np.ones(n, bool))


def plan(folder, block=row_index.BLOCK, overlong="split"):
    return row_index.planned(folder, LENGTHS, 64, overlong, outline, block)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_plan_reads_back_as_it_was_made(tmp_path):
    stored = plan(tmp_path / "plan")
    made = plan_rows(LENGTHS, 64, overlong="split", outline=outline)
    assert isinstance(stored.example.base, np.memmap)
    for name in ("offsets", "example", "counts", "cut", "spans", "dropped", "blocks"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(made, name))
    assert (stored.context, stored.positions, stored.fill) == (64, made.positions, made.fill)
    assert len(made.cut) > 3
    again = pickle.loads(pickle.dumps(stored))
    assert [again.pieces(r) for r in range(9)] == [made.pieces(r) for r in range(9)]
    assert len(pickle.dumps(stored)) < 500


@pytest.mark.parametrize("block", [7, 64, 499, 500])
def test_blocks_hold_every_example_once(tmp_path, block):
    rows = plan(tmp_path / "plan", block)
    found = [piece for row in range(rows.num_rows) for piece in rows.pieces(row)]
    parts = {}
    for example, span in found:
        parts.setdefault(example, []).append(tuple(span)[:2] if span else (0, int(LENGTHS[example].sum())))
    assert sorted(parts) == [e for e, n in enumerate(LENGTHS.sum(axis=1)) if n]
    for example, spans in parts.items():
        ordered = sorted(spans)
        assert ordered[0][0] == 0 and ordered[-1][1] == LENGTHS[example].sum()
        assert all(a[1] == b[0] for a, b in zip(ordered, ordered[1:], strict=False))
    assert rows.positions == tuple(rows.counts.sum(axis=0).tolist()) == tuple(LENGTHS.sum(axis=0).tolist())
    assert len(rows.blocks) == -(-500 // block)
    for first, last in zip(rows.blocks[:, 0], [*rows.blocks[1:, 0], rows.num_rows], strict=True):
        examples = [piece.example for row in range(first, last) for piece in rows.pieces(row)]
        assert max(examples) // block == min(examples) // block


def test_quarantined_examples_are_listed_by_their_number_in_all_blocks(tmp_path):
    rows = plan(tmp_path / "plan", 50, "quarantine")
    assert rows.dropped.tolist() == np.flatnonzero(LENGTHS.sum(axis=1) > 64).tolist()
    assert len(rows.cut) == 0


def test_the_same_bytes_from_any_number_of_processes_and_after_a_kill(tmp_path):
    plan(tmp_path / "alone", 100)
    partial = tmp_path / ".together.partial"
    partial.mkdir()
    (partial / "offsets.npy").write_bytes(b"cut off")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(plan, [(tmp_path / "together", 100)] * 3)
    assert bytes_of(tmp_path / "together") == bytes_of(tmp_path / "alone")
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["alone", "together"]
    assert not partial.exists()


def test_a_plan_of_other_examples_or_another_version_is_made_anew(tmp_path):
    folder = tmp_path / "plan"
    row_index.planned(folder, LENGTHS[:100], 64, "split", outline)
    assert plan(folder).positions == tuple(LENGTHS.sum(axis=0).tolist())
    before = bytes_of(folder)
    fields = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**fields, "version": 0}))
    (folder / "example.npy").write_bytes(b"")
    plan(folder)
    assert bytes_of(folder) == before


def test_no_examples_give_no_rows(tmp_path):
    rows = row_index.planned(tmp_path / "plan", LENGTHS[:0], 64, "split", outline)
    assert (rows.num_rows, rows.num_pieces, rows.fill, len(rows.dropped)) == (0, 0, 0.0, 0)
