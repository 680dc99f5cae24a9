"""The tiny released-layout model of the golden folder, as configuration and parameter tree."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mimo_jax.models.mimo_audio import MimoAudioConfig


def grid_arrays(grid: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Exchange grids [..., 1 + C, T * G] -> (text [..., T], audio [..., T, G, C])."""
    *batch, rows, width = grid.shape
    cells = np.asarray(grid, np.int32).reshape(*batch, rows, width // group_size, group_size)
    return cells[..., 0, :, 0].copy(), np.moveaxis(cells[..., 1:, :, :], -3, -1).copy()


def _stack(tensors: dict[str, np.ndarray], prefix: str) -> dict:
    names = {
        "input_norm/scale": "input_layernorm.weight",
        "post_attention_norm/scale": "post_attention_layernorm.weight",
        "attention/out_proj/kernel": "self_attn.o_proj.weight",
        **{f"attention/{x}_proj/kernel": f"self_attn.{x}_proj.weight" for x in "qkv"},
        **{f"attention/{x}_proj/bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
        **{f"{x}_proj/kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    }
    depth = len([key for key in tensors if key.startswith(f"{prefix}.layers.") and "input_layernorm" in key])
    tree: dict = {"final_norm": {"scale": tensors[f"{prefix}.norm.weight"]}, "layers": {}}
    for ours, theirs in names.items():
        stacked = jnp.stack([tensors[f"{prefix}.layers.{i}.{theirs}"] for i in range(depth)])
        if ours.endswith("kernel"):
            stacked = stacked.swapaxes(1, 2)
        node = tree["layers"]
        *path, leaf = ours.split("/")
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = stacked
    return tree


def load(folder: Path, **overrides) -> tuple[MimoAudioConfig, dict]:
    from safetensors.numpy import load_file

    raw = json.loads((folder / "config.json").read_text())
    special = json.loads((folder / "special_tokens.json").read_text())
    fields = {name for name in MimoAudioConfig.__dataclass_fields__ if name in raw}
    values = {name: raw[name] for name in fields}
    for name in ("delay_pattern", "speech_vocab_size", "speech_zeroemb_idx"):
        values[name] = tuple(int(x) for x in raw[name].split("-"))
    config = MimoAudioConfig(**{**values, "empty_token_id": special["empty_idx"], **overrides})
    return config, parameters(load_file(folder / "model.safetensors"), config)


def parameters(t: dict, config: MimoAudioConfig) -> dict:
    """Official tensors -> our tree. Traceable, so that gradients can be taken with respect to the official tensors."""
    params: dict = {
        "embed_tokens": t["model.embed_tokens.weight"],
        "lm_head": {"kernel": t["lm_head.weight"].T},
        "speech_group_downcast": {"kernel": t["speech_group_downcast.weight"].T},
        "hidden_states_downcast": {"kernel": t["hidden_states_downcast.weight"].T},
        "llm": _stack(t, "model"),
        "patch_encoder": _stack(t, "input_local_transformer"),
        "patch_decoder": _stack(t, "local_transformer"),
    }
    for c in range(config.audio_channels):
        params[f"speech_embeddings_{c}"] = {"embedding": t[f"speech_embeddings.{c}.weight"]}
        params[f"local_heads_{c}"] = {"kernel": t[f"local_transformer_lm_heads.{c}.weight"].T}
    return params
