"""Two processes of a run on this machine: one is killed, all start again by themselves, the result is the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mimo_jax.training.checkpoints import latest_step, load_meta, load_params
from mimo_jax.training.metrics import read_metrics
from tests.xla import xla_flags

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24


class Launched:
    """`launch/local.sh` with two processes of one simulated device each."""

    def __init__(self, folder: Path, *bindings: str):
        self.model_dir, self.errors = folder / "run", folder / "errors"
        folder.mkdir(exist_ok=True)
        run = " ".join(["tests/launch/run.gin", f"STEPS={STEPS}", *bindings])
        (folder / "job.env").write_text(
            f"NAME=kill-test\nSTAGES=('{run}')\nHARDWARE=tests/launch/hardware.gin\nMODEL_DIR=run\n"
            f"STORAGE={folder}\nPROCESSES=2\nENVIRONMENT=(JAX_COMPILATION_CACHE_DIR={os.environ['JAX_COMPILATION_CACHE_DIR']})"
        )
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                ["bash", str(ROOT / "launch" / "local.sh"), f"--env={folder / 'job.env'}"],
                env=os.environ | {"MIMO_JAX_PYTHON": sys.executable, "XLA_FLAGS": xla_flags(1), "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def wait_for_checkpoint(self, step: int) -> None:
        deadline = time.monotonic() + 300
        while self.process.poll() is None and (latest_step(self.model_dir) or 0) < step and time.monotonic() < deadline:
            time.sleep(0.02)

    def pids(self) -> list[int]:
        """Of the processes of the last attempt."""
        return [int(pid) for pid in re.findall(r"\(pid (\d+)\)", self.errors.read_text().rpartition("started")[2])]

    def finish(self, code: int = 0) -> str:
        assert self.process.wait(300) == code, self.said()
        return self.said()

    def said(self) -> str:
        return self.errors.read_text() + "".join(path.read_text() for path in sorted(self.model_dir.glob("logs/*")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing disturbs."""
    launched = Launched(tmp_path_factory.mktemp("whole"))
    assert "starting again" not in launched.finish()
    return launched.model_dir


def same(ours: Path, theirs: Path) -> None:
    """The same parameters and losses, to the bit: the same two processes add in the same order."""
    for mine, other in zip(load_params(ours)[0].values(), load_params(theirs)[0].values(), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))
    figures = [{r["step"]: r["train/loss"] for r in read_metrics(run) if "train/loss" in r} for run in (ours, theirs)]
    assert figures[0] == figures[1] and sorted(figures[0]) == list(range(1, STEPS + 1))


def test_a_killed_process(whole, tmp_path):
    launched = Launched(tmp_path, "SECONDS=0.2")
    launched.wait_for_checkpoint(8)
    os.kill(launched.pids()[1], signal.SIGKILL)
    said = launched.finish()
    assert "starting again in 0 s (a newer checkpoint is there)" in said
    resumed = int(re.search(r"resumed at step (\d+)", said).group(1))
    assert 8 <= resumed < STEPS
    assert said.count("started process 0") == 2
    assert load_meta(launched.model_dir).finished
    same(launched.model_dir, whole)


@pytest.mark.slow
def test_ctrl_c_and_another_start(whole, tmp_path):
    launched = Launched(tmp_path, "SECONDS=0.2")
    launched.wait_for_checkpoint(8)
    launched.process.send_signal(signal.SIGINT)
    assert "asked to stop; saved at step" in launched.finish(75)
    Launched(tmp_path).finish()
    same(launched.model_dir, whole)
