"""Installs a wheel into an empty environment and uses it there, away from any checkout: help, corpus, a 10-step train.

    python tools/try_wheel.py dist/mimo_jax-0.1.0-py3-none-any.whl [--folder=DIR] [--run=recogniser]

Trained is the audio tokenizer's first stage; the recogniser compiles in a quarter of the time. The base requirements
come from requirements/base.txt, in the versions that are locked there. Ends with code 1, and says which command failed,
unless all goes well. Needs uv and a package index.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 10
RUNS = {
    "tokenizer_unified": {"TEXT_TOKENIZER": "prepared/text_tokenizer"},
    "recogniser": {"EXPORT_DIR": "export"},
}
_CORPUS = ("core_utterances=160", "core_validation=8", "core_test_voices=8")
_WIDE = ("wide_utterances=0", "wide_validation=0", "wide_test_voices=0", "texts=40")


def environment(folder: Path, wheel: Path) -> Path:
    """An empty environment with the wheel and what it requires; returns its folder of programs."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        sys.exit("error: uv is missing: pip install uv, or use the environment that ./launch/test.sh makes")
    python = folder / "bin" / "python"
    run([uv, "venv", "--quiet", f"--python={sys.executable}", str(folder)], folder.parent)
    installed = [uv, "pip", "install", "--quiet", f"--python={python}"]
    run([*installed, "--no-deps", "-r", str(ROOT / "requirements" / "base.txt")], folder.parent)
    run([*installed, str(wheel)], folder.parent)  # with what it says it needs: the lock must hold all of that
    return folder / "bin"


def run(command: Sequence[str], folder: Path) -> str:
    """Output of a command in `folder`, without this process's settings of Python and XLA.

    Raises:
      SystemExit: it fails; its output is printed.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "XLA_"))
    }
    ended = subprocess.run(command, cwd=folder, env=inherited, capture_output=True, text=True)
    if ended.returncode != 0:
        print(ended.stdout + ended.stderr, file=sys.stderr)
        sys.exit(f"error: {' '.join(command)} ended with code {ended.returncode} (above)")
    return ended.stdout


def losses(folder: Path, programs: Path, name: str) -> list[float]:
    """Uses the installed command, each step as a newcomer would: the losses of a training of `STEPS` steps."""
    command = str(programs / "mimo-jax")
    where = run([str(programs / "python"), "-c", "import mimo_jax; print(mimo_jax.__file__)"], folder).strip()
    if not Path(where).is_relative_to(programs.parent):
        sys.exit(f"error: {where} is used, not what was installed into {programs.parent}")
    if "train" not in run([command, "--help"], folder):
        sys.exit("error: mimo-jax --help does not list train")
    run([command, "corpus", "--out=corpus", *(f"--{size}" for size in (*_CORPUS, *_WIDE))], folder)
    prepare = [command, "prepare", "--gin_file=runs/quickstart/prepare.gin"]
    run([*prepare, "--source=corpus", "--out=prepared", "--only=text_tokenizer"], folder)
    macros = {"MODEL_DIR": "run", "MANIFEST": "prepared/curated", "BUDGET_STEPS": STEPS, "BATCH_ROWS": 8, **RUNS[name]}
    bindings = [f"--gin.{macro}={value}" for macro, value in macros.items()]
    train = [command, "train", f"--gin_file=runs/quickstart/{name}.gin", *bindings]
    run([*train, "--gin.Intervals.log=1", "--gin.Intervals.evaluation_batches=1"], folder)
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--folder", type=Path, help="receives the environment and what is made; default: removed again")
    parser.add_argument("--run", choices=RUNS, default="tokenizer_unified", help="what is trained")
    options = parser.parse_args(argv)
    if not options.wheel.is_file():
        parser.error(f"{options.wheel}: no such file")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mimo_jax-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        programs = environment(folder / "environment", options.wheel.resolve())
        print(f"installed after {time.monotonic() - begin:.0f} s", flush=True)
        found = losses(folder, programs, options.run)
    if len(found) != STEPS or not all(math.isfinite(loss) for loss in found):
        sys.exit(f"error: {STEPS} finite losses are wanted, there are {found}")
    print(f"trained after {time.monotonic() - begin:.0f} s: loss {found[0]:.3f} at step 1, {found[-1]:.3f} at {STEPS}")


if __name__ == "__main__":
    main()
