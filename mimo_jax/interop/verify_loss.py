"""The output arrays of a training loss's golden folder: losses and gradients of our objective, by official name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.interop import hf, names, trees
from mimo_jax.interop.configs import Folder
from mimo_jax.interop.golden import Golden
from mimo_jax.interop.verify_lm import Arrays, empty_token_id, grids
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.objectives.language_model import LanguageModelObjective

IGNORED = -100  # label of what is no target


def compute(weights: Folder, golden: Golden) -> Arrays:
    """Every output array of the golden folder that can be computed, by name."""
    config, params = hf.load_lm(weights, empty_token_id=empty_token_id(weights, golden))
    result: Arrays = {}
    for name, variant in sorted({tuple(array.split(".")[:2]) for array in golden.outputs}):
        if variant not in ("released", "zeroed"):
            continue
        objective = _objective(dataclasses.replace(config, released_text_embedding=variant == "released"), golden)
        arrays = _case(objective, params, _batch(config, golden, name), golden)
        result |= {f"{name}.{variant}.{array}": value for array, value in arrays.items()}
    return result


def _objective(config: MimoAudioConfig, golden: Golden) -> LanguageModelObjective:
    options: dict[str, Any] = {}
    if "speech_loss_weights" in golden.run:
        text_weight, *codebook_weights = (float(part) for part in golden.run["speech_loss_weights"].split("-"))
        options |= {"text_weight": text_weight, "codebook_weights": tuple(codebook_weights)}
    if "empty_loss_weight" in golden.run:
        options["empty_weight"] = float(golden.run["empty_loss_weight"])
    return LanguageModelObjective(config, **options)


def _batch(config: MimoAudioConfig, golden: Golden, name: str) -> Arrays:
    try:
        grid, label_grid, mask = (golden.inputs[f"{name}.{part}"] for part in ("input_ids", "labels", "attention_mask"))
    except KeyError as error:
        raise UserError(f"{golden.folder}: inputs.npz has no {error}") from error
    text, audio = grids(grid, config.group_size)
    labels, label_codes = grids(label_grid, config.group_size)
    is_target = labels != IGNORED
    is_patch = labels == config.empty_token_id
    # Labels are the inputs under a mask; anything else is no pretraining batch and has no place in our format.
    if np.any(text[is_target] != labels[is_target]) or np.any(audio[is_patch] != label_codes[is_patch]):
        raise UserError(f"{golden.folder}: labels of {name} differ from its inputs; only masked inputs can be targets")
    positions = np.broadcast_to(np.arange(text.shape[1], dtype=np.int32), text.shape)
    return {"text": text, "audio": audio, "segment_ids": mask, "positions": positions, "loss_mask": is_target}


def _case(objective: LanguageModelObjective, params: Any, batch: Arrays, golden: Golden) -> Arrays:
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
    return arrays | _gradients(objective.model, gradients, golden)


def _gradients(config: MimoAudioConfig, gradients: Any, golden: Golden) -> Arrays:
    """Gradients by official tensor name, cut to the rows that the golden folder keeps, and their norms."""
    tensors, fetch = trees.official_tensors(names.lm_rows(config), traverse_util.flatten_dict(gradients))
    official = {name: fetch(name) for name in tensors}
    rows = golden.run.get("gradient_rows_kept", {})
    norms = {name: np.linalg.norm(gradient.astype(np.float64)) for name, gradient in official.items()}
    order = golden.run.get("grad_norms_parameters", sorted(official))
    arrays = {f"grad.{name}": gradient[rows[name]] if name in rows else gradient for name, gradient in official.items()}
    arrays["grad_norms"] = np.asarray([norms[name] for name in order])
    arrays["grad_norm"] = np.sqrt(np.sum(np.square(arrays["grad_norms"])))
    return arrays
