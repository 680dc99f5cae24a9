"""Whether two commits give the compiler the same program: one training step, for machines that are not there.

    python tools/compare_hlo.py BASE [OTHER] [--runs=pretrain_7b_joint,...] [--topologies=v5p:4x8x8,...] [--compiled]

Lowers the step with the code of commit BASE and with that of OTHER (default: the working tree) and compares the text:
StableHLO, some seconds each, or with --compiled what the compiler makes of it, minutes each, for changes that reorder a
program without changing it. Source positions do not count. Ends with code 1 if anything differs, and shows where first.
Run it in the environment that ./launch/compile.sh makes: .venv-compile/bin/python tools/compare_hlo.py HEAD.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from checkouts import checkout, run

_DEFAULT_RUNS = "pretrain_7b_understanding,pretrain_7b_joint,sft_7b"
_DEFAULT_TOPOLOGIES = "v5p:4x8x8"


def normalised(text: str) -> list[str]:
    """Lines of a program without what says where in the sources it comes from."""
    text = re.sub(r",? metadata=\{(?:[^{}\"]|\"[^\"]*\")*\}", "", text)  # HLO
    text = re.sub(r" loc\((?:[^()\"]|\"[^\"]*\")*\)", "", text)  # StableHLO
    # Tables of numbered lines, up to an empty one, to which HLO's metadata point.
    text = re.sub(r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(?:.+\n)*", "", text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.splitlines() if not line.startswith("#loc")]


def first_differences(base: Sequence[str], other: Sequence[str], shown: int = 20) -> Iterator[str]:
    """Lines of a diff around the first line that differs; none if all are equal."""
    if base == other:
        return
    pairs = zip(base, other, strict=False)
    start = next((i for i, (left, right) in enumerate(pairs) if left != right), min(len(base), len(other)))
    window = slice(max(start - 3, 0), start + shown)
    diff = difflib.unified_diff(base[window], other[window], "base", "other", lineterm="", n=3)
    yield f"line {start + 1} of {len(base)} and {len(other)}:"
    for line in diff:
        yield line[:300]


def program_of(tree: Path, name: str, topology: str, compiled: bool) -> list[str]:
    """The normalised text of a run's step by the code in `tree`."""
    with tempfile.TemporaryDirectory(prefix="mimo_jax-") as temporary:
        file = Path(temporary) / "program"
        flag = "hlo" if compiled else "lowered"
        arguments = [f"--gin_file=gin/runs/{name}.gin", f"--topology={topology}", f"--{flag}={file}"]
        run(tree, "mimo_jax.compile", arguments)
        if not file.exists():
            sys.exit(f"error: {name} does not fit {topology}: there is no program to compare")
        return normalised(file.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 if a program differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit")
    parser.add_argument("other", nargs="?", help="commit; default: the working tree")
    parser.add_argument("--runs", default=_DEFAULT_RUNS, help="comma-separated files of gin/runs, without .gin")
    parser.add_argument("--topologies", default=_DEFAULT_TOPOLOGIES, help="comma-separated, see mimo_jax.compile")
    parser.add_argument("--compiled", action="store_true", help="compare what the compiler makes of the program")
    options = parser.parse_args(argv)
    differ = False
    with checkout(options.base) as base, checkout(options.other) as other:
        for name in options.runs.split(","):
            for topology in options.topologies.split(","):
                programs = [program_of(tree, name, topology, options.compiled) for tree in (base, other)]
                found = list(first_differences(*programs))
                differ |= bool(found)
                print(
                    f"{name} on {topology}: {len(programs[0])} lines, {'differ' if found else 'equal'}",
                    *found,
                    sep="\n  ",
                )
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
