"""Stages one after another as processes: stopped, gone on with, passed over; a saved batch is replayed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gin
import numpy as np
import pytest

from mimo_jax import pretrain, replay
from mimo_jax.cli import EXIT_PREEMPTED, UserError
from mimo_jax.training import guards
from mimo_jax.training.checkpoints import load_meta, load_params
from mimo_jax.training.metrics import read_metrics
from tests.training.job import POSITIONS
from tests.training.synthetic import Vectors
from tests.xla import xla_flags

RUN = """
from __gin__ import dynamic_registration
from mimo_jax import train as train_script
from mimo_jax.training import guards
from mimo_jax.training import loop
from mimo_jax.training import optimizer
from mimo_jax.training import profiling
from mimo_jax.training import schedule
from tests.training import job
from tests.training import synthetic
MODEL_DIR = %gin.REQUIRED
INIT_FROM = None
SEED = 3
PROFILE = ''
SECONDS = 0.0
TOKENS = %gin.REQUIRED
train_script.train:
  model_dir = %MODEL_DIR
  name = 'stage'
  objective = @synthetic.Regression()
  source = @job.HostRows()
  optimizer = @optimizer.Optimizer()
  budget = @schedule.Budget()
  intervals = @loop.Intervals()
  profile = @profiling.Profile()
  init_from = %INIT_FROM
  seed = %SEED
job.HostRows.source = @synthetic.Vectors()
job.HostRows.seconds = %SECONDS
loop.Intervals.log = 1
schedule.Budget.tokens = %TOKENS
profiling.Profile.windows = %PROFILE
"""


def command(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"XLA_FLAGS": xla_flags(1)},
    )


def test_stages_are_trained_stopped_and_passed_over(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / f"{name}.gin").write_text(RUN)
    out = tmp_path / "out"
    arguments = (
        "mimo_jax.pretrain",
        f"--out={out}",
        f"--stage={tmp_path / 'one.gin'} TOKENS={4 * POSITIONS}",
        f"--stage={tmp_path / 'two.gin'} TOKENS={30 * POSITIONS} SECONDS=0.1",
        "--gin.SEED=5",
        "--profile=2:1",
    )
    first = command(*arguments)
    while first.poll() is None and len(read_metrics(out / "two")) < 3:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=600)
    assert first.returncode == EXIT_PREEMPTED, said
    assert load_meta(out / "one").finished and not load_meta(out / "two").finished
    assert f"parameters of {out / 'one'}" in said
    assert list((out / "one").glob("plugins/profile/*/*.xplane.pb"))

    again = command(*arguments)
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0, said
    assert "one: finished at step 4" in said and "resumed at step" in said
    assert load_meta(out / "two").step == 30
    assert np.isfinite(load_params(out / "two")[0]["w"]).all()

    # The run's own configuration is enough to look at a batch it was stopped for.
    guards.save_batch(out / "one", 7, Vectors(bad=(7,)).batch(7))
    gin.clear_config()
    assert replay.main([f"--model_dir={out / 'one'}", "--data_step=7"]) == 0
    gin.clear_config()
    assert "not finite: input x" in capsys.readouterr().out


def test_stage_arguments(tmp_path):
    chain = pretrain.stages(tmp_path, ["a/x.gin b/hw.gin LR=1 loop.Intervals.log=2", "a/y.gin"], init_from="/w")
    assert [stage.name for stage in chain] == ["x", "y"]
    assert chain[0].arguments == (
        *("--gin_file=a/x.gin", "--gin_file=b/hw.gin", "--gin.LR=1", "--gin.loop.Intervals.log=2"),
        *("--gin.INIT_FROM=/w", f"--gin.MODEL_DIR={tmp_path / 'x'}"),
    )
    assert f"--gin.INIT_FROM={tmp_path / 'x'}" in chain[1].arguments
    for wrong in (["LR=1"], [""], ["a/x.gin", "b/x.gin"]):
        with pytest.raises(UserError, match="--stage="):
            pretrain.stages(Path("out"), wrong)
