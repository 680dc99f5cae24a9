"""Looks at a batch that a run was stopped for: its loss and gradients by part of the model, from the last checkpoint.

python -m mimo_jax.replay --model_dir=MODEL_DIR --data_step=N
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.objectives import lora
from mimo_jax.training import guards, warm_start
from mimo_jax.training import lora as lora_runs
from mimo_jax.training.checkpoints import load_params
from mimo_jax.training.optimizer import global_norm


def replay(objective: Any, params: Any, mutable: Any, batch: dict[str, np.ndarray], seed: int, step: int) -> list[str]:
    """Lines about one batch: the loss, each metric, each part's gradient norm, and every array that is not finite.

    Args:
      objective: of the run.
      params, mutable: of a checkpoint.
      batch: a global batch.
      seed, step: what the step's random numbers follow from.
    """
    rng = jax.random.fold_in(jax.random.key(seed), step)
    (loss, (_, metrics)), grads = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(
        params, mutable, batch, rng, jnp.float32(0.5)
    )
    lines = [f"loss {float(loss):.6g}"]
    lines += [f"  {name} {float(value):.6g}" for name, value in sorted(metrics.items())]
    lines += [f"gradient norm of {name} {float(global_norm(tree)):.6g}" for name, tree in grads.items()]
    for what, tree in (("parameter", params), ("gradient", grads), ("input", dict(batch))):
        for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if jnp.issubdtype(array.dtype, jnp.floating) and not bool(jnp.isfinite(array).all()):
                lines.append(f"not finite: {what} {jax.tree_util.keystr(path, simple=True, separator='/')}")
    return lines


def saved_batch(model_dir: str, data_step: int) -> dict[str, np.ndarray]:
    """The global batch that all processes saved. Raises UserError if there is none."""
    paths = sorted(Path(model_dir).glob(f"bad_batch_{data_step}_*.npz"), key=lambda path: int(path.stem.split("_")[-1]))
    if not paths:
        there = sorted(path.name for path in Path(model_dir).glob("bad_batch_*"))
        raise UserError(f"{model_dir}: no batch of data step {data_step} was saved; there are: {there}")
    return guards.load_batch(paths)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 = a mistake in the input, named in one message."""
    parser = argparse.ArgumentParser(
        prog="python -m mimo_jax.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_dir", required=True, help="MODEL_DIR of the run")
    parser.add_argument("--data_step", required=True, type=int, help="as the run's message names it")
    options = parser.parse_args(arguments)
    try:
        batch = saved_batch(options.model_dir, options.data_step)
        params, mutable, meta = load_params(options.model_dir)
        objective, seed = _configured(meta.config, options.model_dir)
        adapter = lora_runs.located(options.model_dir)
        if adapter is not None:
            mutable = {**mutable, lora.BASE: warm_start.host_base(objective, adapter.base)}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"parameters of step {meta.step}")
    print("\n".join(replay(objective, params, mutable, batch, seed, meta.step)))
    return 0


def _configured(config: str, model_dir: str) -> tuple[Any, int]:
    """(objective, seed) of a run's gin text."""
    import gin

    from mimo_jax.train import train

    try:
        gin.parse_config(config)
        # Of train's arguments only the objective is made: the others would open the data.
        bindings = gin.get_bindings(train, resolve_references=False)
        seed = bindings.get("seed", 0)
        return bindings["objective"].scoped_configurable_fn(), getattr(seed, "scoped_configurable_fn", lambda: seed)()
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{model_dir}: the run's configuration cannot be rebuilt: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
