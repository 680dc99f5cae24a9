"""Adapters in the layout of PEFT (huggingface/peft): adapter_config.json and adapter_model.safetensors.

    save(folder, config, factors, rank=16, alpha=32.0, base="exported")
    factors, rank, alpha = load(folder, config)

A kernel's official name in `names` gives the module's; PEFT puts `base_model.model.` before it and keeps the factors as
`.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank], one pair a layer. The names of an adapter of the LLM alone
are the same for the whole model and for its LLM as Qwen2ForCausalLM (`convert export --llm_only`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save as to_bytes

from mimo_jax.cli import UserError
from mimo_jax.interop import configs, hf, names, trained
from mimo_jax.interop.names import Row
from mimo_jax.interop.safetensors_files import WeightFolder, write_bytes, write_json
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.objectives import lora
from mimo_jax.training import lora as runs
from mimo_jax.training.checkpoints import Checkpoints, latest_step
from mimo_jax.training.meta import Meta

Folder = str | os.PathLike[str]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What changes the meaning of the factors and has no counterpart here, with the value that leaves it out.
_WITHOUT: Mapping[str, Any] = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
}


def save(
    folder: Folder,
    config: MimoAudioConfig,
    factors: Any,
    *,
    rank: int,
    alpha: float,
    base: str,
    dtype: str | None = None,
) -> None:
    """Writes an adapter.

    Args:
      folder: made if needed; an earlier adapter in it is replaced.
      config: of the whole model.
      factors: tree of an adapter (`objectives.lora`), host arrays or such that are read when they are used.
      rank, alpha: of the factors; the product counts alpha / rank.
      base: what adapter_config.json names as the base, a folder or a repository of the hub.
      dtype: of the tensors; None = as they are.
    """
    rows = {row.path: row for row in names.lm_rows(config)}
    tensors: dict[str, np.ndarray] = {}
    modules = []
    for path, pair in sorted(lora.pairs(factors).items()):
        row = rows[path]
        for letter, factor in zip("AB", pair, strict=True):
            array = np.asarray(factor)
            array = array.astype(jnp.dtype(dtype or array.dtype), copy=False)
            for name, matrix in zip(_tensors(row, letter), array[None] if row.layers is None else array, strict=True):
                tensors[name] = np.ascontiguousarray(matrix.T)
        modules.append(re.escape(row.official.removesuffix(".weight")).replace(r"\{layer\}", r"\d+"))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG).unlink(missing_ok=True)  # comes back last: without it the folder is unfinished
    # The library's own writer leaves a file that only its owner may read.
    write_bytes(target / WEIGHTS, to_bytes(tensors, metadata={"format": "pt"}))
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        # A string is matched with whole names: in a list, "q_proj" would mean the patch models' projections, too.
        "target_modules": "|".join(modules),
        "init_lora_weights": True,
        "inference_mode": True,
        "use_rslora": False,
    }
    write_json(target / CONFIG, values | dict(_WITHOUT))


def load(folder: Folder, config: MimoAudioConfig) -> tuple[Any, int, float]:
    """(factors, rank, alpha) of an adapter for a model of this configuration.

    Args:
      folder: as PEFT or `save` writes it; the module names are those of the whole model or of its LLM.
      config: of the whole model.

    Returns:
      factors: tree of float32 host arrays. alpha: such that the product counts alpha / rank, also where PEFT divides by
      the root of the rank (rsLoRA).

    Raises:
      UserError: a file that is missing or damaged, an adapter of another kind, tensors that do not fit the model.
    """
    values = _read_config(folder)
    rank, alpha = int(values["r"]), float(values["lora_alpha"])
    if values.get("use_rslora"):
        alpha *= math.sqrt(rank)
    weights = WeightFolder(folder)
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(hf.lm_shapes(config)).items()}
    flat: dict[tuple[str, ...], np.ndarray] = {}
    problems, left = [], set(weights.shapes)
    for row in names.lm_rows(config):
        if row.axes != names.LINEAR:
            continue
        *_, fan_in, fan_out = shapes[row.path]
        wanted = {name: (rank, fan_in) for name in _tensors(row, "A")}
        wanted |= {name: (fan_out, rank) for name in _tensors(row, "B")}
        if not left & set(wanted):
            continue
        left -= set(wanted)
        wrong = [f"missing: {name} {list(wanted[name])}" for name in wanted if name not in weights.shapes]
        wrong += [
            f"wrong shape: {name} is {list(weights.shapes[name])}, the model asks for {list(shape)}"
            for name, shape in wanted.items()
            if name in weights.shapes and tuple(weights.shapes[name]) != shape
        ]
        problems += wrong
        if not wrong:
            for letter, factor in zip("AB", lora.FACTORS, strict=True):
                read = np.stack([weights.read(name).astype(np.float32).T for name in _tensors(row, letter)])
                flat[(*row.path, factor)] = read[0] if row.layers is None else read
    problems += [f"unknown: {name} {list(weights.shapes[name])}" for name in sorted(left)]
    if problems or not flat:
        lines = "\n  ".join([*(problems or ["no factors at all"])[:20], *(["..."] if len(problems) > 20 else [])])
        raise UserError(f"{folder}: its tensors are not those of an adapter of this model:\n  {lines}")
    return traverse_util.unflatten_dict(flat), rank, alpha


def export_run(
    model_dir: Folder, folder: Folder, base: Folder | None = None, name: str | None = None, dtype: str | None = None
) -> None:
    """Writes the adapter of a LoRA run's newest checkpoint; see `save` and `trained.load_adapter`."""
    config, factors, adapter = trained.load_adapter(model_dir, base)
    save(folder, config, factors, rank=adapter.rank, alpha=adapter.alpha, base=name or adapter.base, dtype=dtype)


def import_adapter(folder: Folder, base: Folder, model_dir: Folder, empty_token_id: int | None = None) -> None:
    """Makes a LoRA run of an adapter: its checkpoint of step 0 is exported, served and gone on from like any other.

    Args:
      folder: the adapter.
      base: run or folder in the released layout of the whole model that it belongs to.
      model_dir: to make.
      empty_token_id: id of `<|empty|>`, where `base` is a folder that does not say.

    Raises:
      UserError: a checkpoint is there already, the base is no language model, or the adapter does not fit it.
    """
    if latest_step(Path(model_dir)) is not None:
        raise UserError(f"{model_dir}: holds a checkpoint already; name another folder, or remove it")
    config: MimoAudioConfig
    if trained.is_run(base):
        kind, config, params = trained.load_run(base)
    else:
        kind = configs.kind_of(configs.read_config(base))
        if kind == "lm":
            config, params = hf.load_lm(base, empty_token_id=empty_token_id, lazily=True)
    if kind != "lm":
        raise UserError(f"{base}: no whole MiMo-Audio language model; give the folder or run of one with --base")
    factors, rank, alpha = load(folder, config)
    paths = sorted("/".join(path) for path in lora.pairs(factors))
    adapter = runs.Adapter(str(Path(base).absolute()), runs.fingerprint(base), rank, alpha, tuple(paths))
    Path(model_dir).mkdir(parents=True, exist_ok=True)
    adapter.write(model_dir)
    checkpoints = Checkpoints(Path(model_dir), asynchronous=False)
    values = configs.lm_values(config, str(params["embed_tokens"].dtype))
    checkpoints.save({"params": jax.tree.map(jnp.asarray, factors)}, Meta(step=0, model=values))
    checkpoints.close()


def _tensors(row: Row, letter: str) -> list[str]:
    return [f"{_PREFIX}{name.removesuffix('.weight')}.lora_{letter}.weight" for name in row.tensors]


def _read_config(folder: Folder) -> Mapping[str, Any]:
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: missing; give the folder of an adapter as PEFT saves it")
    try:
        values = json.loads(path.read_text("utf-8"))
        kind, rank, alpha = values.get("peft_type"), int(values.get("r", 0)), float(values.get("lora_alpha", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a PEFT configuration ({error}); copy or download it again") from error
    if kind != "LORA" or rank < 1 or alpha <= 0:
        raise UserError(f"{path}: peft_type = {kind}, r = {rank}, lora_alpha = {alpha}; only LoRA can be read")
    for name, without in _WITHOUT.items():
        if (values.get(name) or without) != without:
            raise UserError(
                f"{path}: {name} = {values[name]!r} cannot be read; merge the adapter into its base with PEFT "
                "(merge_and_unload) and import the merged model"
            )
    return values
