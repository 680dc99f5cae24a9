"""A run that is killed, stopped or finds its disk full goes on to the same final bits."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mimo_jax.cli import EXIT_PREEMPTED, UserError
from mimo_jax.training import loop
from mimo_jax.training.checkpoints import FOLDER, latest_step
from mimo_jax.training.metrics import read_metrics

STEPS = 60
SECONDS = 0.02  # of a step: a kill finds the run at any of them


@pytest.fixture(scope="module")
def start_job():
    """Starts `job` as a process that is forked from one with all imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.job"])

    def start(model_dir: Path, **options) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_job, args=(str(model_dir),), kwargs=options)
        process.start()
        return process

    return start


def _job(model_dir: str, disk_full_at: int | None = None) -> None:
    from tests.training.job import HostRows, job
    from tests.training.synthetic import Regression, Vectors

    class DiskFull(HostRows):
        def batch(self, step):
            if step == disk_full_at:  # a write of more fails as on a full disk
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            return super().batch(step)

    try:
        job(
            model_dir,
            STEPS,
            objective=Regression(),
            source=DiskFull(Vectors(), SECONDS),
            eval_sources={"heldout": Vectors(seed=1)},
            intervals=loop.Intervals(log=1, evaluate=4, evaluation_batches=1, checkpoint=2, prefetch=0),
        )
    except UserError as error:
        (Path(model_dir) / "error.txt").write_text(str(error))
        sys.exit(2)


@pytest.fixture(scope="module")
def whole(start_job, tmp_path_factory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start_job(folder))
    return folder


def finish(process, code: int = 0) -> None:
    process.join(240)
    assert process.exitcode == code, process.exitcode


def same_as_whole(folder: Path, whole: Path) -> None:
    """Same arrays to the bit; same figures but those of time and memory."""
    ours, theirs = np.load(folder / "final.npz"), np.load(whole / "final.npz")
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert figures(folder) == figures(whole)


def figures(folder: Path) -> list[dict]:
    varying = ("train/step_seconds", "speed/", "memory/", "checkpoint/")
    records = [{k: v for k, v in r.items() if not k.startswith(varying)} for r in read_metrics(folder)]
    return [record for record in records if any("/" in key for key in record)]


def wait_for_steps(process, folder: Path, more_than: int) -> None:
    """Until the run has gone past a step or ended."""
    metrics = folder / "metrics.jsonl"
    while process.is_alive():
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        if lines > more_than:
            return
        time.sleep(0.01)


def disturb(start_job, root: Path, whole: Path, signals: list[int], seed: int) -> int:
    """One attempt per signal, sent at a random moment of it, until each has hit; how many hit a save.

    A run that ends before its signal is compared, and another begins.
    """
    chance, hit_saves, number = random.Random(seed), 0, 0
    signals = list(signals)
    while signals:
        folder = root / str(number)
        folder.mkdir(exist_ok=True)
        process = start_job(folder)
        # Half of them at any moment of the start, half of them once steps and saves follow each other.
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0.0, 2.0))
        else:
            wait_for_steps(process, folder, len(read_whole_lines(folder)) + 1)
            time.sleep(chance.uniform(0.0, 0.4))
        if process.is_alive():
            os.kill(process.pid, signals[0])
        process.join(240)
        if process.exitcode == 0:
            same_as_whole(folder, whole)
            number += 1
            continue
        assert process.exitcode in (-signals[0], EXIT_PREEMPTED)
        signals.pop(0)
        hit_saves += bool(list((folder / FOLDER).glob("*.orbax-checkpoint-tmp*")))
    finish(start_job(folder))
    same_as_whole(folder, whole)
    return hit_saves


def read_whole_lines(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_killed_three_times(start_job, whole, tmp_path):
    disturb(start_job, tmp_path, whole, [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], seed=0)


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments(start_job, whole, tmp_path):
    assert disturb(start_job, tmp_path, whole, [signal.SIGKILL] * 20, seed=1) > 2


def test_stopped_during_a_save(start_job, whole, tmp_path):
    process = start_job(tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / FOLDER).glob("*.orbax-checkpoint-tmp*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGTERM)
    finish(process, EXIT_PREEMPTED)
    assert (latest_step(tmp_path) or 0) > 0
    finish(start_job(tmp_path))
    same_as_whole(tmp_path, whole)


def test_disk_full_during_a_save(start_job, whole, tmp_path):
    finish(start_job(tmp_path, disk_full_at=20), code=2)
    message = (tmp_path / "error.txt").read_text()
    assert "could not be written" in message and "is kept" in message and "Free space" in message
    assert 10 < latest_step(tmp_path) <= 22
    finish(start_job(tmp_path))
    same_as_whole(tmp_path, whole)


def test_flipped_bytes_of_the_newest_checkpoint(start_job, whole, tmp_path):
    process = start_job(tmp_path)
    wait_for_steps(process, tmp_path, 20)
    os.kill(process.pid, signal.SIGTERM)
    finish(process, EXIT_PREEMPTED)
    newest = latest_step(tmp_path)
    largest = max((tmp_path / FOLDER / str(newest)).rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))
    finish(start_job(tmp_path))
    assert (tmp_path / f"damaged_checkpoint_{newest}").is_dir()
    same_as_whole(tmp_path, whole)
