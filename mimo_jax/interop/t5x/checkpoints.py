"""t5x's checkpoints made of ours, and ours made of t5x's: the parameters of a language model, in both directions.

A t5x checkpoint is a folder `checkpoint_STEP`, written and read here by t5x's own checkpoint manager, so that its older
layout is read, too. The model's `config.json` lies beside it: a run leaves it there (`write_configuration`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import core
from t5x import checkpoints, checkpoints_utils, gin_utils, train_state, utils

from mimo_jax.cli import UserError
from mimo_jax.files import write_text
from mimo_jax.interop import configs
from mimo_jax.interop.t5x import axes
from mimo_jax.interop.t5x.partitioner import HardwarePartitioner
from mimo_jax.models import layers
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives.base import must_fit
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel.mesh import Hardware


def write_configuration(model_dir: str, summary_writer: Any, step: int, *, model: MimoAudioConfig) -> None:
    """t5x's `summarize_config_fn`: the gin text as t5x writes it, and the model's `config.json` beside it.

    The latter is what a checkpoint of the run is converted by.
    """
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    if jax.process_index() == 0:
        _write_config(Path(model_dir), configs.lm_values(model, "float32"))


def parameters_alone(
    found: Mapping[str, Any], wanted: Mapping[str, Any], *, is_resuming: bool = False
) -> Mapping[str, Any]:
    """Of `RestoreCheckpointConfig.state_transformation_fns`: takes a checkpoint's parameters and nothing else.

    Optimiser, schedule and step begin anew, as with INIT_FROM of our trainer. A run that goes on takes everything.
    """
    del wanted
    return found if is_resuming else {"target": found["target"]}


def load(folder: str | Path, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(contents of config.json, parameters on the host, step) of a t5x checkpoint.

    Args:
      folder: MODEL_DIR of a t5x run, or one of its folders `checkpoint_STEP`.
      step: which checkpoint; None = the newest.

    Raises:
      UserError: no checkpoint, no config.json, or parameters of another model.
    """
    run = Path(folder).absolute()
    if run.name.startswith("checkpoint_") and run.name.removeprefix("checkpoint_").isdigit():
        run, step = run.parent, int(run.name.removeprefix("checkpoint_"))
    steps = checkpoints_utils.all_steps(str(run))
    if not steps or (step is not None and step not in steps):
        raise UserError(f"{folder}: no such t5x checkpoint; {run} has those of steps {sorted(steps)}")
    step = max(steps) if step is None else step
    values = configs.read_config(run)
    model = configs.lm_config(values, run, configs.empty_token_id(values, run))
    shapes, partitioner = _state(model)
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(run), shapes, partitioner)
    try:
        restored = manager.restore(path=str(run / f"checkpoint_{step}"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{run / f'checkpoint_{step}'}: does not fit the model of {run / configs.CONFIG} "
            f"({' '.join(str(error).split())[:400]})"
        ) from error
    finally:
        manager.close()
    params = jax.tree.map(np.asarray, core.unfreeze(restored.params))
    _must_fit(core.unfreeze(shapes.params), params, run / f"checkpoint_{step}")
    return values, params, step


def save(folder: str | Path, model: MimoAudioConfig, params: Any, dtype: str | None = None) -> Path:
    """Writes parameters as the t5x checkpoint of step 0 with config.json beside it; the checkpoint's folder.

    Args:
      folder: to write to; give it to a t5x run as RESTORE.
      model: their configuration.
      params: our tree; arrays may be numpy's, jax's, or read when they are used.
      dtype: of the stored parameters; None = as they are.

    Raises:
      UserError: the folder holds checkpoints already, or the parameters are those of another model.
    """
    root = Path(folder).absolute()
    if checkpoints_utils.all_steps(str(root)):
        raise UserError(f"{folder}: holds t5x checkpoints already; name another folder, or remove them")
    shapes, partitioner = _state(model)
    # Read one by one: what a checkpoint or a folder holds is no array before.
    host = jax.tree.map(lambda x: np.asarray(x).astype(x.dtype if dtype is None else jnp.dtype(dtype)), params)
    _must_fit(core.unfreeze(shapes.params), host, folder)
    root.mkdir(parents=True, exist_ok=True)
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(root), shapes, partitioner)
    manager.save(shapes.replace(step=jnp.zeros((), jnp.int32), params=core.freeze(host)))
    manager.wait_until_finished()
    manager.close()
    stored = {str(leaf.dtype) for leaf in jax.tree.leaves(host)}
    _write_config(root, configs.lm_values(model, stored.pop() if len(stored) == 1 else "float32"))
    return root / "checkpoint_0"


def _state(model: MimoAudioConfig) -> tuple[train_state.InferenceState, HardwarePartitioner]:
    """Shapes of a state without optimiser, and a partitioner for one process."""
    if jax.process_count() > 1:
        raise UserError("conversion of t5x checkpoints is the work of one process")
    partitioner = HardwarePartitioner(Hardware())
    initializer = utils.TrainStateInitializer(None, _Initial(model).variables, {}, partitioner)
    return initializer.global_train_state_shape, partitioner


class _Initial:
    """What t5x's `TrainStateInitializer` wants: a method of a model that gives variables."""

    def __init__(self, model: MimoAudioConfig):
        self._objective = LanguageModelObjective(model, Compute(attention="xla"))

    def variables(self, rng: jax.Array, input_shapes: Any, input_types: Any = None) -> dict[str, Any]:
        """Parameters and their axes."""
        del input_shapes, input_types
        boxed, _ = self._objective.init(rng, {})
        return {"params": layers.unbox(boxed), "params_axes": axes.params_axes(boxed)}


def _must_fit(wanted: Any, found: Any, source: str | Path) -> None:
    try:
        must_fit(wanted, found)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def _write_config(folder: Path, values: Mapping[str, Any]) -> None:
    write_text(folder / configs.CONFIG, json.dumps(values, indent=2) + "\n")
