"""The output arrays of a training loss's golden folder: losses and gradients of our objective, by official name."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mimo_jax.interop import hf, names, trees
from mimo_jax.interop.configs import Folder
from mimo_jax.interop.golden import Arrays, Computed, Golden, Unfit, entry
from mimo_jax.interop.verify_lm import empty_token_id, grids, split
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.objectives.language_model import LanguageModelObjective

IGNORED = -100  # label of what is no target


def compute(weights: Folder, golden: Golden) -> Computed:
    """Every output array of the golden folder that can be computed."""
    config, params = hf.load_lm(weights, empty_token_id=empty_token_id(weights, golden))
    computed = Computed()
    found = (re.match(r"([^.]+)\.(released|zeroed)\.", array) for array in golden.outputs)
    for name, variant in sorted({(match[1], match[2]) for match in found if match}):
        case = f"{name}.{variant}"
        with computed.group(case):
            objective = _objective(dataclasses.replace(config, released_text_embedding=variant == "released"), golden)
            arrays, gradients = _case(objective, params, _batch(config, golden, name))
            computed.arrays |= {f"{case}.{array}": value for array, value in arrays.items()}
            _gradients(config, gradients, golden, case, computed)
    return computed


def _objective(config: MimoAudioConfig, golden: Golden) -> LanguageModelObjective:
    """With the weights of run.json; without them those of the paper, where they fit."""
    default, run = LanguageModelObjective(config), golden.run
    weights = [default.text_weight, *default.codebook_weights]
    if "speech_loss_weights" in run:
        given = entry(run, "speech_loss_weights", str)
        try:
            weights = [float(part) for part in given.split("-")]
        except ValueError:
            raise Unfit(f"run.json: speech_loss_weights is {given!r}, expected numbers joined by '-'") from None
    if len(weights) != 1 + config.audio_channels:
        raise Unfit(
            f"run.json: speech_loss_weights has {len(weights)} numbers, expected 1 for the text and "
            f"{config.audio_channels} for the codebooks"
            if "speech_loss_weights" in run
            else "run.json has no speech_loss_weights"
        )
    empty = run.get("empty_loss_weight", default.empty_weight)
    if not isinstance(empty, int | float):
        raise Unfit(f"run.json: empty_loss_weight is {empty!r}, expected a number")
    return dataclasses.replace(
        default, text_weight=weights[0], codebook_weights=tuple(weights[1:]), empty_weight=float(empty)
    )


def _batch(config: MimoAudioConfig, golden: Golden, name: str) -> Arrays:
    text, audio = grids(golden, config, f"{name}.input_ids")
    grid = golden.input(f"{name}.labels", *golden.inputs[f"{name}.input_ids"].shape, integers=True)
    labels, label_codes = split(config, grid, f"{name}.labels")
    mask = golden.input(f"{name}.attention_mask", *text.shape, integers=True).astype(np.int32)
    is_target = labels != IGNORED
    is_patch = labels == config.empty_token_id
    # Labels are the inputs under a mask; anything else is no pretraining batch and has no place in our format.
    if np.any(text[is_target] != labels[is_target]) or np.any(audio[is_patch] != label_codes[is_patch]):
        raise Unfit(f"{name}.labels differ from {name}.input_ids; only masked inputs can be targets")
    positions = np.broadcast_to(np.arange(text.shape[1], dtype=np.int32), text.shape)
    return {"text": text, "audio": audio, "segment_ids": mask, "positions": positions, "loss_mask": is_target}


def _case(objective: LanguageModelObjective, params: Any, batch: Arrays) -> tuple[Arrays, Any]:
    """(losses and counts, gradients of the parameters)."""

    def loss(p: Any, x: Any) -> tuple[jax.Array, Any]:
        value, (_, metrics) = objective.loss(p, {}, x, jax.random.key(0), jnp.float32(0))
        return value, metrics

    @jax.jit
    def run(p: Any, x: Any) -> Any:
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(p, x)
        parts = objective.losses(p, x, objective.trains_audio)
        return value, metrics, gradients, {f.name: getattr(parts, f.name) for f in dataclasses.fields(parts)}

    value, metrics, gradients, parts = jax.device_get(run(params, batch))
    targets = batch["loss_mask"].copy()
    targets[:, 0] = False
    is_empty = batch["text"] == objective.model.empty_token_id
    patches = np.argwhere(targets & is_empty)
    arrays = {
        "loss": value,
        "text_loss": metrics["text_loss"],
        "channel_losses": np.stack([metrics[f"codebook_loss_{c + 1}"] for c in range(objective.model.audio_channels)]),
        "text_nll": parts["text_nll"][:, 1:],
        "text_weight_sum": parts["text_weight"].sum(),
        "audio_nll": parts["audio_nll"][parts["patch_mask"]],
        "patch_index": patches,
        "n_patches": np.asarray(len(patches)),
        "n_frames": np.asarray(len(patches) * objective.model.group_size),
        "n_text_targets": (targets & ~is_empty).sum(),
        "n_empty_targets": (targets & is_empty).sum(),
    }
    return arrays, gradients


def _gradients(config: MimoAudioConfig, gradients: Any, golden: Golden, case: str, computed: Computed) -> None:
    """Gradients by official tensor name, cut to the rows that the golden folder keeps, and their norms."""
    tensors, fetch = trees.official_tensors(names.lm_rows(config), traverse_util.flatten_dict(gradients))
    official = {name: fetch(name) for name in tensors}
    for name, gradient in official.items():
        with computed.group(f"{case}.grad.{name}"):
            computed.arrays[f"{case}.grad.{name}"] = _kept(gradient, name, golden, f"{case}.grad.{name}")
    norms = {name: np.linalg.norm(gradient.astype(np.float64)) for name, gradient in official.items()}
    order = sorted(official)
    with computed.group(f"{case}.grad_norms"):
        order = entry(golden.run, "grad_norms_parameters", list)
        unknown = [name for name in order if name not in official]
        if unknown:
            order = sorted(official)
            raise Unfit(f"run.json: grad_norms_parameters names {unknown[0]}, which is no parameter")
        computed.arrays[f"{case}.grad_norms"] = np.asarray([norms[name] for name in order])
    computed.arrays[f"{case}.grad_norm"] = np.sqrt(np.sum(np.square([norms[name] for name in order])))


def _kept(gradient: np.ndarray, name: str, golden: Golden, array: str) -> np.ndarray:
    """The rows of a gradient that the golden folder keeps of it."""
    if "gradient_rows_kept" not in golden.run and golden.outputs.get(array, gradient).shape == gradient.shape:
        return gradient
    kept = entry(golden.run, "gradient_rows_kept", dict)
    if name not in kept:
        return gradient
    rows = entry(kept, name, list, "gradient_rows_kept of run.json")
    if not all(type(row) is int and 0 <= row < len(gradient) for row in rows):
        raise Unfit(f"gradient_rows_kept of run.json: rows of {name} must be in 0..{len(gradient) - 1}")
    return gradient[np.asarray(rows, np.int64)]
