"""A scaling ladder: trains a grid of sizes and token budgets, fits the loss, predicts the run that was held back.

    python -m mimo_jax.ladder --gin_file=gin/runs/ladder.gin --gin.OUT=DIR --gin.PREPARED=PREPARED

The gin file names the run file of the trainings, the bindings of each size, the budgets, and the held-out losses that
are fitted, one law for each: text, and every codebook. OUT/SIZE-TOKENS is a run's MODEL_DIR. The runs are processes of
their own, one after the other; interrupted, the same command goes on. OUT/ladder.json and OUT/ladder.html hold laws,
intervals, and the prediction for the held-back run beside what it measured.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax import cli
from mimo_jax.chain import Chain, Stage, compiling_environment, ends_with_a_message
from mimo_jax.evaluation import ladder_page
from mimo_jax.evaluation.ladder_page import Ladder, Rung
from mimo_jax.files import write_text

# Tables that are looked up take part in no product: they are no measure of what a model computes.
_LOOKED_UP = re.compile(r"embed_tokens|speech_embeddings_\d")


def ladder(
    *,
    out: str,
    run_file: str,
    sizes: Mapping[str, Mapping[str, Any]],
    budgets: Sequence[float],
    losses: Mapping[str, str],
    bindings: Mapping[str, Any] | None = None,
    held_back: Sequence[tuple[str, float]] = (),
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains what is missing, fits, writes ladder.json and ladder.html.

    Args:
      out: folder of everything.
      run_file: gin file of `mimo_jax.train`, with the macros MODEL_DIR, BUDGET_TOKENS and SEED.
      sizes: name -> gin bindings of that size.
      budgets: tokens (text positions and patches) of each run of a size.
      losses: name in the results -> key of the held-out metrics ("asr/text_loss", "tts/codebook_loss_1").
      bindings: gin bindings of all runs.
      held_back: (size, budget) of runs that are trained but not fitted; default: the last size with the last budget.
      resamples: of the bootstrap.
      seed: of every run, and of the bootstrap.

    Returns:
      The content of ladder.json.

    Raises:
      UserError: a run that failed, a metric that is not there, too few runs for a fit.
    """
    held = [tuple(pair) for pair in held_back] or [(list(sizes)[-1], budgets[-1])]
    if unknown := [pair for pair in held if pair[0] not in sizes or pair[1] not in budgets]:
        raise cli.UserError(f"ladder.held_back: {unknown} are not among the sizes {list(sizes)} and budgets {budgets}")
    folder = Path(out).absolute()
    common = {**(bindings or {}), "SEED": seed}
    stages = []
    for size, own in sizes.items():
        for budget in budgets:
            given = {**common, **own, "MODEL_DIR": str(folder / name_of(size, budget)), "BUDGET_TOKENS": budget}
            arguments = ["-m", "mimo_jax.train", f"--gin_file={run_file}"]
            arguments += [
                f"--gin.{key}={value if isinstance(value, str) else repr(value)}" for key, value in given.items()
            ]
            stages.append(Stage(name_of(size, budget), functools.partial(list, arguments)))
    chain = Chain(folder, compiling_environment())
    chain.run(stages, independent=True)
    rungs = [
        rung_of(folder / name_of(size, budget), size, losses, (size, budget) in held)
        for size in sizes
        for budget in budgets
    ]
    try:
        climbed = Ladder.of(rungs, list(losses), resamples, seed)
    except ValueError as error:
        raise cli.UserError(f"ladder: {error}") from error
    result = climbed.to_dict() | {"seconds": chain.seconds}
    write_text(folder / "ladder.json", json.dumps(result, indent=2) + "\n")
    write_text(folder / "ladder.html", ladder_page.render(climbed, chain.seconds))
    print(ladder_page.table(climbed))
    print(folder / "ladder.html")
    return result


def name_of(size: str, budget: float) -> str:
    """The folder of a run: "s-1200000"."""
    return f"{size}-{budget:.0f}"


def rung_of(model_dir: Path, size: str, losses: Mapping[str, str], held_back: bool) -> Rung:
    """What a finished run measured. Raises UserError."""
    from mimo_jax.evaluation.report import read_curve
    from mimo_jax.training.checkpoints import stored_params

    params, _, meta = stored_params(model_dir)
    if not meta.finished:
        raise cli.UserError(f"{model_dir}: the run has not ended; start the ladder again")
    last: dict[str, Any] = next(
        (r for r in reversed(read_curve(model_dir)) if any(key in r for key in losses.values())), {}
    )
    if missing := [key for key in losses.values() if key not in last]:
        known = sorted(key for key in last if "loss" in key)
        raise cli.UserError(f"{model_dir}/metrics.jsonl: no {', '.join(missing)} at its end; it has {', '.join(known)}")
    return Rung(
        size=size,
        parameters=sum(count for name, count in _sizes(params) if not _LOOKED_UP.search(name)),
        tokens=meta.text_tokens + meta.audio_tokens,
        losses={name: float(last[key]) for name, key in losses.items()},
        held_back=held_back,
    )


def _sizes(params: Any) -> list[tuple[str, int]]:
    """(name, number of values) of each parameter of a stored tree."""
    import jax
    import numpy as np

    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: hasattr(x, "shape"))
    return [(jax.tree_util.keystr(path), int(np.prod(leaf.shape))) for path, leaf in leaves]


if __name__ == "__main__":
    # gin binds the module's function, not the copy that `python -m` runs as __main__.
    from mimo_jax.ladder import ladder as configured_ladder

    with ends_with_a_message():
        cli.run(configured_ladder)
