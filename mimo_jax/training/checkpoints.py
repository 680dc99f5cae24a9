"""Checkpoints: the only user of orbax. A checkpoint is (state, counters, configuration text), written atomically.

Layout: `MODEL_DIR/checkpoints/<step>/{state,meta}`. A damaged or half-written checkpoint is reported and the one before
it is used.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mimo_jax.cli import UserError

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
# Large arrays are stored in parts, so that reading or writing the whole needs little memory beside it; those of stacked
# layers along the layers, so that one can be read alone.
CHUNK_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint holds beside arrays.

    Attributes:
      step: optimiser steps done.
      text_tokens, audio_tokens: positions seen in this stage (exact, unbounded).
      finished: the stage's budget is spent.
      config: the resolved gin text.
      model: of an imported model, what its `config.json` says.
    """

    step: int
    text_tokens: int = 0
    audio_tokens: int = 0
    finished: bool = False
    config: str = ""
    model: dict[str, Any] | None = None


class Checkpoints:
    """Saves and restores one run's checkpoints."""

    def __init__(
        self, model_dir: str | Path, keep: int = 2, asynchronous: bool = True, concurrent_gb: int | None = None
    ):
        """concurrent_gb: most gigabytes of arrays in the writer's hands at a time; at least the largest array."""
        limit = {} if concurrent_gb is None else {"save_concurrent_gb": concurrent_gb}
        self._folder = Path(model_dir).absolute() / FOLDER
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=asynchronous, cleanup_tmp_directories=True
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(**limit), "meta": ocp.JsonCheckpointHandler()},
        )

    def save(self, state: Any, meta: Meta) -> None:
        """Starts saving; returns once the arrays are copied. Saving the same step twice is an error of the caller."""
        self._manager.save(
            meta.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state, save_args=jax.tree.map(_in_parts, state)),
                meta=ocp.args.JsonSave(dataclasses.asdict(meta)),
            ),
        )

    def restore_latest(self, abstract_state: Any) -> tuple[Any, Meta] | None:
        """The newest readable checkpoint, straight into the shardings of `abstract_state`; None if there is none.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct with shardings.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()
                    ),
                )
                return restored["state"], Meta(**restored["meta"])
            except Exception as error:  # any failure of the reader means this checkpoint is unusable
                logger.warning(
                    "checkpoint %s cannot be read (%s); trying the one before it", self._folder / str(step), error
                )
                self._set_aside(step)
        return None

    def _set_aside(self, step: int) -> None:
        # Under another name it can be looked at, and the step can be saved again.
        source = self._folder / str(step)
        source.rename(self._folder.parent / f"damaged_checkpoint_{step}")
        self._manager.reload()

    def wait(self) -> None:
        """Blocks until the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def latest_step(model_dir: str | Path) -> int | None:
    """Step of the newest complete checkpoint of a run, None if there is none."""
    folder = Path(model_dir).absolute() / FOLDER
    steps = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=None)


def load_meta(model_dir: str | Path) -> Meta | None:
    """Meta of the newest checkpoint, without reading arrays."""
    step = latest_step(model_dir)
    if step is None:
        return None
    return Meta(**json.loads((Path(model_dir).absolute() / FOLDER / str(step) / "meta" / "metadata").read_text()))


def _in_parts(array: Any) -> ocp.SaveArgs:
    # Orbax cuts such an axis down to 1: right for layers, ruinous for the rows of an embedding table.
    stacked = np.ndim(array) >= 3 and array.nbytes > CHUNK_BYTES
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())


@dataclasses.dataclass(frozen=True, eq=False)
class StoredArray:
    """An array of a checkpoint, read when it is asked for, each time anew: `x[layer]`, or the whole by `np.asarray(x)`.

    Orbax restores whole arrays only; its files are OCDBT with one zarr array a parameter, which tensorstore reads.
    """

    folder: Path
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    def _open(self) -> Any:
        import tensorstore

        base = {"driver": "file", "path": f"{self.folder}/"}
        store = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(self.keys)}/"}
        return tensorstore.open({"driver": "zarr", "kvstore": store}, read=True).result()

    def __getitem__(self, index: int) -> np.ndarray:
        """One entry of the first axis."""
        return self._open()[index].read().result()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array on the host."""
        del copy  # never a view of anything
        store = self._open()
        whole = np.empty(self.shape, dtype or self.dtype)
        steps = store.chunk_layout.read_chunk.shape
        starts = [range(0, size, step) for size, step in zip(self.shape, steps, strict=True)]
        for corner in itertools.product(*starts):  # part by part: the reader holds what it unpacks a second time
            part = tuple(
                slice(start, min(start + step, size))
                for start, step, size in zip(corner, steps, self.shape, strict=True)
            )
            whole[part] = store[part].read().result()
        return whole


def stored_params(model_dir: str | Path) -> tuple[Any, Any, Meta]:
    """(params, mutable, meta) of a run's newest checkpoint, with a `StoredArray` for each array: nothing is read yet.

    Raises:
      UserError: no checkpoint there.
    """
    path, stored, meta = _newest(model_dir)

    def lazily(keys: tuple[str, ...], tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: lazily((*keys, key), value) for key, value in tree.items()}
        return StoredArray(path, keys, tuple(tree.shape), np.dtype(tree.dtype))

    trees = {name: lazily((name,), tree) for name, tree in stored.items()}
    return trees["params"], trees.get("mutable") or {}, meta


def load_params(model_dir: str | Path) -> tuple[Any, Any, Meta]:
    """(params, mutable, meta) of a run's newest checkpoint as host arrays, whatever mesh wrote it.

    Only these two trees are read, not the optimiser state.

    Raises:
      UserError: no checkpoint there.
    """
    path, stored, meta = _newest(model_dir)
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.PyTreeCheckpointer() as reader:
        restored = reader.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=stored,
                restore_args=jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=host), stored),
                partial_restore=True,
            ),
        )
    return restored["params"], restored.get("mutable") or {}, meta


def _newest(model_dir: str | Path) -> tuple[Path, dict[str, Any], Meta]:
    """(folder of the state, its trees params and mutable as metadata, meta) of the newest checkpoint."""
    step = latest_step(model_dir)
    if step is None:
        raise UserError(f"{model_dir}: no checkpoint in it; train this stage first, or correct the path")
    path = Path(model_dir).absolute() / FOLDER / str(step)
    try:
        meta = Meta(**json.loads((path / "meta" / "metadata").read_text()))
        with ocp.PyTreeCheckpointer() as reader:
            stored = reader.metadata(path / "state").item_metadata.tree
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); move it away to use the checkpoint before it") from error
    return path / "state", {name: stored[name] for name in ("params", "mutable") if stored.get(name)}, meta
