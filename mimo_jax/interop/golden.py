"""Golden folders: inputs, reference outputs and the tolerances to compare with; and what was computed from one.

Such a folder holds `inputs.npz`, `outputs.npz`, `tolerances.json` (`atol`, and `rtol` for some arrays) and, for what
the inputs do not say, `run.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.interop.configs import Folder

T = TypeVar("T")
Arrays = dict[str, np.ndarray]

_KINDS = {int: "a whole number", str: "a string", list: "a list", dict: "an object"}


class Unfit(Exception):
    """Something in a golden folder that a group of its arrays needs is missing or does not fit; named in a line."""


@dataclasses.dataclass(frozen=True)
class Golden:
    """The contents of a golden folder."""

    folder: Path
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    atol: Mapping[str, float]
    rtol: Mapping[str, float]
    run: dict[str, Any]

    @property
    def prefixes(self) -> list[str]:
        """What the names of the output arrays begin with, up to the first dot; sorted."""
        return sorted({name.split(".")[0] for name in self.outputs})

    def input(self, name: str, *shape: int | None, integers: bool = False) -> np.ndarray:
        """An input array of this shape (None = any length but 0); raises Unfit."""
        if name not in self.inputs:
            raise Unfit(f"inputs.npz has no {name}")
        array = self.inputs[name]
        fits = array.ndim == len(shape) and all(
            size == expected if expected is not None else size > 0
            for size, expected in zip(array.shape, shape, strict=True)
        )
        if not fits or (integers and array.dtype.kind not in "biu"):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise Unfit(
                f"{name} of inputs.npz is {array.dtype} {list(array.shape)}, expected {'integers ' * integers}[{sizes}]"
            )
        return array

    def numbers(self, prefix: str) -> list[str]:
        """The numbers N for which there is an input array `prefixN`, in order."""
        found = (re.fullmatch(rf"{re.escape(prefix)}(\d+)", name) for name in self.inputs)
        return sorted((match[1] for match in found if match), key=int)


def entry(values: Mapping[str, Any], name: str, kind: type[T], where: str = "run.json") -> T:
    """An entry of a JSON object, of this type; raises Unfit. `where` is the object's name in the message."""
    if name not in values:
        raise Unfit(f"{where} has no {name}")
    value = values[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Unfit(f"{where}: {name} is {json.dumps(value)[:60]}, expected {_KINDS[kind]}")
    return value


def check_range(codes: np.ndarray, sizes: Sequence[int], name: str) -> None:
    """Raises Unfit for a code [..., n] outside of its codebook, of `sizes` [n]."""
    wrong = (codes < 0) | (codes >= np.asarray(sizes))
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0])
        book = int(place[-1])
        raise Unfit(f"{name}: {codes[place]} of codebook {book + 1} is not in 0..{sizes[book] - 1}")


class Computed:
    """The arrays that were computed from a golden folder, and why others were not.

    Attributes:
      arrays: by the name of the output array.
      reasons: what is missing or does not fit, by an array's name or what stands before a dot in it.
    """

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self.reasons: dict[str, str] = {}

    @contextlib.contextmanager
    def group(self, *names: str) -> Iterator[None]:
        """Computes a group of arrays: an Unfit of the body is the reason of these names."""
        try:
            yield
        except Unfit as error:
            self.reasons |= dict.fromkeys(names, str(error))

    def reason(self, name: str) -> str:
        """Why an array was not computed."""
        parts = name.split(".")
        keys = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.reasons[key] for key in keys if key in self.reasons), "nothing here computes it")


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
    tolerances = read_object(path / "tolerances.json")
    run = read_object(path / "run.json") if (path / "run.json").is_file() else {}
    return Golden(
        path,
        inputs=_read_arrays(path / "inputs.npz"),
        outputs=_read_arrays(path / "outputs.npz"),
        atol=_tolerances(path, tolerances, "atol"),
        rtol=_tolerances(path, tolerances, "rtol"),
        run=run,
    )


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no JSON object")
    return values


def _read_arrays(path: Path) -> Arrays:
    try:
        file = np.load(path)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: holds a single array without a name; save arrays with numpy.savez")
        with file:
            arrays = dict(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path}: {name} is {array.dtype}, not numbers")
    return arrays


def _tolerances(path: Path, values: Mapping[str, Any], kind: str) -> dict[str, float]:
    """The entries that are usable as a tolerance."""
    given = values.get(kind, {})
    if not isinstance(given, dict):
        raise UserError(f"{path / 'tolerances.json'}: {kind} is no JSON object")
    numbers = {k: v for k, v in given.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value) and value >= 0}


def kind_of(golden: Golden) -> str:
    """What a golden folder is about: "tokenizer", "lm" or "loss"."""
    names = list(golden.outputs)
    if any(re.match(r"[^.]+\.(released|zeroed)\.", name) for name in names):
        return "loss"
    if any(re.match(r"((enc|dec|stream)_[^.]+|e2e)\.", name) for name in names):
        return "tokenizer"
    if any(re.match(r"(batch|odd|tf|tf_random|gen_[^.]+|greedy_local|causal_variant)\.", name) for name in names):
        return "lm"
    raise UserError(f"{golden.folder}: its output arrays are neither a tokenizer's nor a language model's nor a loss's")
