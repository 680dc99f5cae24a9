"""Stages one after another, each from the parameters of the one before; the same command goes on after any end.

    python -m mimo_jax.pretrain --out=DIR --stage=gin/runs/pretrain_7b_understanding.gin \
      --stage="gin/runs/pretrain_7b_joint.gin gin/hardware/v5p_4x8x8.gin" \
      --stage="gin/runs/sft_7b.gin EVAL_SPLIT=validation" --gin.PREPARED=PREPARED

A stage is a run file, followed by further gin files and bindings of its own. It is trained by `mimo_jax.train` into
`DIR/<name of the run file>`, with INIT_FROM set to the stage before. All other arguments (`--gin.NAME=VALUE`,
`--coordinator=...`) are handed to every stage. On several hosts, start it on each. A stage that is finished is passed
over; the exit code is that of the stage that ended the chain (75: asked to stop, start again).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError, log_to_stderr
from mimo_jax.processes import die_with_parent

logger = logging.getLogger("mimo_jax.pretrain")  # `python -m` would name it __main__


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's name, MODEL_DIR and the arguments of `mimo_jax.train` that are its own."""

    name: str
    model_dir: Path
    arguments: tuple[str, ...]


def stages(out: Path, given: Sequence[str], init_from: str | None = None) -> list[Stage]:
    """What `--stage` arguments say. Raises UserError for an empty one or a name that comes twice."""
    result: list[Stage] = []
    for text in given:
        words = shlex.split(text)
        if not words or not words[0].endswith(".gin"):
            raise UserError(f"--stage={text!r}: begin with a gin run file")
        name = Path(words[0]).stem
        if name in {stage.name for stage in result}:
            raise UserError(f"--stage={text!r}: a stage {name} is there already; copy the run file to another name")
        own = [f"--gin_file={word}" if word.endswith(".gin") else f"--gin.{word}" for word in words]
        if init_from is not None:
            own.append(f"--gin.INIT_FROM={init_from}")
        result.append(Stage(name, out / name, (*own, f"--gin.MODEL_DIR={out / name}")))
        init_from = str(out / name)
    return result


def run(chain: Sequence[Stage], common: Sequence[str]) -> int:
    """Trains what is not finished; 0, or the exit code of the stage that ended the chain."""
    from mimo_jax.training.checkpoints import load_meta

    for number, stage in enumerate(chain, start=1):
        meta = load_meta(stage.model_dir)
        if meta is not None and meta.finished:
            logger.info("[%d/%d] %s: finished at step %d", number, len(chain), stage.name, meta.step)
            continue
        command = ["-m", "mimo_jax.train", *stage.arguments, *common]
        logger.info("[%d/%d] %s: python %s", number, len(chain), stage.name, shlex.join(command))
        code = _execute(command)
        if code:
            logger.error("%s ended with exit code %d", stage.name, code)
            return code
    return 0


def _execute(command: Sequence[str]) -> int:
    """Runs it as a process that gets the stop signals of this one and ends with it."""
    process = subprocess.Popen([sys.executable, *command], preexec_fn=die_with_parent)  # noqa: PLW1509

    def forward(number: int, frame: Any) -> None:
        process.send_signal(number)

    # A terminal sends Ctrl-C to the stage itself.
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, forward)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 = a mistake in the input, named in one message."""
    parser = argparse.ArgumentParser(
        prog="python -m mimo_jax.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, help="folder of the stages' MODEL_DIRs")
    parser.add_argument("--stage", action="append", required=True, help="run file, further files, NAME=VALUE bindings")
    parser.add_argument("--init_from", help="where the first stage's parameters come from; default: from scratch")
    options, common = parser.parse_known_args(arguments)
    log_to_stderr()
    try:
        return run(stages(Path(options.out).absolute(), options.stage, options.init_from), common)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
