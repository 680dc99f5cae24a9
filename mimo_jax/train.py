"""Trains one stage from a gin file, or goes on where it was interrupted.

    python -m mimo_jax.train --gin_file=gin/runs/quickstart/joint.gin --gin.OUT=/tmp/quickstart

A run file names the objective (language model, audio tokenizer, recogniser), the data, the budget in tokens or steps,
the optimiser's groups and the mesh. MODEL_DIR receives checkpoints, `config.gin`, `metrics.jsonl`, TensorBoard files.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
from flax import linen as nn

from mimo_jax import cli
from mimo_jax.models import layers
from mimo_jax.objectives.base import Objective
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training import loop, warm_start
from mimo_jax.training.checkpoints import Checkpoints, Meta
from mimo_jax.training.metrics import MetricWriter
from mimo_jax.training.optimizer import FROZEN, Optimizer
from mimo_jax.training.retention import Keep
from mimo_jax.training.schedule import Budget
from mimo_jax.training.state import TrainState, make_train_step, new_state

logger = logging.getLogger(__name__)


def train(
    *,
    model_dir: str,
    name: str,
    objective: Objective,
    source: loop.Source,
    optimizer: Optimizer,
    budget: Budget,
    eval_sources: Mapping[str, loop.Source] | None = None,
    hardware: mesh_lib.Hardware = mesh_lib.Hardware(),
    intervals: loop.Intervals = loop.Intervals(),
    init_from: str | None = None,
    export: Callable[[Objective, Any, Any], None] | None = None,
    seed: int = 0,
    keep: Keep = Keep(),
) -> TrainState:
    """Trains until the budget is spent.

    Args:
      model_dir: folder of this run.
      name: name of the stage in logs and metrics.
      objective: loss and initialisation.
      source: training batches as a function of the step.
      optimizer: parameter groups and schedule.
      budget: tokens or steps.
      eval_sources: held-out batches by name; a metric `m` on source `s` is reported as `s/m`.
      hardware: mesh and sharding rules.
      intervals: steps between log lines, evaluations, checkpoints.
      init_from: MODEL_DIR of an earlier stage whose parameters this one starts from (only on a fresh start).
      export: called as `export(objective, params, mutable)` once the budget is spent, e.g. an
        `interop.exporters` function that writes the released layout.
      seed: of initialisation and of everything random in a step.
      keep: which checkpoints are kept.

    Returns:
      The final state.
    """
    # --- mesh ---
    mesh = hardware.make_mesh()
    logger.info("%s: mesh %s on %s", name, dict(mesh.shape), mesh.devices.flat[0].device_kind)
    Path(model_dir).mkdir(parents=True, exist_ok=True)

    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        # --- shapes and shardings: nothing is allocated yet ---
        first_batch = source.batch(0)
        mesh_lib.check_batch(mesh, len(next(iter(first_batch.values()))) * jax.process_count())
        batch_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first_batch)
        params, mutable = jax.eval_shape(objective.init, jax.random.key(seed), batch_shapes)
        transformation = optimizer.build(layers.unbox(params))
        state_shapes = jax.eval_shape(functools.partial(new_state, transformation=transformation), params, mutable)
        shardings = _state_shardings(params, state_shapes, mesh, hardware)
        abstract_state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state_shapes, shardings
        )
        _log_overview(name, layers.unbox(params), optimizer)

        # --- restore: 1. resume this run; 2. warm start from another; 3. from scratch ---
        checkpoints = Checkpoints(model_dir, keep=keep)
        restored = checkpoints.restore_latest(abstract_state)
        if restored is not None:
            state, meta = restored
            logger.info("%s: resumed at step %d", name, meta.step)
        else:
            meta = Meta(step=0, config=gin.config_str())
            state = jax.jit(
                lambda rng, batch: new_state(*objective.init(rng, batch), transformation), out_shardings=shardings
            )(jax.random.key(seed), mesh_lib.put_batch(first_batch, mesh))
            if init_from:
                state = warm_start.apply(objective, state, init_from, shardings)
        if meta.finished:
            logger.info("%s: already finished at step %d", name, meta.step)
            if export is not None:
                export(objective, state.params, state.mutable)
            return state
        (Path(model_dir) / "config.gin").write_text(gin.config_str())

        # --- functions ---
        train_step = jax.jit(
            make_train_step(objective, transformation, seed), donate_argnums=0, out_shardings=(shardings, None)
        )
        evaluation = loop.Evaluation(
            jax.jit(objective.evaluate), eval_sources or {}, intervals.evaluation_batches, mesh
        )

        # --- loop ---
        writer = MetricWriter(model_dir, meta.step)
        state = loop.run(
            state,
            meta,
            train_step=train_step,
            source=source,
            evaluation=evaluation,
            budget=budget,
            intervals=intervals,
            checkpoints=checkpoints,
            writer=writer,
            mesh=mesh,
            name=name,
        )
        writer.close()
        checkpoints.close()
        if export is not None:
            export(objective, state.params, state.mutable)
    return state


def _state_shardings(boxed_params: Any, state_shapes: TrainState, mesh: Any, hardware: mesh_lib.Hardware) -> TrainState:
    """Parameters by the rules, optimiser moments like their parameter, everything else replicated."""
    by_params = mesh_lib.tree_shardings(boxed_params, mesh, hardware.rules)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    names = {tuple(path): sharding for path, sharding in _leaves(by_params)}

    def place(path: tuple, leaf: Any) -> jax.sharding.Sharding:
        # A moment's path ends with its parameter's path inside the optimiser state.
        keys = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        for start in range(len(keys)):
            if keys[start:] in names and len(leaf.shape) == len(names_shape[keys[start:]]):
                return names[keys[start:]]
        return replicated

    names_shape = {path: leaf.shape for path, leaf in _leaves(layers.unbox(boxed_params))}
    return state_shapes.replace(
        step=replicated,
        skipped=replicated,
        params=by_params,
        mutable=jax.tree.map(lambda _: replicated, state_shapes.mutable),
        opt_state=jax.tree_util.tree_map_with_path(place, state_shapes.opt_state),
    )


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    return [
        (tuple(str(getattr(key, "key", key)) for key in path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _log_overview(name: str, params: Any, optimizer: Optimizer) -> None:
    """Parameters per top-level module and how many of them train."""
    labels = jax.tree.leaves(optimizer.labels(params))
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)]
    trained = sum(size for size, label in zip(sizes, labels, strict=True) if label != FROZEN)
    logger.info("%s: %.3f M parameters, %.3f M trained", name, sum(sizes) / 1e6, trained / 1e6)
    for module, tree in params.items():
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
        logger.info("  %-28s %10.3f M", module, count / 1e6)


if __name__ == "__main__":
    # gin binds the module's function, not the copy that `python -m` runs as __main__.
    from mimo_jax.train import train as configured_train

    cli.run(configured_train)
