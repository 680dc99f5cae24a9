"""Starting a stage from parameters that are there: of an earlier stage, or of a folder in the released layout."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.objectives.base import Objective
from mimo_jax.objectives.lora import BASE, Lora
from mimo_jax.training import lora
from mimo_jax.training.checkpoints import stored_params
from mimo_jax.training.state import TrainState

logger = logging.getLogger(__name__)

_READERS = 4
"""Arrays that are read at a time, by each process."""


def apply(objective: Objective, state: TrainState, source: str, abstract: TrainState) -> TrainState:
    """`state` with the parameters (and non-gradient state) of `source`; the optimiser's state is as it was.

    Every process reads its own shards, array by array. An objective whose trees differ from the source's brings its
    own mapping as a method `warm_start(params, mutable, source_params, source_mutable) -> (params, mutable)`, which
    gets whole arrays on the host; otherwise arrays are taken by name and every parameter must be found. One that sets
    `starts_from_average` gets the moving average of the parameters where the source kept one, as its export has it. A
    LoRA run as source counts as the merged model; a LoRA run as target takes the source as its base.

    Args:
      objective: of this stage.
      state: fresh; its parameters' memory is given back before others take their place.
      source: MODEL_DIR of a run, or a folder in the released layout.
      abstract: shapes, dtypes and shardings of the state.

    Raises:
      UserError: nothing to start from, another configuration, or a parameter that is missing or has another shape.
    """
    if isinstance(objective, Lora):
        return _with_base(objective, state, source, abstract)
    found_params, found_mutable = parameters(objective, source, getattr(objective, "starts_from_average", False))
    mapping = getattr(objective, "warm_start", None)
    if mapping is not None:
        given = jax.tree.map(np.asarray, (found_params, found_mutable))
        params, mutable = mapping(state.params, state.mutable, *given)
        params, mutable = jax.tree.map(
            lambda x, like: jax.device_put(x.astype(like.dtype), like.sharding),
            (params, mutable),
            (abstract.params, abstract.mutable),
        )
    else:
        wanted_params = _by_name(abstract.params, found_params, source)
        wanted_mutable = _by_name(abstract.mutable, found_mutable, source) if found_mutable else {}
        jax.tree.map(lambda array: array.delete(), state.params)
        params = _read(wanted_params, abstract.params)
        mutable = _read(wanted_mutable, abstract.mutable) if found_mutable else state.mutable
    logger.info("parameters of %s", source)
    return state.replace(params=params, mutable=mutable)


def parameters(objective: Any, source: str | Path, averaged: bool) -> tuple[Any, Any]:
    """(params, mutable) of a run's newest checkpoint or of a folder in the released layout; nothing is read yet.

    Args:
      objective: its model decides what a folder must hold.
      source: the run or folder; of a LoRA run, the merged parameters.
      averaged: give the moving average of the parameters where the run kept one.

    Raises:
      UserError: nothing there, another model, or a LoRA run whose base is not there.
    """
    if (Path(source) / "config.json").is_file():
        return _released(objective, str(source))
    params, mutable, _ = stored_params(source, averaged)
    adapter = lora.located(source)
    return (params if adapter is None else whole(objective, adapter, params)), mutable


def whole(objective: Any, adapter: lora.Adapter, params: Any) -> Any:
    """The model that a LoRA run's factors `params` make of their base; nothing is read yet."""
    base, _ = parameters(objective, adapter.base, averaged=True)
    return lora.merged(base, params, adapter.scale)


def read_base(objective: Lora, source: str | Path, abstract: Any) -> Any:
    """The frozen parameters of a LoRA run, into shards and dtypes of `abstract`."""
    found, _ = parameters(objective, source, objective.starts_from_average)
    return _read(_by_name(abstract, found, str(source)), abstract)


def host_base(objective: Lora, source: str | Path) -> Any:
    """The frozen parameters of a LoRA run on the default device, in the dtype that the run keeps them in."""
    found, _ = parameters(objective, source, objective.starts_from_average)
    return jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x), objective.base_dtype or objective.compute.param_dtype), found
    )


def _with_base(objective: Lora, state: TrainState, source: str, abstract: TrainState) -> TrainState:
    params = state.params
    if objective.adapter_from is not None:
        given = lora.located(objective.adapter_from, source)
        if given is None:
            raise UserError(f"Lora.adapter_from = {objective.adapter_from}: no LoRA run and no imported adapter")
        if (given.rank, given.alpha) != (objective.rank, objective.alpha):
            raise UserError(
                f"Lora.adapter_from = {objective.adapter_from}: an adapter of rank {given.rank}, alpha {given.alpha}; "
                f"this run has rank {objective.rank}, alpha {objective.alpha}: set Lora.rank and Lora.alpha to match"
            )
        found, _, _ = stored_params(objective.adapter_from, averaged=True)
        params = _read(_by_name(abstract.params, found, objective.adapter_from), abstract.params)
    jax.tree.map(lambda array: array.delete(), state.mutable[BASE])
    base = read_base(objective, source, abstract.mutable[BASE])
    logger.info("frozen parameters of %s", source)
    return state.replace(params=params, mutable={**state.mutable, BASE: base})


def _by_name(target: Any, source: Any, name_of_source: str) -> Any:
    wanted = traverse_util.flatten_dict(target, sep="/")
    found = traverse_util.flatten_dict(source, sep="/")
    for name, array in wanted.items():
        if name not in found:
            raise UserError(f"{name_of_source} has no {name}; init_from must be a run or folder of the same model")
        if found[name].shape != array.shape:
            raise UserError(f"{name_of_source}: {name} has shape {found[name].shape}, this run needs {array.shape}")
    return traverse_util.unflatten_dict({name: found[name] for name in wanted}, sep="/")


def _read(stored: Any, abstract: Any) -> Any:
    """Stored arrays (with `part`) into shards and dtypes of `abstract`."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as threads:
        reading = jax.tree.map(lambda like, array: threads.submit(_read_array, array, like), abstract, stored)
        return jax.tree.map(lambda future: future.result(), reading)


def _read_array(stored: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    parts: dict[str, np.ndarray] = {}  # copies on several devices are read once

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(like.shape)
        if str(index) not in parts:
            parts[str(index)] = np.asarray(stored.part(index)).astype(like.dtype, copy=False)
        return parts[str(index)]

    return jax.make_array_from_callback(like.shape, like.sharding, part)


def _released(objective: Any, folder: str) -> tuple[Any, Any]:
    """(params, mutable) of a folder in the released layout, nothing read yet."""
    from mimo_jax.interop import configs, hf

    kind = configs.kind_of(configs.read_config(folder))
    if kind == "tokenizer":
        tokenizer, variables = hf.load_tokenizer(folder, lazily=True)
        _compare(tokenizer, getattr(objective, "config", None), folder)
        return {"tokenizer": variables.pop("params")}, variables
    model = getattr(objective, "model", None)
    if kind != "lm":
        raise UserError(
            f"{folder}: a plain language model; make a whole model of it first: python -m mimo_jax.convert import "
            f"--weights={folder} --audio_config=FOLDER --out=DIR, then init_from DIR"
        )
    config, params = hf.load_lm(folder, empty_token_id=getattr(model, "empty_token_id", None), lazily=True)
    _compare(config, model, folder)
    return params, {}


def _compare(theirs: Any, ours: Any, folder: str) -> None:
    if type(theirs) is not type(ours):
        raise UserError(f"{folder} holds a {type(theirs).__name__}, this stage trains a {type(ours).__name__}")
    names = [field.name for field in dataclasses.fields(theirs) if field.name != "initializer_range"]
    wrong = [name for name in names if getattr(theirs, name) != getattr(ours, name)]
    if wrong:
        lines = ", ".join(f"{name} = {getattr(theirs, name)} (this run: {getattr(ours, name)})" for name in wrong)
        raise UserError(f"{folder} is another model than this run's: {lines}; choose the model's gin file to match")
