"""Training runs under t5x and under our trainer in processes of their own, and the figures they write."""

import glob
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.xla import xla_flags

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20

# Names of t5x's modules in the overlays: a binding on the command line knows only what its files have imported.
STOP_AT_10 = """
from __gin__ import dynamic_registration
import __main__ as t5x_script
t5x_script.train.total_steps = 10
"""
ON_8_DEVICES = """
from __gin__ import dynamic_registration
from mimo_jax.parallel import mesh
mesh.Hardware.data = 2
mesh.Hardware.fsdp = 2
mesh.Hardware.tensor = 2
"""
OURS = f"""
from __gin__ import dynamic_registration
from mimo_jax.training import loop
from mimo_jax.training import schedule
EXPORT = None
EXPORT_DIR = None
schedule.Budget.tokens = None
schedule.Budget.steps = {STEPS}
loop.Intervals.log = 1
loop.Intervals.evaluate = 0
"""


class Runs:
    """Training runs in processes of their own, each made once."""

    def __init__(self, folder, prepared):
        self.folder, self._prepared = folder, prepared

    def t5x(self, name, run, *arguments, overlays=(), devices=1):
        """`python -m t5x.train`; the MODEL_DIR."""
        out = self.folder / name
        files = [f"--gin_file=gin/t5x/{run}.gin", *self._files(overlays)]
        values = {"TRAIN_STEPS": STEPS, "STATS_PERIOD": 1, "CHECKPOINT_PERIOD": 10, "EVAL_PERIOD": 0}
        bindings = [f"--gin.{key}={value}" for key, value in values.items()]
        places = [f"--gin.MODEL_DIR='{out}'", f"--gin.PREPARED='{self._prepared}'"]
        self._start("t5x.train", "--gin_search_paths=gin", *files, *bindings, *places, *arguments, devices=devices)
        return out

    def ours(self, name, *overlays, devices=1):
        """`python -m mimo_jax.train` of the same run; the MODEL_DIR."""
        out = self.folder / name
        files = ["--gin_file=gin/runs/quickstart/joint.gin", *self._files([OURS, *overlays])]
        places = [f"--gin.MODEL_DIR={out}", f"--gin.PREPARED={self._prepared}"]
        self._start("mimo_jax.train", *files, *places, devices=devices)
        return out

    def _files(self, overlays):
        paths = [self.folder / f"overlay_{abs(hash(text))}.gin" for text in overlays]
        for path, text in zip(paths, overlays, strict=True):
            path.write_text(text)
        return [f"--gin_file={path}" for path in paths]

    def _start(self, module, *arguments, devices):
        environment = os.environ | {"XLA_FLAGS": xla_flags(devices)}
        command = [sys.executable, "-P", "-m", module, *map(str, arguments)]  # as launch/t5x.sh
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]


def figures(folder, tag):
    """step -> value, of what t5x wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    values = {}
    for path in sorted(glob.glob(f"{folder}/events*")):
        for event in EventFileLoader(path).Load():
            for value in event.summary.value:
                if value.tag == tag:
                    values[event.step] = float(tensor_util.make_ndarray(value.tensor))
    return values


def our_figures(folder, tag):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record[tag] for record in records if tag in record}


def of_steps(values):
    return np.asarray([values[step] for step in range(1, STEPS + 1)])
