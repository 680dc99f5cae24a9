"""The command `mimo-jax`: `mimo-jax train --gin_file=...` is `python -m mimo_jax.train --gin_file=...`.

mimo-jax --help              all commands, one a line
mimo-jax COMMAND --help      what one is for, and its flags (--helpfull: all of them)
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "whole chains": ("quickstart", "train_tokenizer", "pretrain", "post_training", "ladder"),
    "data": ("corpus", "prepare", "synthesise", "mixture"),
    "training": ("train", "supervise", "show_config", "check_run", "compile", "replay"),
    "use": ("generate", "transcribe", "serve", "demo"),
    "measurement": (
        "evaluate",
        "few_shot",
        "evaluate_chain",
        "compare_chain",
        "evaluate_tokenizer",
        "probe_tokenizer",
        "report",
    ),
    "weights": ("convert",),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names; `-` may stand for `_` in it.

    Args:
      argv: the command and its arguments; default: those of the process.

    Raises:
      SystemExit: code 2 for an unknown command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "-help", "--helpfull", "help"):
        print(overview())
        return
    if arguments[0] == "--version":
        from mimo_jax import __version__

        print(f"mimo_jax {__version__}")
        return
    name = arguments[0].replace("-", "_")
    known = [command for group in COMMANDS.values() for command in group]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: mimo-jax {arguments[0]}: no such command{hint} (mimo-jax --help lists them)", file=sys.stderr)
        sys.exit(2)
    # This process becomes that command: signals, `multiprocessing` and help texts are those of `python -m`.
    os.execv(sys.executable, [sys.executable, "-m", f"mimo_jax.{name}", *arguments[1:]])


def overview() -> str:
    """Every command with the first line of its module's docstring, read without importing it."""
    width = max(len(name) for group in COMMANDS.values() for name in group)
    lines = ["mimo-jax COMMAND [flags]    (mimo-jax COMMAND --help explains one)"]
    for group, names in COMMANDS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<{width}}  {_summary(name)}" for name in names]
    return "\n".join(lines)


def _summary(name: str) -> str:
    spec = importlib.util.find_spec(f"mimo_jax.{name}")
    assert spec is not None and spec.origin is not None, name
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".")


if __name__ == "__main__":
    main()
