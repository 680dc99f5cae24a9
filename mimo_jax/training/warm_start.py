"""Starting a stage from the parameters of an earlier one."""

from __future__ import annotations

import logging
from typing import Any

import jax
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.objectives.base import Objective
from mimo_jax.training.checkpoints import load_params
from mimo_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def apply(objective: Objective, state: TrainState, model_dir: str, abstract: TrainState) -> TrainState:
    """`state` with the parameters (and non-gradient state) of the run in `model_dir`.

    An objective whose trees differ from the source's brings its own mapping as a method
    `warm_start(params, mutable, source_params, source_mutable) -> (params, mutable)`; otherwise arrays are taken by
    name and every parameter must be found.

    Raises:
      UserError: no checkpoint, or a parameter that is missing or has another shape there.
    """
    source_params, source_mutable, meta = load_params(model_dir)
    mapping = getattr(objective, "warm_start", None)
    if mapping is not None:
        params, mutable = mapping(state.params, state.mutable, source_params, source_mutable)
    else:
        params = _by_name(state.params, source_params, model_dir)
        mutable = _by_name(state.mutable, source_mutable, model_dir) if source_mutable else state.mutable
    logger.info("started from %s, step %d", model_dir, meta.step)
    shardings = jax.tree.map(lambda array: array.sharding, abstract)
    return state.replace(
        params=jax.device_put(params, shardings.params), mutable=jax.device_put(mutable, shardings.mutable)
    )


def _by_name(target: Any, source: Any, model_dir: str) -> Any:
    wanted = traverse_util.flatten_dict(target, sep="/")
    found = traverse_util.flatten_dict(source, sep="/")
    for name, array in wanted.items():
        if name not in found:
            raise UserError(f"{model_dir}: its checkpoint has no {name}; init_from must be a run of the same model")
        if found[name].shape != array.shape:
            raise UserError(f"{model_dir}: {name} has shape {found[name].shape}, this run needs {array.shape}")
    return traverse_util.unflatten_dict({name: found[name] for name in wanted}, sep="/")
