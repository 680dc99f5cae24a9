"""Shows what a mixture gives: per task its rate, its realised share of tokens, fill and epochs, from the plans alone.

    python -m mimo_jax.mixture --prepared DIR --mixture joint --batch_rows 16 --context 1024 --steps 1000
    python -m mimo_jax.mixture --gin_file=RUN.gin --gin.PREPARED=DIR --steps 1000      # as the run will read

Nothing is read but the index of rows, so that a thousand steps take seconds whatever the batch. Flags win over gin.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mimo_jax import cli
from mimo_jax.data import loader


@dataclasses.dataclass(frozen=True)
class TaskShare:
    """One line of the table.

    Attributes:
        task: its name.
        declared: rate in the mixture, of 1.
        rate: the rate after the tilt to the share of text, of 1.
        share: of the positions that were counted.
        text, audio: positions that were counted.
        fill: share of used positions of the task's rows.
        rows: packed rows of the task.
        epochs: how often each of its rows has come, on average.
    """

    task: str
    declared: float
    rate: float
    share: float
    text: int
    audio: int
    fill: float
    rows: int
    epochs: float


def measure(source: loader.PackedSource, steps: int, start: int = 0) -> list[TaskShare]:
    """What the global batches of ``steps`` steps hold, by task."""
    counts = np.zeros((len(source.tasks), 2), np.int64)
    seen = np.zeros(len(source.tasks), np.int64)
    for step in range(start, start + steps):
        places = source.places(step)
        counts += np.asarray(list(source.task_counts(step).values()))
        seen += np.bincount(places.tasks, minlength=len(seen))
    rows, declared, fill = source.task_rows, source.declared_rates, source.fill
    return [
        TaskShare(
            task=task,
            declared=declared[task],
            rate=float(source.rates[i]),
            share=float(counts[i].sum() / counts.sum()),
            text=int(counts[i, 0]),
            audio=int(counts[i, 1]),
            fill=fill[task],
            rows=rows[task],
            epochs=float(seen[i] / rows[task]),
        )
        for i, task in enumerate(source.tasks)
    ]


def table(shares: Sequence[TaskShare], requested: float) -> str:
    """The lines of tasks, and what text and audio were asked to have and have."""
    lines = [
        f"{'task':<32}{'declared':>10}{'rate':>8}{'tokens':>8}{'text':>14}{'audio':>14}{'fill':>8}{'rows':>12}{'epochs':>9}"
    ]
    for one in shares:
        lines.append(
            f"{one.task:<32}{one.declared:>10.4f}{one.rate:>8.4f}{one.share:>8.4f}{one.text:>14d}{one.audio:>14d}"
            f"{one.fill:>8.4f}{one.rows:>12d}{one.epochs:>9.2f}"
        )
    text, audio = sum(one.text for one in shares), sum(one.audio for one in shares)
    realised = text / (text + audio)
    lines.append(f"{'all':<58}{text:>14d}{audio:>14d}")
    lines.append(
        f"text : audio  requested {requested:.4f} : {1 - requested:.4f}  realised {realised:.4f} : {1 - realised:.4f}  "
        f"off by {abs(realised - requested):.4f}"
    )
    return "\n".join(lines)


_FLAGS: dict[str, tuple[str, str]] = {
    "prepared": ("folder", "prepared folder."),
    "mixture": ("mixture", "mixture or task."),
    "split": ("split", "split of the examples."),
    "overlong": ("overlong", "what becomes of examples longer than the context."),
}
_NUMBERS: dict[str, tuple[str, str]] = {
    "batch_rows": ("batch_size", "rows of the global batch."),
    "context": ("context", "positions of a row."),
    "seed": ("seed", "of the order."),
}


def show() -> None:
    """Print the table of the source that flags and gin name."""
    import gin
    from absl import flags

    named = {argument: flags.FLAGS[flag].value for flag, (argument, _) in {**_FLAGS, **_NUMBERS}.items()}
    given: dict[str, Any] = {argument: value for argument, value in named.items() if value is not None}
    try:
        make = gin.get_configurable(loader.PackedSource)
    except ValueError:  # no gin file speaks of it
        make = loader.PackedSource
    try:
        source = make(**given)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise cli.UserError(str(error.args[0])) from error
    print(table(measure(source, flags.FLAGS.steps), source.text_share))


def main() -> None:
    """Command line."""
    import gin
    from absl import flags

    for name, (_, meaning) in _FLAGS.items():
        flags.DEFINE_string(name, None, meaning)
    for name, (_, meaning) in _NUMBERS.items():
        flags.DEFINE_integer(name, None, meaning)
    flags.DEFINE_integer("steps", 1000, "steps to count.", lower_bound=1)
    gin.external_configurable(show, module="mimo_jax.mixture")
    cli.run(show)


if __name__ == "__main__":
    # gin registers the module's function, not that of __main__.
    from mimo_jax import mixture as _module

    _module.main()
