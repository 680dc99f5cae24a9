"""Runs of adapters (`objectives.lora`): their checkpoints hold no base, and adapter.json in MODEL_DIR says where it is.

A checkpoint of the base beside each of the adapter's would be a thousand times its size, so the base is read again from
where it was at the start. For that to be exact, adapter.json also keeps a fingerprint of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.files import write_text
from mimo_jax.objectives import lora
from mimo_jax.training.checkpoints import FOLDER, Checkpoints, latest_step
from mimo_jax.training.evaluation import Hook
from mimo_jax.training.integrity import MANIFEST
from mimo_jax.training.meta import Meta
from mimo_jax.training.retention import Keep
from mimo_jax.training.state import TrainState

logger = logging.getLogger(__name__)

Folder = str | os.PathLike[str]

FILE = "adapter.json"
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What adapter.json says.

    Attributes:
      base: MODEL_DIR of a run or folder in the released layout that has the frozen parameters.
      fingerprint: of the base, see `fingerprint`.
      rank, alpha: of the factors.
      targets: full names of the adapted kernels.
    """

    base: str
    fingerprint: str
    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / self.rank

    def write(self, model_dir: Folder) -> None:
        write_text(Path(model_dir) / FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def at(self, base: Folder) -> Adapter:
        """The same with the base at another place. Raises UserError if it is not there or not the same."""
        found = fingerprint(base)
        if found != self.fingerprint:
            raise UserError(
                f"{base}: not the base that the adapter was trained on: its arrays have changed since, or it has a "
                "newer checkpoint; put the old one back, or start another run (to be safe from this, export a run once "
                "and give the exported folder as INIT_FROM)"
            )
        return dataclasses.replace(self, base=str(Path(base).absolute()))


def read(model_dir: Folder) -> Adapter | None:
    """The adapter.json of a run; None if its checkpoints hold whole models."""
    path = Path(model_dir) / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        return Adapter(**values | {"targets": tuple(values["targets"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: damaged ({error}); it must have base, fingerprint, rank, alpha, targets, as the run wrote them: "
            "take it from a copy of the run"
        ) from error


def located(model_dir: Folder, base: Folder | None = None) -> Adapter | None:
    """As `read`, with the base checked; `base`: where it is now, None = where it was.

    Raises:
      UserError: the base is not there, or not the same.
    """
    adapter = read(model_dir)
    if adapter is None:
        return None
    where = adapter.base if base is None else base
    if not _is_model(where):
        raise UserError(
            f"{where}: the base of the adapter in {model_dir} is not there; put it back, or say where it is now: "
            f"--gin.INIT_FROM=FOLDER for training, --base=FOLDER for mimo_jax.convert, or 'base' in {FILE}"
        )
    return adapter.at(where)


def fingerprint(source: Folder) -> str:
    """What tells two bases apart without reading all of them: SHA-256 in hexadecimal.

    Of a run: the checksums of the newest checkpoint's files. Of a folder in the released layout: config.json, and size,
    beginning and 64 samples of every safetensors file.
    """
    folder, digest = Path(source), hashlib.sha256()
    if not _is_model(folder):
        raise UserError(f"{folder}: no training run and no model in the released layout; correct INIT_FROM")
    if (folder / "config.json").is_file():
        digest.update((folder / "config.json").read_bytes())
        for path in sorted(folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for sample in range(_SAMPLES):
                    file.seek(sample * size // _SAMPLES)
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()
    step = latest_step(folder)
    manifest = folder / FOLDER / str(step) / MANIFEST
    digest.update(manifest.read_bytes() if manifest.is_file() else str(step).encode())
    adapter = read(folder)
    if adapter is not None:  # its own base belongs to it
        digest.update(adapter.fingerprint.encode())
    return digest.hexdigest()


def _is_model(source: Folder) -> bool:
    return (Path(source) / "config.json").is_file() or latest_step(Path(source)) is not None


def begin(objective: lora.Lora, model_dir: str, init_from: str | None, params: Any) -> Adapter:
    """The adapter.json of a run that begins or goes on; every process calls it.

    Args:
      objective: of the run.
      model_dir: of the run.
      init_from: the base; None = where it was when the run began.
      params: its factors or their shapes.

    Raises:
      UserError: no base, another base, or another adapter than the run began with.
    """
    step, found = latest_step(model_dir), read(model_dir)
    targets = tuple(sorted("/".join(path) for path in lora.pairs(params)))
    if step is not None and found is None:
        raise UserError(
            f"{model_dir}: holds checkpoints of another kind of run (there is no {FILE}); use another MODEL_DIR"
        )
    if step is None or found is None:
        if not init_from:
            raise UserError(
                "INIT_FROM: LoRA adapts weights that are there; give the MODEL_DIR of a run or a folder in the "
                "released layout (--gin.INIT_FROM=FOLDER)"
            )
        adapter = Adapter(
            base=str(Path(init_from).absolute()),
            fingerprint=fingerprint(init_from),
            rank=objective.rank,
            alpha=objective.alpha,
            targets=targets,
        )
    else:
        wanted = {"rank": objective.rank, "alpha": objective.alpha, "targets": targets}
        if wrong := [f"{name} = {getattr(found, name)}" for name in wanted if getattr(found, name) != wanted[name]]:
            raise UserError(
                f"{model_dir}: this run began with {', '.join(wrong)}; configure the same, or use another MODEL_DIR"
            )
        adapter = located(model_dir, init_from) or found
    if jax.process_index() == 0 and adapter != found:
        adapter.write(model_dir)
    logger.info("adapter of %d kernels, rank %d, of %s", len(adapter.targets), adapter.rank, adapter.base)
    return adapter


class AdapterCheckpoints(Checkpoints):
    """Checkpoints without the base, which is read again when one is restored."""

    def __init__(self, model_dir: Folder, keep: Keep, read_base: Callable[[Any], Any]):
        """read_base: the base's arrays for a tree of shapes with shardings."""
        super().__init__(Path(model_dir), keep=keep)
        self._read_base = read_base

    def save(self, state: TrainState, meta: Meta) -> None:
        super().save(_without_base(state), meta)

    def restore_latest(self, abstract_state: TrainState) -> tuple[TrainState, Meta] | None:
        restored = super().restore_latest(_without_base(abstract_state))
        if restored is None:
            return None
        state, meta = restored
        base = self._read_base(abstract_state.mutable[lora.BASE])
        return state.replace(mutable={**state.mutable, lora.BASE: base}), meta


def _without_base(state: TrainState) -> TrainState:
    return state.replace(mutable={name: tree for name, tree in state.mutable.items() if name != lora.BASE})


def on_merged(objective: lora.Lora, hook: Hook) -> Hook:
    """An evaluation hook that gets the merged model, for which the devices hold the adapted kernels a second time."""

    def merge(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        summed = jax.jit(
            lambda w, a, b: (w + objective.scale * jnp.matmul(a, b, precision="highest")).astype(w.dtype),
            out_shardings=kernel.sharding,
        )
        return summed(kernel, a, b)

    def evaluate(params: Any, mutable: Any) -> Mapping[str, float]:
        flat = dict(traverse_util.flatten_dict(mutable[lora.BASE]))
        for path, factors in lora.pairs(params).items():
            flat[path] = merge(flat[path], *factors)
        rest = {name: tree for name, tree in mutable.items() if name != lora.BASE}
        return hook(traverse_util.unflatten_dict(flat), rest)

    return evaluate


# --- merging ---


class MergedArray:
    """W + scale A B of a kernel, made when it is asked for: `x[layer]`, a `part`, or `np.asarray(x)`.

    The sum is made in float32 and rounded once, to the base's dtype.
    """

    def __init__(self, base: Any, a: Any, b: Any, scale: float):
        """base: [..., in, out]; a: [..., in, rank]; b: [..., rank, out]; read when they are used."""
        self._base, self._a, self._b, self._scale = base, a, b, np.float32(scale)
        self.shape, self.dtype = tuple(base.shape), np.dtype(base.dtype)

    def _sum(self, base: Any, a: Any, b: Any) -> np.ndarray:
        product = np.asarray(a, np.float32) @ np.asarray(b, np.float32)
        return (np.asarray(base, np.float32) + self._scale * product).astype(self.dtype)

    def __getitem__(self, index: int) -> np.ndarray:
        """One entry of the first axis."""
        if len(self.shape) == 2:
            return np.asarray(self)[index]
        return self._sum(self._base[index], self._a[index], self._b[index])

    def part(self, index: tuple[slice, ...]) -> np.ndarray:
        """What lies in a slice for each axis."""
        *stack, rows, columns = index
        whole = slice(None)
        return self._sum(
            self._base.part(index), self._a.part((*stack, rows, whole)), self._b.part((*stack, whole, columns))
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array on the host."""
        del copy  # never a view of anything
        if len(self.shape) == 2:
            return np.asarray(self._sum(self._base, self._a, self._b), dtype)
        out = np.empty(self.shape, dtype or self.dtype)
        for layer in range(self.shape[0]):  # one in float32 at a time
            out[layer] = self[layer]
        return out


def merged(base: Any, adapters: Any, scale: float) -> Any:
    """The model's parameters with every adapted kernel a `MergedArray`; nothing is read yet.

    Raises:
      UserError: a kernel of the adapter that the base has not, or of another shape.
    """
    flat = dict(traverse_util.flatten_dict(base))
    for path, (a, b) in lora.pairs(adapters).items():
        shape = (*a.shape[:-1], b.shape[-1])
        if path not in flat or tuple(flat[path].shape) != shape:
            found = f"shape {tuple(flat[path].shape)}" if path in flat else "nothing"
            raise UserError(f"the adapter is for another base: {'/'.join(path)} has {found} there, {shape} here")
        flat[path] = MergedArray(flat[path], a, b, scale)
    return traverse_util.unflatten_dict(flat)
