"""The output arrays of a language model's golden folder, computed with our model and our generation engine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data.sequence import flatten_grid, from_grid
from mimo_jax.interop import configs, hf
from mimo_jax.interop.configs import Folder
from mimo_jax.interop.golden import Arrays, Computed, Golden, Unfit, check_range, entry, read_object
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig


def empty_token_id(weights: Folder, golden: Golden) -> int | None:
    """Id of `<|empty|>`: as the weights' folder has it, else from the golden folder.

    special_tokens.json of the weights' folder comes first, then what else that folder has (None: `hf.load_lm` reads it
    there), then the golden folder's special_tokens.json or the one that its run.json names.

    Raises:
      UserError: a special_tokens.json that is broken or does not have it.
    """
    places = [Path(weights)]
    if configs.read_config(weights).get("empty_token_id") is None and not configs.has_text_tokenizer(weights):
        places += [golden.folder, (golden.folder / str(golden.run.get("special_tokens", ""))).parent]
    for place in places:
        path = place / "special_tokens.json"
        if path.is_file():
            try:
                return entry(read_object(path), "empty_idx", int, str(path))
            except Unfit as error:
                raise UserError(str(error)) from error
    return None


def grids(golden: Golden, config: MimoAudioConfig, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Input grids [B, 1 + C, T * G] -> (text [B, T], audio [B, T, G, C]), with ids that the model has."""
    text, audio = split(config, golden.input(name, None, 1 + config.audio_channels, None, integers=True), name)
    _check_ids(config, text, audio, name)
    return text, audio


def split(config: MimoAudioConfig, grid: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """As `from_grid`, of several grids, whatever the ids."""
    if grid.shape[-1] % config.group_size:
        raise Unfit(
            f"{name} of inputs.npz: width {grid.shape[-1]} is no multiple of the group size {config.group_size}"
        )
    text, audio = zip(*(from_grid(row, config.group_size) for row in grid), strict=True)
    return np.stack(text), np.stack(audio)


def _check_ids(config: MimoAudioConfig, text: np.ndarray, audio: np.ndarray, name: str) -> None:
    if (text < 0).any() or (text >= config.vocab_size).any():
        raise Unfit(f"{name} of inputs.npz: text ids must be in 0..{config.vocab_size - 1}")
    check_range(audio[text == config.empty_token_id], config.speech_vocab_size, f"{name} of inputs.npz")


def compute(weights: Folder, golden: Golden) -> Computed:
    """Every output array of the golden folder that can be computed."""
    config, params = hf.load_lm(weights, empty_token_id=empty_token_id(weights, golden))
    model, computed = _Model(config, params), Computed()

    @functools.cache
    def forward(prefix: str) -> Arrays:
        variant = model
        if prefix == "causal_variant":
            variant = _Model(dataclasses.replace(config, input_full_attention=False), params)
        grid = "input_ids_odd" if prefix == "odd" else "input_ids"
        return _forward(variant, prefix, *grids(golden, config, grid))

    def local_hidden() -> np.ndarray:
        return forward("batch")["batch.local_hidden"]

    for prefix in golden.prefixes:
        with computed.group(prefix):
            if prefix in ("batch", "odd", "causal_variant"):
                computed.arrays |= forward(prefix)
            elif prefix in ("tf", "tf_random"):
                targets = _targets(golden, config, f"{prefix}_targets")
                if prefix == "tf":
                    index = golden.input("tf_index", len(targets), 2, integers=True)
                    local = local_hidden()
                    if (index < 0).any() or (index >= local.shape[:2]).any():
                        raise Unfit(f"tf_index of inputs.npz names positions outside of {list(local.shape[:2])}")
                    local = local[tuple(index.T)]
                else:
                    local = golden.input("tf_random_local_hidden", len(targets), config.local_dim)
                computed.arrays |= _teacher_forced(model, prefix, local, targets)
            elif prefix == "greedy_local":
                local = local_hidden()
                codes, margin = _greedy_patches(model, local.reshape(-1, config.local_dim))
                computed.arrays["greedy_local.tokens"] = codes.reshape(*local.shape[:2], *codes.shape[1:])
                computed.arrays["greedy_local.margin"] = margin.reshape(*local.shape[:2], *codes.shape[1:])
            elif prefix.startswith("gen_"):
                computed.arrays |= _generated(model, prefix, golden)
    return computed


def _targets(golden: Golden, config: MimoAudioConfig, name: str) -> np.ndarray:
    codes = golden.input(name, None, config.group_size, config.audio_channels, integers=True)
    check_range(codes, config.speech_vocab_size, f"{name} of inputs.npz")
    return codes.astype(np.int32)


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
    config, codes = model.config, targets
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
    from mimo_jax.inference.engine import Engine
    from mimo_jax.inference.requests import Request

    config, options = model.config, entry({prefix: {}, **golden.run}, prefix, dict)
    name = str(options.get("prompt") or ("prompt_audio" if prefix == "gen_audio" else "prompt_text"))
    prompt = golden.input(name, 1 + config.audio_channels, None, integers=True)
    text, audio = (part[0] for part in split(config, prompt[None], name))
    _check_ids(config, text, audio, name)
    if "max_new" not in options | golden.run:
        raise Unfit(f"run.json has no max_new for {prefix}")
    limits = {"min_new": 0, **golden.run, **options}
    max_new, min_new = (entry(limits, limit, int, f"run.json ({prefix})") for limit in ("max_new", "min_new"))
    stop_tokens = tuple(entry({"stop_tokens": [], **options}, "stop_tokens", list, prefix))
    if not all(type(token) is int and 0 <= token < config.vocab_size for token in stop_tokens):
        raise Unfit(f"{prefix} of run.json: stop_tokens must be ids in 0..{config.vocab_size - 1}")
    try:
        request = Request(text, audio, stop_tokens=stop_tokens, max_new=max_new, min_new=min_new)
        answer = Engine(config, model.params).generate([request])[0]
    except ValueError as error:
        raise Unfit(f"{prefix}: {error}") from error

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
    scores[:min_new, list(stop_tokens)] = -np.inf
    local = model.run("local_hidden", driving)[is_audio]
    margins = _greedy_patches(model, local)[1] if len(local) else np.asarray(np.inf)
    arrays = {
        "new": new,
        "flat_ids": flatten_grid(np.concatenate([prompt, new], axis=1)),
        "text_margin": _ahead(scores),
        "local_margin_min": margins.min(),
        "stop_tokens": np.asarray(stop_tokens),
        "min_new": np.asarray(min_new),
        "max_new": np.asarray(max_new),
    }
    return {f"{prefix}.{name}": array for name, array in arrays.items()}
