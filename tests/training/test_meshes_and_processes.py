"""A checkpoint goes on with other devices, other meshes, another number of processes or rows."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mimo_jax.cli import EXIT_PREEMPTED
from mimo_jax.training.checkpoints import latest_step, load_meta
from mimo_jax.training.metrics import read_metrics
from mimo_jax.training.schedule import Budget
from tests.training.job import FirstDevices, HostRows, job
from tests.training.synthetic import Regression, Vectors
from tests.xla import xla_flags

STEPS = 12
ARGUMENTS = {"objective": Regression(), "eval_sources": {"heldout": HostRows(Vectors(seed=1))}}


class StopAt(Vectors):
    """A source that asks for a stop (as a preemption does) behind a step."""

    stop = 0

    def token_counts(self, step):
        if step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().token_counts(step)


def run(folder: Path, hardware: FirstDevices, stop: int | None = None, **changes) -> None:
    source = Vectors()
    if stop is not None:
        source = StopAt()
        object.__setattr__(source, "stop", stop)
        with pytest.raises(SystemExit) as end:
            job(folder, STEPS, hardware=hardware, source=source, **(ARGUMENTS | changes))
        assert end.value.code == EXIT_PREEMPTED
    else:
        job(folder, STEPS, hardware=hardware, source=source, **(ARGUMENTS | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, FirstDevices(data=1))
    return folder


def close(folder: Path, whole: Path) -> None:
    ours, theirs = np.load(folder / "final.npz"), np.load(whole / "final.npz")
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=2e-5, err_msg=name)


def test_eight_then_four_then_two_devices(whole, tmp_path):
    run(tmp_path, FirstDevices(data=2, fsdp=2, tensor=2), stop=3)
    run(tmp_path, FirstDevices(data=1, fsdp=4), stop=7)
    assert latest_step(tmp_path) == 8
    run(tmp_path, FirstDevices(data=2))
    close(tmp_path, whole)


def test_a_batch_of_another_size_goes_on_behind_the_rows_that_were_used(tmp_path):
    budget = {"budget": Budget(tokens=12 * 8 * 12)}
    run(tmp_path, FirstDevices(data=1), stop=4, **budget)
    meta = load_meta(tmp_path)
    assert (meta.step, meta.data_rows, meta.text_tokens, meta.audio_tokens) == (5, 40, 320, 160)
    read = []

    class Recording(Vectors):
        def batch(self, step):
            read.append(step)
            return super().batch(step)

    job(tmp_path, hardware=FirstDevices(data=1), source=Recording(rows=16), **(ARGUMENTS | budget))
    meta = load_meta(tmp_path)
    # 40 rows are two and a half batches of 16: the next is number 3.
    assert min(step for step in read if step) == 3
    steps = -(-(12 * 8 * 12 - 480) // (16 * 12))
    assert (meta.step, meta.data_rows) == (5 + steps, (3 + steps) * 16)
    assert meta.text_tokens + meta.audio_tokens == 480 + steps * 16 * 12


def _process(folder: str, port: int, number: int, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["XLA_FLAGS"] = xla_flags(2)
    from mimo_jax.cli import log_to_stderr
    from mimo_jax.parallel import start

    log_to_stderr()
    start.connect(f"localhost:{port}", 2, number)
    assert jax.process_count() == 2 and jax.device_count() == 4
    job(folder, STEPS, hardware=FirstDevices(data=2, fsdp=2), source=HostRows(Vectors(), 0.2), **ARGUMENTS)


def test_two_processes_stop_together_and_one_goes_on(whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.job"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder, logs = tmp_path / "run", [str(tmp_path / f"{i}.log") for i in range(2)]
    processes = [context.Process(target=_process, args=(str(folder), port, i, logs[i])) for i in range(2)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(read_metrics(folder)) < 3 and all(p.is_alive() for p in processes):
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)  # only the second is told
    for process in processes:
        process.join(120)
    said = [Path(log).read_text() for log in logs]
    assert [process.exitcode for process in processes] == [EXIT_PREEMPTED] * 2, said
    assert "asked to stop; saved at step" in said[0]
    # Only the first writes files and speaks.
    assert " step " in said[0] and "job step" not in said[1]
    assert len(list(folder.glob("events.out.tfevents*"))) == 1
    assert 2 < latest_step(folder) < STEPS
    run(folder, FirstDevices(data=1))
    close(folder, whole)
