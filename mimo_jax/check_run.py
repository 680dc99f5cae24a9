"""Checks the gin files and bindings of a run against a machine that is not there; launch/job.sh calls it.

    python -m mimo_jax.check_run --devices=256 --processes=64 --gin_file=gin/runs/pretrain_7b_joint.gin \
      --gin_file=gin/hardware/v5p_4x8x8.gin --gin.MODEL_DIR=/storage/runs/joint --gin.PREPARED=/storage/prepared

It reads them as `mimo_jax.train` does, so that a misspelt binding is found here, and then asks whether the mesh has as
many devices as the machine, whether a row lies within one process, and whether the batch divides. No data is needed.
Whether a step fits into memory: `mimo_jax.compile`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import gin
from jax.sharding import AbstractMesh

from mimo_jax import cli
from mimo_jax.cli import EXIT_MISTAKE, UserError
from mimo_jax.parallel import mesh as mesh_lib


def check(devices: int, processes: int, slices: int = 1) -> dict[str, int]:
    """Sizes of the mesh's axes, of the run that gin is configured for.

    Args:
      devices: of the machine, as jax counts them.
      processes: that share them evenly.
      slices: groups of devices with a slow network in between.

    Raises:
      UserError: what does not fit, and what to change.
    """
    hardware = _hardware()
    sizes = hardware.sizes(devices)
    if slices > 1 and sizes["slice"] != slices:
        raise UserError(
            f"Hardware.slice = {sizes['slice']}, but the machine has {slices} slices: bind mesh.Hardware.slice "
            "and the other axes for one slice"
        )
    each = devices // processes
    within = sizes["sequence"] * sizes["tensor"]
    if processes > 1 and (within > each or each % within):
        raise UserError(
            f"Hardware.sequence x tensor = {sizes['sequence']} x {sizes['tensor']} devices share a row, but a process "
            f"has {each}: make it a divisor of that"
        )
    rows = _batch_rows()
    if rows is not None:
        mesh_lib.check_batch(AbstractMesh(tuple(sizes.values()), tuple(sizes)), rows, hardware.microbatches)
    return sizes


def _hardware() -> mesh_lib.Hardware:
    """As the gin files bind it."""
    try:
        return gin.get_configurable(mesh_lib.Hardware)()
    except ValueError:  # no file speaks of it
        return mesh_lib.Hardware()


def _batch_rows() -> int | None:
    """The macro that every run file of a language model or tokenizer has."""
    try:
        rows = gin.query_parameter("%BATCH_ROWS")
    except ValueError:
        return None
    return rows if isinstance(rows, int) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mimo_jax.check_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, required=True, help="of the machine, as jax counts them")
    parser.add_argument("--processes", type=int, default=1, help="of the run")
    parser.add_argument("--slices", type=int, default=1, help="of a TPU job")
    parser.add_argument("--gin_file", action="append", required=True, help="may be given several times")
    parser.add_argument("--gin_bindings", action="append", default=[], help="--gin.NAME=VALUE is the short form")
    try:
        given = parser.parse_args(cli.rewrite_gin_arguments(sys.argv[1:] if arguments is None else arguments))
        if min(given.devices, given.processes, given.slices) < 1 or given.devices % given.processes:
            raise UserError(f"--devices={given.devices} do not divide into --processes={given.processes}")
        cli.parse_gin(given.gin_file, given.gin_bindings)
        sizes = check(given.devices, given.processes, given.slices)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    axes = ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"
    print(f"{given.gin_file[0]}: {axes} = {math.prod(sizes.values())} devices of {given.processes} process(es): fits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
