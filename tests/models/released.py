"""The tiny released-layout model of the golden folder, as configuration and parameter tree."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from flax import traverse_util

from mimo_jax.interop import hf, names, trees
from mimo_jax.models.mimo_audio import MimoAudioConfig


def grid_arrays(grid: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Exchange grids [..., 1 + C, T * G] -> (text [..., T], audio [..., T, G, C])."""
    *batch, rows, width = grid.shape
    cells = np.asarray(grid, np.int32).reshape(*batch, rows, width // group_size, group_size)
    return cells[..., 0, :, 0].copy(), np.moveaxis(cells[..., 1:, :, :], -3, -1).copy()


def load(folder: Path, **overrides) -> tuple[MimoAudioConfig, dict]:
    special = json.loads((folder / "special_tokens.json").read_text())
    config, params = hf.load_lm(folder, empty_token_id=special["empty_idx"])
    return dataclasses.replace(config, **overrides), params


def by_official_name(config: MimoAudioConfig, tree: dict) -> dict[str, np.ndarray]:
    """A tree like the parameters (their gradients, for instance) as arrays under the official names and layouts."""
    tensors, fetch = trees.official_tensors(names.lm_rows(config), traverse_util.flatten_dict(tree))
    return {name: fetch(name) for name in tensors}
