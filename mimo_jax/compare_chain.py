"""Compares models that were measured on the same held-out speech: figures, paired differences, thinking.

    python -m mimo_jax.compare_chain base=DIR sft=DIR --out=DIR

Each DIR is what `python -m mimo_jax.evaluate_chain` wrote. The others are compared with the first system. Prints a
Markdown table and writes it with the numbers: OUT/comparison.md and OUT/comparison.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimo_jax.cli import UserError

JSON_FILE, TABLE_FILE = "comparison.json", "comparison.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares; returns the exit code (2 = a mistake in the input, named in one message)."""
    parser = argparse.ArgumentParser(
        prog="python -m mimo_jax.compare_chain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("systems", nargs="+", metavar="NAME=DIR", help="a system and the folder of its results")
    parser.add_argument("--out", required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        print(compare(_named(options.systems), options.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(folders: dict[str, str], out: str) -> str:
    """Writes the comparison of `chain_comparison.compare` under ``out`` and returns its table."""
    from mimo_jax.evaluation import chain_comparison
    from mimo_jax.evaluation.parts import write_json
    from mimo_jax.files import write_text

    found = chain_comparison.compare(folders)
    table = chain_comparison.markdown(found)
    Path(out).mkdir(parents=True, exist_ok=True)
    write_json(Path(out) / JSON_FILE, found)
    write_text(Path(out) / TABLE_FILE, table)
    return table


def _named(given: Sequence[str]) -> dict[str, str]:
    folders: dict[str, str] = {}
    for argument in given:
        name, separator, folder = argument.partition("=")
        if not (name and separator and folder):
            raise UserError(f"{argument!r}: write NAME=DIR, the system's name and the folder of its results")
        if name in folders:
            raise UserError(f"{argument!r}: {name!r} is {folders[name]} already; give each system a name of its own")
        folders[name] = folder
    return folders


if __name__ == "__main__":
    sys.exit(main())
