"""Compiles the train step for a machine and collects what the compiler says."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from mimo_jax.ahead_of_time.estimates import Memory
from mimo_jax.ahead_of_time.machines import Machine
from mimo_jax.cli import UserError
from mimo_jax.objectives.base import Objective
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training import program
from mimo_jax.training.optimizer import Optimizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What came of compiling a step.

    Attributes:
      machine, mesh, hardware, objective: what was compiled, and for what.
      batch: abstract global batch.
      parameters: their number.
      memory: bytes on a device.
      text: of the optimised program, "" if it did not fit.
      seconds: that the compiler took.
    """

    machine: Machine
    mesh: Mesh
    hardware: mesh_lib.Hardware
    objective: Objective
    batch: Mapping[str, jax.ShapeDtypeStruct]
    parameters: int
    memory: Memory
    text: str
    seconds: float


def lowered_for(
    machine: Machine,
    objective: Objective,
    optimizer: Optimizer,
    hardware: mesh_lib.Hardware,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> str:
    """The step's StableHLO: what the compiler is asked to do, the same for the same program.

    Raises:
      UserError: mesh or batch do not go with the machine.
    """
    mesh = hardware.make_mesh(list(machine.descriptions))
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        _, lowered = _lower(machine, objective, optimizer, hardware, mesh, batch)
        return lowered.as_text()


def compile_for(
    machine: Machine,
    objective: Objective,
    optimizer: Optimizer,
    hardware: mesh_lib.Hardware,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> CompiledStep:
    """Lowers and compiles; a program that does not fit is a result, too (`memory.fits` is false).

    Raises:
      UserError: mesh or batch do not go with the machine, or the compiler refuses the program.
    """
    mesh = hardware.make_mesh(list(machine.descriptions))
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        begin = time.monotonic()
        stage, lowered = _lower(machine, objective, optimizer, hardware, mesh, batch)
        logger.info("traced in %.0f s; compiling", time.monotonic() - begin)
        kinds, text, temporary, code = _bytes_by_kind(stage), "", 0, 0
        try:
            compiled = lowered.compile()
            text, stats = compiled.as_text(), compiled.memory_analysis()
            temporary, code = stats.temp_size_in_bytes, stats.generated_code_size_in_bytes
            temporary += max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
        except jax.errors.JaxRuntimeError as error:
            needed = _needed_bytes(str(error), sum(kinds.values()))
            if needed is None:
                raise UserError(
                    f"{machine.topology}: the compiler refuses the step: {' '.join(str(error).split())[:1500]}"
                ) from error
            temporary = needed
        seconds = time.monotonic() - begin
    return CompiledStep(
        machine=machine,
        mesh=mesh,
        hardware=hardware,
        objective=objective,
        batch=batch,
        parameters=sum(int(np.prod(x.shape)) for x in jax.tree.leaves(stage.state.params)),
        memory=Memory(kinds, temporary, code, int(machine.device.hbm_bytes)),
        text=text,
        seconds=seconds,
    )


def _lower(
    machine: Machine,
    objective: Objective,
    optimizer: Optimizer,
    hardware: mesh_lib.Hardware,
    mesh: Mesh,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[program.Program, Any]:
    """The stage, and its step for the machine's platform; within the mesh and the axis rules."""
    scalar = jax.ShapeDtypeStruct((), np.float32)
    stage = program.build(objective, optimizer, hardware, mesh, batch)
    logger.info("mesh %s; tracing", dict(mesh.shape))
    traced = stage.train_step.trace(stage.state, stage.batch, scalar, scalar)
    return stage, traced.lower(lowering_platforms=(machine.platform,))


def _bytes_by_kind(stage: program.Program) -> dict[str, int]:
    """Bytes on one device of the parts of the state, and of the batch."""
    state = stage.state
    fields = [field.name for field in dataclasses.fields(state)]
    names = {"params": "parameters", "opt_state": "optimiser state"}
    kinds = {names.get(name, name): _local_bytes(getattr(state, name)) for name in fields}
    kinds["batch"] = _local_bytes(stage.batch)
    return {name: size for name, size in kinds.items() if size >= 2**10}


def _local_bytes(tree: Any) -> int:
    return sum(
        int(np.prod(array.sharding.shard_shape(array.shape))) * array.dtype.itemsize for array in jax.tree.leaves(tree)
    )


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _needed_bytes(message: str, arguments: int) -> int | None:
    """Bytes of temporaries by the error of a program that does not fit; None for another error.

    arguments: bytes of state and batch, which some messages count in.
    """
    found = re.search(r"HLO temporaries \(([0-9.]+)([KMGT])", message)
    if found:
        return int(float(found.group(1)) * _UNITS[found.group(2)])
    found = re.search(r"Used ([0-9.]+)([KMGT])", message)
    return max(int(float(found.group(1)) * _UNITS[found.group(2)]) - arguments, 0) if found else None
