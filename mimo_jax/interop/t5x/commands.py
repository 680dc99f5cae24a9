"""The subcommands `t5x-import` and `t5x-export` of `mimo_jax.convert`. Needs t5x only when one of them runs."""

from __future__ import annotations

import argparse
from typing import Any

from mimo_jax.cli import UserError


def add(commands: Any) -> None:
    """Adds both to the subcommands of an `argparse` parser."""
    command = commands.add_parser("t5x-import", help="a t5x checkpoint -> a checkpoint to start training from")
    command.set_defaults(run=_import)
    command.add_argument(
        "--checkpoint", required=True, help="MODEL_DIR of a t5x run, or a folder checkpoint_STEP in it"
    )
    command.add_argument("--out", required=True, help="MODEL_DIR to make; give it to a run as INIT_FROM, or export it")

    command = commands.add_parser("t5x-export", help="a checkpoint or a folder -> a t5x checkpoint")
    command.set_defaults(run=_export)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--model_dir", help="MODEL_DIR of a training run")
    source.add_argument("--weights", help="folder in the released layout")
    command.add_argument("--out", required=True, help="folder to write; give it to a t5x run as RESTORE")
    command.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the parameters; default: as they are")


def _import(options: argparse.Namespace) -> None:
    from mimo_jax.interop import trained

    trained.must_be_free(options.out)
    values, params, step = _checkpoints().load(options.checkpoint)
    trained.save_imported(options.out, {"params": params}, values)
    print(f"{options.out}: step {step} of {options.checkpoint}; start a run from it with --gin.INIT_FROM={options.out}")


def _export(options: argparse.Namespace) -> None:
    from mimo_jax.interop import hf, trained

    checkpoints = _checkpoints()
    if options.model_dir:
        kind, config, params = trained.load_run(options.model_dir)
        if kind != "lm":
            raise UserError(f"{options.model_dir}: no language model; no other stage is trained under t5x")
    else:
        config, params = hf.load_lm(options.weights, lazily=True)
    print(f"{checkpoints.save(options.out, config, params, options.dtype)}: written")


def _checkpoints() -> Any:
    from mimo_jax.interop.t5x import stand_ins

    stand_ins.install()
    try:
        from mimo_jax.interop.t5x import checkpoints
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error}: t5x and what it needs are in the environment that ./launch/t5x.sh makes; see docs/t5x.md"
        ) from error
    return checkpoints
