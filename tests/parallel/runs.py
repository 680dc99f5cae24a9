"""Short runs of a stage on a mesh, for comparison, also in processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training import program
from mimo_jax.training.optimizer import Optimizer
from tests.training.synthetic import SyntheticSource, tiny_model
from tests.xla import xla_flags

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
ONE = mesh_lib.Hardware(data=1)


def start(program, *arguments, devices, **environment):
    """A Python process with simulated devices that runs a program (text)."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": xla_flags(devices), "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_two_processes(program, *arguments):
    """What a program prints in each of two processes with four devices; its arguments: address, index, *arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start(program, address, index, *arguments, devices=4) for index in range(2)]
    outputs = [process.communicate(timeout=1200) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [out for out, _ in outputs]


class Rows:
    """The rows of one of several processes."""

    def __init__(self, index, count):
        self.index, self.count, self.source = index, count, SyntheticSource(rows=8, length=16)

    def batch(self, step):
        rows = 8 // self.count
        return {name: x[self.index * rows :][:rows] for name, x in self.source.batch(step).items()}


def language_model(**changes):
    return LanguageModelObjective(tiny_model(), **changes)


def shapes(batch):
    """Of the global batch."""
    count = jax.process_count()
    return {name: jax.ShapeDtypeStruct((x.shape[0] * count, *x.shape[1:]), x.dtype) for name, x in batch.items()}


def run(hardware, objective=None, source=None, optimizer=None, steps=STEPS, metrics=("loss",)):
    """Metrics [steps, len(metrics)] of a run on as many devices as the mesh asks for."""
    objective, source = objective or language_model(), source or SyntheticSource(rows=8, length=16)
    sizes = [getattr(hardware, axis) for axis in mesh_lib.MESH_AXES]
    mesh = hardware.make_mesh(jax.devices()[: int(np.prod(sizes))])
    values = []
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        stage = program.build(objective, optimizer or Optimizer(), hardware, mesh, shapes(source.batch(0)))
        state = stage.init(jax.random.key(0), mesh_lib.put_batch(source.batch(0), mesh))
        for step in range(steps):
            batch = mesh_lib.put_batch(source.batch(step), mesh)
            state, figures = stage.train_step(state, batch, np.float32((step + 1) / steps), np.float32(np.inf))
            values.append([float(figures[name]) for name in metrics])
    return np.array(values)
