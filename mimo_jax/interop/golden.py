"""Golden folders: inputs, reference outputs and the tolerances to compare with.

Such a folder holds `inputs.npz`, `outputs.npz`, `tolerances.json` (`atol`, and `rtol` for some arrays) and `run.json`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.interop.configs import Folder


@dataclasses.dataclass(frozen=True)
class Golden:
    """The contents of a golden folder."""

    folder: Path
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    atol: Mapping[str, float]
    rtol: Mapping[str, float]
    run: Mapping[str, Any]


def read_golden(folder: Folder) -> Golden:
    """Reads a golden folder.

    Raises:
      UserError: a file that is missing or unreadable.
    """
    path = Path(folder)
    for name in ("inputs.npz", "outputs.npz", "tolerances.json"):
        if not (path / name).is_file():
            raise UserError(
                f"{path / name}: missing; a golden folder holds inputs.npz, outputs.npz and tolerances.json"
            )
    try:
        arrays = {name: dict(np.load(path / f"{name}.npz")) for name in ("inputs", "outputs")}
        tolerances = json.loads((path / "tolerances.json").read_text(encoding="utf-8"))
        run = json.loads((path / "run.json").read_text(encoding="utf-8")) if (path / "run.json").is_file() else {}
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return Golden(path, **arrays, atol=tolerances.get("atol", {}), rtol=tolerances.get("rtol", {}), run=run)


def kind_of(golden: Golden) -> str:
    """What a golden folder is about: "tokenizer", "lm" or "loss"."""
    names = list(golden.outputs)
    if any(re.match(r"(enc|dec)_\w+\.|e2e\.", name) for name in names):
        return "tokenizer"
    if any(re.match(r"\w+\.(released|zeroed)\.", name) for name in names):
        return "loss"
    if any(re.match(r"(batch|odd|tf\w*|gen_\w+|greedy_local|causal_variant)\.", name) for name in names):
        return "lm"
    raise UserError(f"{golden.folder}: its output arrays are neither a tokenizer's nor a language model's nor a loss's")
