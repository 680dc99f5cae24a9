"""All tasks by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from mimo_jax.cli import UserError
from mimo_jax.evaluation.benchmarks.base import Benchmark


@functools.cache
def tasks() -> Mapping[str, Benchmark]:
    """Name -> benchmark, in the order in which they are listed."""
    from mimo_jax.evaluation.benchmarks import (
        conversion,
        dialogue,
        mmau_pro,
        multiple_choice,
        recordings,
        speech,
        speech_mmlu,
    )

    modules = (speech_mmlu, multiple_choice, mmau_pro, dialogue, speech, conversion, recordings)
    return {made.name: made for module in modules for made in module.benchmarks()}


def chosen(names: str) -> list[Benchmark]:
    """The tasks of a list of names with commas between them.

    Raises:
      UserError: a name that is none, or none at all.
    """
    known = tasks()
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise UserError(f"--tasks: no task {name!r}; `python -m mimo_jax.evaluate --list` shows all")
    if not wanted:
        raise UserError("--tasks is missing; `python -m mimo_jax.evaluate --list` shows what there is")
    return [known[name] for name in dict.fromkeys(wanted)]
