"""Compiles a run's train step for a machine that is not there, and says whether it fits and how fast it may be.

    ./launch/compile.sh --gin_file=gin/runs/pretrain_7b_joint.gin --topology=v5p:4x8x8 [--json=FILE]

which is `python -m mimo_jax.compile` in an environment with the compilers of TPUs and NVIDIA GPUs. Mesh, microbatches,
kernels and rematerialisation come from `gin/hardware/KIND_SHAPE.gin` where there is one for the topology, else from the
run; `--hardware=FILE` names another. Everything printed as an estimate is arithmetic, not a measurement.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax

from mimo_jax import cli
from mimo_jax.ahead_of_time import machines, report, steps
from mimo_jax.objectives.base import Objective
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training.optimizer import Optimizer
from mimo_jax.training.schedule import Budget

logger = logging.getLogger(__name__)


def compile_step(
    *,
    name: str,
    objective: Objective,
    optimizer: Optimizer,
    budget: Budget,
    hardware: mesh_lib.Hardware,
    batch: dict[str, jax.ShapeDtypeStruct],
    topology: str,
    audio_share: float = 0.5,
    json_file: str | None = None,
    hlo_file: str | None = None,
    lowered_file: str | None = None,
) -> dict[str, Any]:
    """Compiles one step and prints the report.

    Args:
      name: of the stage.
      objective, optimizer, budget, hardware: as `train.train` takes them.
      batch: shapes of a global batch, see `ahead_of_time.batches`.
      topology: see `ahead_of_time.machines.describe`.
      audio_share: share of positions that hold a patch, for FLOPs.
      json_file: also written there.
      hlo_file: receives the compiled program's text.
      lowered_file: receives the StableHLO that would be compiled, and nothing is.

    Returns:
      The figures, as they stand in the JSON file; {} if nothing was compiled.

    Raises:
      UserError: a topology or mesh that does not go together, or a missing compiler.
    """
    machine = machines.describe(topology)
    logger.info("%s: %d devices of %s", topology, len(machine.descriptions), machine.device.name)
    if lowered_file:
        Path(lowered_file).write_text(steps.lowered_for(machine, objective, optimizer, hardware, batch))
        return {}
    compiled = steps.compile_for(machine, objective, optimizer, hardware, batch)
    if hlo_file and compiled.text:
        Path(hlo_file).write_text(compiled.text)
    figures = report.figures(name, compiled, budget, audio_share)
    print(report.table(figures))
    if json_file:
        Path(json_file).write_text(json.dumps(figures, indent=1) + "\n")
    return figures


# Data and folders are not there and not needed.
_NOT_NEEDED = dict.fromkeys(("PREPARED", "MODEL_DIR", "MANIFEST", "TEXT_TOKENIZER", "INIT_FROM"), "None")


def _hardware_files() -> list[str]:
    """The gin file that goes with --topology, [] if the run's own hardware stays."""
    from absl import flags

    if flags.FLAGS.hardware:
        return [flags.FLAGS.hardware]
    file = f"hardware/{flags.FLAGS.topology.replace(':', '_')}.gin"
    if any((Path(path) / file).is_file() for path in cli.default_search_paths()):
        logger.info("mesh and kernels: gin/%s", file)
        return [file]
    logger.info("there is no gin/%s: mesh and kernels are the run's own", file)
    return []


def _from_flags() -> None:
    import gin
    from absl import flags

    gin.get_configurable(compile_step)(
        topology=flags.FLAGS.topology,
        json_file=flags.FLAGS.json,
        hlo_file=flags.FLAGS.hlo,
        lowered_file=flags.FLAGS.lowered,
    )


def main() -> None:
    """Command line."""
    import gin
    from absl import flags

    machines.prepare_environment()
    flags.DEFINE_string("topology", None, "v5p:4x8x8, v5e:16x16x2slices, tpu7x:4x4x8, h100:32x8, ...", required=True)
    flags.DEFINE_string("hardware", None, "gin file of mesh and kernels; default gin/hardware/KIND_SHAPE.gin, if any.")
    flags.DEFINE_string("json", None, "file that receives the figures.")
    flags.DEFINE_string("hlo", None, "file that receives the compiled program's text.")
    flags.DEFINE_string("lowered", None, "file that receives the step's StableHLO; nothing is compiled then.")
    gin.external_configurable(_from_flags, module="mimo_jax.compile")
    cli.run(_from_flags, more_files=_hardware_files, macros=_NOT_NEEDED)


if __name__ == "__main__":
    # gin files bind the functions of the module by its name, not those of __main__.
    from mimo_jax import compile as _module

    _module.main()
