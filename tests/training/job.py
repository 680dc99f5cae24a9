"""A small training job as a process of its own, to be killed, stopped, and spread over several processes.

python -m tests.training.job MODEL_DIR [--steps=N] [--mesh=fsdp=4,tensor=2] [--coordinator=HOST:PORT ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mimo_jax.cli import log_to_stderr
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel import start
from mimo_jax.parallel.mesh import Hardware
from mimo_jax.train import train
from mimo_jax.training import loop
from mimo_jax.training.optimizer import Group, Optimizer
from mimo_jax.training.schedule import Budget, Schedule
from tests.training.synthetic import SyntheticSource, tiny_model

POSITIONS = 8 * 12
"""Of a batch."""


@dataclasses.dataclass(frozen=True)
class HostRows:
    """This process's rows of a source's global batch; each batch takes `seconds`."""

    source: Any = SyntheticSource()
    seconds: float = 0.0

    def batch(self, step: int) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        index, count = jax.process_index(), jax.process_count()
        return {name: np.split(x, count)[index] for name, x in self.source.batch(step).items()}

    def token_counts(self, step: int) -> tuple[int, int]:
        return self.source.token_counts(step)


@dataclasses.dataclass(frozen=True)
class FirstDevices(Hardware):
    """A mesh over as many devices as its axes ask for."""

    def make_mesh(self, devices=None):
        devices = jax.devices() if devices is None else devices
        return super().make_mesh(devices[: self.data * self.fsdp * self.sequence * self.tensor])


def job(
    model_dir: str | Path, steps: int = 12, seconds: float = 0.0, hardware: Hardware = FirstDevices(data=1), **changes
):
    """Trains; writes the final arrays to `final.npz`."""
    arguments = {
        "model_dir": str(model_dir),
        "name": "job",
        "objective": LanguageModelObjective(model=tiny_model()),
        "source": HostRows(seconds=seconds),
        "optimizer": Optimizer(groups=(Group(".*", 1e-2, weight_decay=0.1),), schedule=Schedule("cosine", 0.1)),
        "budget": Budget(tokens=steps * POSITIONS),
        "eval_sources": {"heldout": HostRows(SyntheticSource(seed=1))},
        "hardware": hardware,
        "intervals": loop.Intervals(log=1, evaluate=4, evaluation_batches=1, checkpoint=2),
    } | changes
    state = train(**arguments)
    arrays = {jax.tree_util.keystr(path): whole(x) for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}
    if jax.process_index() == 0:
        np.savez(Path(model_dir) / "final.npz", **arrays)


def whole(array: jax.Array) -> np.ndarray:
    """An array that lies on the devices of all processes."""
    from jax.experimental import multihost_utils

    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--mesh", default="data=1")
    parser.add_argument("--coordinator")
    parser.add_argument("--process_count", type=int)
    parser.add_argument("--process_id", type=int)
    given = parser.parse_args()
    log_to_stderr()
    start.connect(given.coordinator, given.process_count, given.process_id)
    axes = {name: int(size) for name, size in (axis.split("=") for axis in given.mesh.split(","))}
    job(given.model_dir, given.steps, given.seconds, FirstDevices(**({"data": 1} | axes)))


if __name__ == "__main__":
    sys.exit(main())
