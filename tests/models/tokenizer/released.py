"""Loads a tokenizer of the released layout into the variables of the model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mimo_jax.models.tokenizer import TokenizerConfig


def load(folder: Path) -> tuple[TokenizerConfig, dict]:
    config = TokenizerConfig.from_dict(json.loads((folder / "config.json").read_text()))
    variables: dict = {"params": {}, "codebooks": {}, "constants": {}}
    stacked: dict[str, dict[int, np.ndarray]] = {}

    def put(collection: str, path: str, value: np.ndarray) -> None:
        tree = variables[collection]
        *parents, leaf = path.split("/")
        for part in parents:
            tree = tree.setdefault(part, {})
        tree[leaf] = value

    for name, value in load_file(folder / "model.safetensors").items():
        found = re.fullmatch(r"encoder\.quantizer\.vq\.layers\.(\d+)\._codebook\.(\w+)", name)
        if found:
            put("codebooks", f"quantizer/layers_{found[1]}/{found[2]}", value)
            continue
        if name.endswith("istft.window"):
            put("constants", "vocoder/window", value)
            continue
        name = name.replace("decoder.vocoder.", "vocoder.").replace("head.out", "out")
        name = name.replace("down_sample_layer.0", "down_sample")
        *path, leaf = name.split(".")
        if leaf == "weight":
            leaf = "scale" if "norm" in path[-1] else "kernel"
        if leaf == "kernel":
            transposed = "dconv" in name  # [in, out, k], otherwise [out, in, k]
            value = value.T if value.ndim == 2 else value.transpose(2, 0, 1) if transposed else value.transpose(2, 1, 0)
        if "layers" in path:
            at = path.index("layers")
            key = "/".join([*path[:at], "transformer", "layers", *path[at + 2 :], leaf])
            stacked.setdefault(key, {})[int(path[at + 1])] = value
        else:
            put("params", "/".join([*path, leaf]), value)
    for key, values in stacked.items():
        put("params", key, np.stack([values[i] for i in range(len(values))]))
    return config, variables
