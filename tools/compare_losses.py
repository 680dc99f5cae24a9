"""Whether two commits train alike: every loss and gradient norm of N steps, for equality.

    python tools/compare_losses.py BASE [OTHER] --quickstart=runs/quickstart [--runs=joint,sft] [--steps=10]

Trains the quickstart's stages anew from the data and checkpoints of a finished quickstart (preset smoke will do), once
with the code of commit BASE and once with that of OTHER (default: the working tree), and compares what both logged.
Ends with code 1 if anything differs. The schedule ends with these steps, so that decay is run through, too. Any other
run is compared by its own arguments, with whole paths of data:

    python tools/compare_losses.py BASE --steps=10 -- --gin_file=gin/runs/ladder/joint.gin --gin.PREPARED=/DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from checkouts import checkout, run

# What differs between two runs of one program.
_TIMING = ("speed/", "memory/", "checkpoint/", "train/step_seconds")
Records = Sequence[Mapping[str, object]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A figure that is not the same in both."""

    step: int
    name: str
    base: object
    other: object

    def __str__(self) -> str:
        text = f"step {self.step}: {self.name} {self.base} against {self.other}"
        if isinstance(self.base, float) and isinstance(self.other, float):
            text += f" (off by {abs(self.base - self.other):.3g})"
        return text


def differences(base: Records, other: Records, tolerance: float = 0.0) -> Iterator[Difference]:
    """What two logs do not share; numbers may be `tolerance` (relative) apart. A missing record differs whole."""
    for index in range(max(len(base), len(other))):
        left, right = (records[index] if index < len(records) else {} for records in (base, other))
        step = int(str(left.get("step", right.get("step", -1))))
        for name in sorted({*left, *right}):
            if not name.startswith(_TIMING) and not _same(left.get(name), right.get(name), tolerance):
                yield Difference(step, name, left.get(name), right.get(name))


def _same(left: object, right: object, tolerance: float) -> bool:
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        both_nan = math.isnan(left) and math.isnan(right)
        return both_nan or left == right or math.isclose(left, right, rel_tol=tolerance, abs_tol=0.0)
    return left == right


def of_quickstart(folder: Path) -> dict[str, list[str]]:
    """Arguments of `mimo_jax.train` of each stage that a finished quickstart has the inputs of."""
    prepared, curated = folder / "prepared", folder / "prepared" / "curated"
    inputs: dict[str, dict[str, Path]] = {
        "recogniser": {"MANIFEST": curated},
        "tokenizer_unified": {"MANIFEST": curated, "TEXT_TOKENIZER": prepared / "text_tokenizer"},
        "tokenizer_adversarial": {"MANIFEST": curated, "INIT_FROM": folder / "tokenizer_unified"},
        "understanding": {"PREPARED": prepared},
        "joint": {"PREPARED": prepared, "INIT_FROM": folder / "understanding"},
        "sft": {"PREPARED": prepared, "INIT_FROM": folder / "joint"},
    }
    return {
        name: [f"--gin_file=gin/runs/quickstart/{name}.gin", *(f"--gin.{key}={path}" for key, path in macros.items())]
        for name, macros in inputs.items()
        if all(path.exists() for path in macros.values())
    }


def log_of(tree: Path, arguments: Sequence[str], steps: int) -> Records:
    """The log of `steps` steps by the code in `tree`."""
    budgets = ("tokens", "text_tokens", "audio_tokens", "audio_hours")
    with tempfile.TemporaryDirectory(prefix="mimo_jax-") as temporary:
        fixed = [
            f"--gin.MODEL_DIR={temporary}/run",
            "--gin.train.export=None",
            *(f"--gin.Budget.{name}=None" for name in budgets),
            f"--gin.Budget.steps={steps}",
            "--gin.Intervals.log=1",
            "--gin.Intervals.evaluate=0",
            "--gin.Intervals.checkpoint=0",
        ]
        # A run file may leave these to the command line; what they name is not made.
        fixed += [f"--gin.EXPORT_DIR={temporary}/export"] if _leaves_open(tree, arguments, "EXPORT_DIR") else []
        run(tree, "mimo_jax.train", [*arguments, *fixed])
        lines = (Path(temporary) / "run" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
    if not any("train/loss" in record for record in records):
        sys.exit(f"error: {tree}: no loss was logged in {steps} steps: there is nothing to compare")
    return records


def _leaves_open(tree: Path, arguments: Sequence[str], macro: str) -> bool:
    files = [argument.partition("=")[2] for argument in arguments if argument.startswith("--gin_file=")]
    return any(f"\n{macro} = " in (tree / file).read_text() for file in files if (tree / file).is_file())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 if the commits differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit")
    parser.add_argument("other", nargs="?", help="commit; default: the working tree")
    parser.add_argument("--quickstart", type=Path, help="folder of a finished quickstart")
    parser.add_argument("--runs", default="", help="comma-separated stages of it; default: all that have their inputs")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative; 0 = equal bit for bit")
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, _, passed = ("\0".join(arguments)).partition("\0--\0")
    options = parser.parse_args(own.split("\0") if own else [])
    if bool(passed) == (options.quickstart is not None):
        parser.error("name the data: --quickstart=DIR, or a run's own arguments behind --")
    runs = {"run": passed.split("\0")} if passed else of_quickstart(options.quickstart.resolve())
    if options.runs:
        missing = set(options.runs.split(",")) - set(runs)
        if missing:
            parser.error(f"{options.quickstart} has not what {', '.join(sorted(missing))} starts from: {list(runs)}")
        runs = {name: runs[name] for name in options.runs.split(",")}
    if not runs:
        parser.error(f"{options.quickstart}: no stage of a quickstart has its inputs there")
    differ = False
    with checkout(options.base) as base, checkout(options.other) as other:
        for name, given in runs.items():
            logs = [log_of(tree, given, options.steps) for tree in (base, other)]
            found = list(differences(*logs, tolerance=options.tolerance))
            differ |= bool(found)
            print(f"{name}: {len(logs[0])} records, {'equal' if not found else f'{len(found)} figures differ'}")
            for difference in found[:10]:
                print(f"  {difference}")
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
