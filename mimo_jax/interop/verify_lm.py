"""The output arrays of a language model's golden folder, computed with our model and our generation engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data.sequence import flatten_grid, from_grid
from mimo_jax.interop import hf
from mimo_jax.interop.configs import Folder
from mimo_jax.interop.golden import Golden
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig

Arrays = dict[str, np.ndarray]


def empty_token_id(weights: Folder, golden: Golden) -> int | None:
    """Id of `<|empty|>` from the golden folder's special_tokens.json (its own, or the one that run.json names).

    None: neither is there, and the weights' folder has to know.
    """
    places = [Path(weights), golden.folder, golden.folder / str(golden.run.get("special_tokens", "")) / ".."]
    for place in places:
        path = place / "special_tokens.json"
        if path.is_file():
            return int(json.loads(path.read_text(encoding="utf-8"))["empty_idx"])
    return None


def grids(grid: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Exchange grids [B, 1 + C, T * G] -> (text [B, T], audio [B, T, G, C])."""
    text, audio = zip(*(from_grid(row, group_size) for row in grid), strict=True)
    return np.stack(text), np.stack(audio)


def compute(weights: Folder, golden: Golden) -> Arrays:
    """Every output array of the golden folder that can be computed, by name."""
    config, params = hf.load_lm(weights, empty_token_id=empty_token_id(weights, golden))
    model = _Model(config, params)
    prefixes = {name.split(".")[0] for name in golden.outputs}
    result: Arrays = {}
    for prefix, grid in (("batch", "input_ids"), ("odd", "input_ids_odd")):
        if prefix in prefixes:
            result |= _forward(model, prefix, *grids(golden.inputs[grid], config.group_size))
    if "causal_variant" in prefixes:
        causal = _Model(dataclasses.replace(config, input_full_attention=False), params)
        result |= _forward(causal, "causal_variant", *grids(golden.inputs["input_ids"], config.group_size))
    if "tf" in prefixes:
        local = result["batch.local_hidden"][tuple(golden.inputs["tf_index"].T)]
        result |= _teacher_forced(model, "tf", local, golden.inputs["tf_targets"])
    if "tf_random" in prefixes:
        local = golden.inputs["tf_random_local_hidden"]
        result |= _teacher_forced(model, "tf_random", local, golden.inputs["tf_random_targets"])
    if "greedy_local" in prefixes:
        local = result["batch.local_hidden"]
        codes, margin = _greedy_patches(model, local.reshape(-1, config.local_dim))
        result["greedy_local.tokens"] = codes.reshape(*local.shape[:2], *codes.shape[1:])
        result["greedy_local.margin"] = margin.reshape(*local.shape[:2], *codes.shape[1:])
    for prefix in sorted(prefixes):
        if prefix.startswith("gen_"):
            result |= _generated(model, prefix, golden)
    return result


class _Model:
    """A model with its parameters; `run` compiles a method (or a function of the module) and calls it."""

    def __init__(self, config: MimoAudioConfig, params: Any):
        self.config, self.params = config, params

    def run(self, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        module = MimoAudio(self.config)
        return jax.device_get(
            jax.jit(lambda p, a: module.apply({"params": p}, *a, method=method, **kwargs))(self.params, args)
        )


def _forward(model: _Model, prefix: str, text: np.ndarray, audio: np.ndarray) -> Arrays:
    config, (batch, length) = model.config, text.shape
    is_audio = (text == config.empty_token_id)[..., None]
    # The reference blanks the codes of text positions before it sums.
    codes = np.where(is_audio[..., None], audio, config.speech_zeroemb_idx).reshape(-1, *audio.shape[2:])
    positions = np.arange(length)[None]
    encoder_in = model.run("patch_encoder_input", codes)
    encoder_out = model.run(lambda m, x: m.patch_encoder(x, jnp.arange(x.shape[1])[None])[0], encoder_in)
    embedded = model.run("embed", text, audio)
    hidden, layers = model.run("backbone", embedded, positions, return_layers=True)
    arrays = {
        "patch_encoder_in": encoder_in.reshape(batch, length, config.group_size, -1),
        "patch_encoder_out": encoder_out.reshape(batch, length, config.group_size, -1),
        "speech_grouped": np.where(is_audio, model.run("encode_patches", codes).reshape(batch, length, -1), 0),
        "inputs_embeds": embedded,
        "hidden": hidden,
        "text_logits": model.run("text_logits", hidden),
        "local_hidden": model.run("local_hidden", hidden),
    }
    arrays |= {f"dbg_layer{i}": x for i, x in enumerate(layers)}
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _teacher_forced(model: _Model, prefix: str, local: np.ndarray, targets: np.ndarray) -> Arrays:
    config, codes = model.config, targets.astype(np.int32)
    logits = model.run("patch_logits", local, codes)
    frame = np.arange(config.patch_steps)[:, None] - np.asarray(config.delay_pattern)
    arrays = {
        "step_in": model.run("patch_step_inputs", local, codes),
        "step_hidden": model.run("patch_hidden", local, codes),
        "step_active": (frame >= 0) & (frame < config.group_size),
        "nll": np.stack([_nll(values, codes[..., c]) for c, values in enumerate(logits)], axis=-1),
    }
    arrays |= {f"logits_c{c}": values for c, values in enumerate(logits)}
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(shifted).sum(-1))
    return log_z - np.take_along_axis(shifted, targets[..., None], -1)[..., 0]


def _greedy_patches(model: _Model, local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy codes [N, G, C] from driving states [N, local_dim], and how far each is ahead of the next one."""
    config = model.config
    codes = np.zeros((len(local), config.group_size, config.audio_channels), np.int32)
    margin = np.zeros(codes.shape, np.float32)
    module = MimoAudio(config)
    logits_of = jax.jit(lambda p, x, y: module.apply({"params": p}, x, y, method="patch_logits"))
    # Step by step: what a step produces is an input of the next; later codes have no influence on it.
    for step in range(config.patch_steps):
        logits = jax.device_get(logits_of(model.params, local, codes))
        for c, delay in enumerate(config.delay_pattern):
            frame = step - delay
            if 0 <= frame < config.group_size:
                scores = np.array(logits[c][:, frame])
                scores[:, config.speech_zeroemb_idx[c]] = -np.inf
                codes[:, frame, c], margin[:, frame, c] = scores.argmax(-1), _ahead(scores)
    return codes, margin


def _ahead(scores: np.ndarray) -> np.ndarray:
    """Best minus second best over the last axis."""
    top = np.partition(scores, -2, axis=-1)[..., -2:]
    return top[..., 1] - top[..., 0]


def _generated(model: _Model, prefix: str, golden: Golden) -> Arrays:
    """A greedy generation through the engine; margins from a pass over what it generated."""
    from mimo_jax.inference.engine import Engine, Request

    config, options = model.config, golden.run.get(prefix, {})
    prompt_name = options.get("prompt") or ("prompt_audio" if prefix == "gen_audio" else "prompt_text")
    if prompt_name not in golden.inputs:
        raise UserError(f"{golden.folder}: inputs.npz has no {prompt_name}, the prompt of {prefix}")
    prompt = golden.inputs[prompt_name]
    text, audio = from_grid(prompt, config.group_size)
    limits = {"max_new": options.get("max_new", golden.run.get("max_new")), "min_new": options.get("min_new", 0)}
    stop_tokens = tuple(options.get("stop_tokens", ()))
    request = Request(text, audio, stop_tokens=stop_tokens, **limits)
    answer = Engine(config, model.params).generate([request])[0]

    is_audio = answer.text == config.empty_token_id
    codes = np.broadcast_to(np.asarray(config.speech_zeroemb_idx, np.int32), (len(is_audio), *audio.shape[1:])).copy()
    codes[is_audio] = answer.codes
    new = np.concatenate(
        [np.repeat(answer.text, config.group_size)[None], np.moveaxis(codes, -1, 0).reshape(codes.shape[-1], -1)]
    )
    whole_text, whole_audio = np.concatenate([text, answer.text]), np.concatenate([audio, codes])
    embedded = model.run("embed", whole_text[None], whole_audio[None])
    hidden, _ = model.run("backbone", embedded, np.arange(len(whole_text))[None])
    driving = hidden[0, len(text) - 1 : -1]
    scores = np.array(model.run("text_logits", driving))
    scores[: limits["min_new"], list(stop_tokens)] = -np.inf
    local = model.run("local_hidden", driving)[is_audio]
    margins = _greedy_patches(model, local)[1] if len(local) else np.asarray(np.inf)
    arrays = {
        "new": new,
        "flat_ids": flatten_grid(np.concatenate([prompt, new], axis=1)),
        "text_margin": _ahead(scores),
        "local_margin_min": margins.min(),
        "stop_tokens": np.asarray(stop_tokens),
        "min_new": np.asarray(limits["min_new"]),
        "max_new": np.asarray(limits["max_new"]),
    }
    return {f"{prefix}.{name}": array for name, array in arrays.items()}
