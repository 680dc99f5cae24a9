"""Iteration: the same batches in order for any depth, threads and workers; processes that end when they should."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.data.iterate import prefetch
from mimo_jax.data.loader import PackedSource
from tests.data.prepared_fixture import make_prepared

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("iterate"), ("asr", "text", "tts"), (40, 0))


def take(iterator, count):
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found


def same(found, source, start, count):
    assert [step for step, _ in found] == list(range(start, start + count))
    for step, batch in found:
        expected = source.batch(step)
        assert batch.keys() == expected.keys()
        assert all(np.array_equal(batch[name], expected[name]) for name in expected)


@settings(max_examples=12)
@given(st.integers(0, 5000), st.integers(0, 6), st.integers(1, 9), st.booleans())
def test_threads_give_the_same_batches_from_any_step(folder, start, depth, count, placed):
    source = PackedSource(folder, "tts", 4, 128)
    place = (lambda batch: {name: array.copy() for name, array in batch.items()}) if placed else None
    same(take(prefetch(source.batch, start, depth, place=place), count), source, start, count)


def test_workers_give_the_same_batches_and_end_when_closed(folder):
    source = PackedSource(folder, "tts", 4, 128)
    others = set(children_of(os.getpid()))  # of tests before this one
    for workers, start in ((1, 0), (3, 41)):
        iterator = prefetch(source.batch, start, 4, workers, place=dict)
        found = [next(iterator) for _ in range(7)]
        same(found, source, start, 7)
        del found
        begin = time.monotonic()
        iterator.close()
        assert time.monotonic() - begin < 15
    end = time.monotonic() + 20  # a busy machine takes its time to end them
    while (left := workers_since(others)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


def test_errors_of_a_batch_reach_the_caller():
    def batch(step):
        if step == 5:
            raise ValueError("record 'x' is broken")
        return step

    for depth, place in ((0, None), (3, None), (3, int)):
        iterator = prefetch(batch, 3, depth, place=place)
        assert [next(iterator), next(iterator)] == [(3, 3), (4, 4)]
        with pytest.raises(ValueError, match="'x' is broken"):
            next(iterator)


def test_placing_happens_ahead_and_in_the_background():
    placed, threads = [], set()

    def place(step):
        threads.add(threading.current_thread())
        placed.append(step)
        return step

    iterator = prefetch(lambda step: step, 0, 3, place=place)
    assert next(iterator) == (0, 0)
    deadline = time.monotonic() + 10
    while len(placed) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert placed[:4] == [0, 1, 2, 3] and threading.current_thread() not in threads
    iterator.close()
    # One more may have been under way than there is room for.
    assert len(placed) <= 6


def test_closing_at_once_and_twice_does_not_hang():
    for depth in (0, 1, 4):
        iterator = prefetch(lambda step: step, 0, depth, place=lambda x: x)
        iterator.close()
        iterator = prefetch(lambda step: step, 0, depth, place=lambda x: x)
        next(iterator)
        iterator.close()
        iterator.close()


def test_without_grain_batches_are_made_as_needed(monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert take(prefetch(lambda step: step, 2, 3, place=str), 3) == [(2, "2"), (3, "3"), (4, "4")]
    assert "grain is not installed" in caplog.text


def children_of(parent):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(p) for p in found.split()]


def workers_since(others):
    return [
        process for process in children_of(os.getpid()) if process not in others and "spawn_main" in command_of(process)
    ]


def command_of(process):
    path = Path(f"/proc/{process}/cmdline")
    return path.read_bytes().replace(b"\0", b" ").decode() if path.exists() else ""


SCRIPT = """
    import os, sys, time
    import mimo_jax.data.loader as loader
    from mimo_jax.data.iterate import prefetch

    class Probe:
        def __init__(self, source):
            self.source = source
        def batch(self, step):
            heavy = [name for name in ("tensorflow", "seqio", "flax", "mimo_jax.training.loop") if name in sys.modules]
            return {"pid": os.getpid(), "heavy": heavy, "rows": self.source.batch(step)["text"].shape}

    if __name__ == "__main__":
        source = loader.PackedSource(sys.argv[1], "tts", 4, 128)
        batches = prefetch(Probe(source).batch, 0, 2, workers=2, place=dict)
        for _ in range(4):
            _, batch = next(batches)
            print(batch["pid"], batch["heavy"], batch["rows"], flush=True)
        time.sleep(600)
"""


def test_workers_import_little_and_do_not_outlive_a_killed_parent(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
    )
    try:
        lines = [process.stdout.readline().split(maxsplit=1) for _ in range(4)]
        workers = {int(pid) for pid, _ in lines}
        assert len(workers) == 2 and process.pid not in workers
        assert {rest.strip() for _, rest in lines} == {"[] (4, 128)"}
        # What a terminal or a cluster sends to all of them is the parent's to answer.
        for worker in workers:
            os.kill(worker, signal.SIGINT)
            os.kill(worker, signal.SIGTERM)
        time.sleep(0.5)
        assert all("spawn_main" in command_of(worker) for worker in workers)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 15
    while any(command_of(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(command_of(worker) for worker in workers)


def test_a_pickled_source_leaves_records_and_plans_where_they_are(folder):
    source = PackedSource(folder, "tts", 4, 128)
    before = len(pickle.dumps(source))
    for step in range(5):
        source.batch(step)
    assert len(pickle.dumps(source)) == before < 2_000_000
