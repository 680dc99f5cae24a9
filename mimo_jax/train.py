r"""Trains one stage from a gin file, or goes on where it was interrupted.

    python -m mimo_jax.train --gin_file=gin/runs/quickstart/understanding.gin --gin.MODEL_DIR=DIR \
        --gin.PREPARED=PREPARED

On several hosts, start it on each: see `parallel.start`. `--profile=100:5` traces steps 100 to 104 for xprof.

A run file names the objective (language model, audio tokenizer, recogniser), the data, the budget in tokens or steps,
the optimiser's groups and the mesh. MODEL_DIR receives checkpoints, `config.gin`, `metrics.jsonl`, TensorBoard files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mimo_jax import cli
from mimo_jax.cli import UserError
from mimo_jax.objectives.base import Objective
from mimo_jax.objectives.lora import Lora
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.parallel import start
from mimo_jax.training import loop, lora, program, utilization, warm_start
from mimo_jax.training.checkpoints import Checkpoints, stored_params
from mimo_jax.training.evaluation import Evaluation, Hook
from mimo_jax.training.guards import Guards
from mimo_jax.training.meta import Meta
from mimo_jax.training.metrics import MetricWriter
from mimo_jax.training.optimizer import FROZEN, Optimizer
from mimo_jax.training.profiling import Profile, Profiler
from mimo_jax.training.retention import Keep
from mimo_jax.training.run_lock import RunLock
from mimo_jax.training.schedule import Budget
from mimo_jax.training.state import TrainState

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
    guards: Guards = Guards(),
    profile: Profile = Profile(),
    evaluation_hooks: Sequence[Hook] = (),
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
      init_from: where the parameters of a fresh start come from: MODEL_DIR of an earlier stage, or a folder in the
        released layout (config.json and safetensors files). For `Lora` the frozen parameters, at every start; once the
        run has a checkpoint, None means where they were.
      export: called as `export(objective, params, mutable)` on the first process once the budget is spent, with
        arrays of the last checkpoint that are read when they are used; an `interop.exporters` function, for example.
      seed: of initialisation and of everything random in a step.
      keep: which checkpoints are kept.
      guards: what is done about bad steps, and steps that do not end.
      profile: steps that are traced for xprof.
      evaluation_hooks: further evaluations, run behind the held-out losses, of the whole model's parameters.

    Returns:
      The final state.

    Raises:
      UserError: a mistake in the configuration or data, another run in `model_dir`, or a limit that is exceeded; the
        message says which.
      SystemExit: code 75 after a requested stop; the state is saved.
    """
    # --- mesh ---
    mesh = hardware.make_mesh()
    logger.info("%s: mesh %s on %s", name, dict(mesh.shape), mesh.devices.flat[0].device_kind)
    _make_folder(model_dir)
    lock = RunLock.acquire(model_dir) if jax.process_index() == 0 else None

    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        # --- shapes and shardings: nothing is allocated yet ---
        first_batch = source.batch(0)
        stage = program.build(objective, optimizer, hardware, mesh, _global_shapes(first_batch), seed)
        source = _dealt(source, mesh, hardware)
        _log_overview(name, stage.state.params, optimizer)

        # --- restore: the first that applies ---
        # 1. resume: the newest whole checkpoint of this run.
        # 2. warm start: parameters of another run's newest checkpoint; optimiser, schedule and counters begin anew.
        # 3. import: the same from a folder in the released layout.
        # 4. scratch.
        if isinstance(objective, Lora):
            init_from = lora.begin(objective, model_dir, init_from, stage.state.params).base
        checkpoints = _checkpoints(objective, model_dir, keep, init_from)
        restored = checkpoints.restore_latest(stage.state)
        if restored is not None:
            state, meta = restored
            logger.info("%s: resumed at step %d", name, meta.step)
        else:
            meta = Meta(step=0, config=gin.config_str())
            state = stage.init(jax.random.key(seed), mesh_lib.put_batch(first_batch, mesh))
            if init_from:
                state = warm_start.apply(objective, state, init_from, stage.state)

        # --- loop ---
        if meta.finished:
            logger.info("%s: already finished at step %d", name, meta.step)
        else:
            if jax.process_index() == 0:
                (Path(model_dir) / "config.gin").write_text(gin.config_str())
            rows = next(iter(stage.batch.values())).shape[0]
            if isinstance(objective, Lora):
                evaluation_hooks = [lora.on_merged(objective, hook) for hook in evaluation_hooks]
            state = loop.Loop(
                name=name,
                model_dir=model_dir,
                state=state,
                meta=meta,
                train_step=stage.train_step,
                abstract_state=stage.state,
                source=source,
                batch_rows=rows,
                evaluation=Evaluation(
                    stage.evaluate, eval_sources or {}, intervals.evaluation_batches, mesh, evaluation_hooks
                ),
                budget=budget,
                intervals=intervals,
                guards=guards,
                checkpoints=checkpoints,
                keep=keep,
                open_writer=lambda step: MetricWriter(model_dir, step),
                profiler=Profiler(model_dir, profile),
                flops=lambda text, audio: utilization.model_flops(objective, text, audio, stage.batch),
                mesh=mesh,
            ).run()
        checkpoints.close()
        if export is not None:
            _export(export, objective, model_dir)
    if lock is not None:
        lock.release()
    return state


def _make_folder(model_dir: str) -> None:
    if "://" in model_dir:
        raise UserError(
            f"MODEL_DIR = {model_dir}: training writes plain files. "
            "Mount the bucket and name the folder (docs/launching.md)"
        )
    Path(model_dir).mkdir(parents=True, exist_ok=True)


def _checkpoints(objective: Objective, model_dir: str, keep: Keep, init_from: str | None) -> Checkpoints:
    """Of this run; those of adapters go without the frozen parameters."""
    if not isinstance(objective, Lora) or init_from is None:
        return Checkpoints(model_dir, keep=keep)
    return lora.AdapterCheckpoints(model_dir, keep, lambda base: warm_start.read_base(objective, init_from, base))


def _export(export: Callable[[Objective, Any, Any], None], objective: Objective, model_dir: str) -> None:
    """From the last checkpoint, array by array on the first process: no host holds the whole model."""
    params, mutable, _ = stored_params(model_dir, averaged=True)
    if isinstance(objective, Lora):
        adapter = lora.located(model_dir)
        assert adapter is not None
        params, objective = warm_start.whole(objective, adapter, params), objective.objective
    if jax.process_index() == 0:
        export(objective, params, mutable)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("exported")


def _dealt(source: loop.Source, mesh: Mesh, hardware: mesh_lib.Hardware) -> loop.Source:
    """The source with each batch's rows dealt evenly to devices and microbatches, if it knows how."""
    deal = getattr(source, "dealt", None)
    shards = mesh_lib.row_shards(mesh)
    return source if deal is None or shards * hardware.microbatches == 1 else deal(shards, hardware.microbatches)


def _global_shapes(batch: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the batch of all processes, from this one's rows."""
    return {
        name: jax.ShapeDtypeStruct((len(x) * jax.process_count(), *x.shape[1:]), x.dtype) for name, x in batch.items()
    }


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

    def prepare_process() -> None:
        """A run that goes on need not compile again, and joins the other processes."""
        cli.use_compilation_cache()
        start.connect_by_flags()

    start.define_flags()
    cli.run(configured_train, before=prepare_process, short={"profile": "PROFILE"})
