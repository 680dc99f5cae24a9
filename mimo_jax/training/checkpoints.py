"""Checkpoints: the only user of orbax. A checkpoint is (state, counters, configuration text), written atomically.

Layout: `MODEL_DIR/checkpoints/<step>/{state,meta,checksums.json}`. A damaged checkpoint is reported with its bad file
and set aside, and the one before it is used; a half-written one never gets its name.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mimo_jax.cli import UserError, not_written
from mimo_jax.training import integrity
from mimo_jax.training.host_memory import PeakMemory
from mimo_jax.training.meta import Meta
from mimo_jax.training.retention import Keep
from mimo_jax.training.stored_array import StoredArray

logger = logging.getLogger(__name__)
# Orbax warns at every restore of a file of metadata that our layout, a tree in a folder of its own, never has.
logging.getLogger("absl").addFilter(lambda record: "Metadata file does not exist" not in str(record.msg))

FOLDER = "checkpoints"
# Large arrays are stored in parts, so that reading or writing the whole needs little memory beside it; those of stacked
# layers along the layers, so that one can be read alone.
CHUNK_BYTES = 256 * 2**20


class Checkpoints:
    """Saves and restores one run's checkpoints. In a run of several processes, each calls every method."""

    def __init__(
        self,
        model_dir: str | Path,
        keep: Keep = Keep(),
        asynchronous: bool = True,
        concurrent_gb: int | None = None,
    ):
        """concurrent_gb: most gigabytes of arrays in the writer's hands at a time; at least the largest array."""
        limit = {} if concurrent_gb is None else {"save_concurrent_gb": concurrent_gb}
        self._folder = Path(model_dir).absolute() / FOLDER
        self._asynchronous = asynchronous
        self._saving: _Save | None = None
        self._done: dict[str, float] = {}
        self._retention = _Retention(self._folder, keep)
        finalization = ocp.options.AsyncOptions(post_finalization_callback=self._before_commit)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._retention,
                enable_async_checkpointing=asynchronous,
                async_options=finalization if asynchronous else None,
                cleanup_tmp_directories=True,
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(**limit), "meta": ocp.JsonCheckpointHandler()},
        )

    def save(self, state: Any, meta: Meta) -> None:
        """Starts saving; returns once the arrays are copied. Saving the same step twice is an error of the caller.

        Raises:
          UserError: this save, or the one before it, could not be written.
        """
        self.wait()
        self._saving = save = _Save(meta.step, time.monotonic(), PeakMemory())
        self._retention.metas[meta.step] = meta
        try:
            self._manager.save(
                meta.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state, save_args=jax.tree.map(_in_parts, state)),
                    meta=ocp.args.JsonSave(dataclasses.asdict(meta)),
                ),
            )
            if not self._asynchronous:
                if jax.process_index() == 0:
                    integrity.write_manifest(self._folder / str(meta.step))
                self._finished(save)
        except OSError as error:
            raise self._not_written(error) from error
        save.blocked_seconds = time.monotonic() - save.start

    def _before_commit(self) -> None:
        """Runs in orbax's thread of the first process when all files are there and only the rename is left."""
        if self._saving is not None:
            # The hidden folder's name has a suffix of orbax's choice.
            (folder,) = self._folder.glob(f"{self._saving.step}.*")
            integrity.write_manifest(folder)
            self._saving.written = time.monotonic()

    def check(self) -> None:
        """Call it often: raises UserError as soon as the save under way is found to have failed."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Blocks until the last save is on disk. Raises UserError if it could not be written."""
        save = self._saving
        if save is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # the writer's errors come as ValueError and RuntimeError too
            raise self._not_written(error) from error
        self._finished(save)

    def _finished(self, save: _Save) -> None:
        self._saving = None
        files = [path for path in (self._folder / str(save.step)).rglob("*") if path.is_file()]
        self._done = {
            "checkpoint/step": save.step,
            "checkpoint/blocked_seconds": save.blocked_seconds,
            "checkpoint/seconds": (save.written or time.monotonic()) - save.start,
            "checkpoint/gigabytes": sum(path.stat().st_size for path in files) / 1e9,
            "checkpoint/host_memory_gigabytes": save.memory.stop() / 1e9,
        }

    def _not_written(self, error: Exception) -> UserError:
        save, self._saving = self._saving, None
        step = -1 if save is None else save.step
        if save is not None:
            save.memory.stop()
        if jax.process_index() == 0:  # what was written of it may be what fills the disk
            for partial in self._folder.glob(f"{step}.*"):
                shutil.rmtree(partial, ignore_errors=True)
        before = max((s for s in self._steps() if s != step), default=None)
        kept = "there is no earlier checkpoint" if before is None else f"the checkpoint of step {before} is kept"
        said = " ".join(str(error).split())[:400]
        return not_written(f"checkpoint of step {step} could not be written to {self._folder} ({said}); {kept}", error)

    def take_figures(self) -> dict[str, float]:
        """Step, seconds, gigabytes, host memory of the last finished save; {} if there is none since the last call."""
        figures, self._done = self._done, {}
        return figures

    def restore_latest(self, abstract_state: Any) -> tuple[Any, Meta] | None:
        """The newest undamaged checkpoint, straight into shardings and dtypes of `abstract_state`; None without one.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct with shardings, on any mesh.

        Raises:
          UserError: a checkpoint whose files are whole has other arrays than `abstract_state`.
        """
        for step in sorted(self._steps(), reverse=True):
            folder = self._folder / str(step)
            damage = _first_of_all(integrity.find_damage(folder, jax.process_index(), jax.process_count()))
            if damage is None:
                try:
                    restored = self._manager.restore(
                        step,
                        args=ocp.args.Composite(
                            state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()
                        ),
                    )
                    return restored["state"], Meta(**restored["meta"])
                except Exception as error:  # the reader's errors have no common type
                    if integrity.has_manifest(folder):
                        raise UserError(
                            f"{folder}: its files are whole, but they do not fit this configuration "
                            f"({' '.join(str(error).split())[:600]}); use the configuration of the run "
                            f"({self._folder.parent / 'config.gin'}), or another MODEL_DIR"
                        ) from error
                    damage = str(error)
            logger.warning("checkpoint %s is damaged: %s; trying the one before it", folder, damage)
            self._set_aside(step)
        return None

    def _steps(self) -> list[int]:
        return list(self._manager.all_steps())

    def _set_aside(self, step: int) -> None:
        # Under another name it can be looked at, and the step can be saved again.
        if jax.process_index() == 0:
            target = self._folder.parent / f"damaged_checkpoint_{step}"
            for number in itertools.count(2):
                if not target.exists():
                    break
                target = target.with_name(f"damaged_checkpoint_{step}_{number}")
            (self._folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for the last save and ends the writer's threads."""
        self.wait()
        self._manager.close()


@dataclasses.dataclass
class _Save:
    """A save under way: when it began and, on the first process, was written (s), how long it held up the caller."""

    step: int
    start: float
    memory: PeakMemory
    blocked_seconds: float = 0.0
    written: float | None = None


class _Retention:
    """`Keep` as orbax asks for it."""

    def __init__(self, folder: Path, keep: Keep):
        self._folder, self._keep = folder, keep
        self.metas: dict[int, Meta] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        return self._keep.chosen([self._meta(checkpoint.step) for checkpoint in checkpoints])

    def _meta(self, step: int) -> Meta:
        if step not in self.metas:
            try:
                self.metas[step] = _read_meta(self._folder / str(step))
            except (OSError, ValueError, TypeError):  # damaged: kept by its age alone
                self.metas[step] = Meta(step)
        return self.metas[step]


def _first_of_all(problem: str | None) -> str | None:
    """The first problem any process has found, so that all take the same way."""
    if jax.process_count() == 1:
        return problem
    found = multihost_utils.process_allgather(np.frombuffer((problem or "").encode()[:400].ljust(400), np.uint8))
    texts = [bytes(row).decode(errors="replace").strip() for row in np.asarray(found).reshape(-1, 400)]
    return next((text for text in texts if text), None)


def _read_meta(folder: Path) -> Meta:
    return Meta(**json.loads((folder / "meta" / "metadata").read_text()))


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
    return _read_meta(Path(model_dir).absolute() / FOLDER / str(step))


def _in_parts(array: Any) -> ocp.SaveArgs:
    # Orbax cuts such an axis down to 1: right for layers, ruinous for the rows of an embedding table.
    stacked = np.ndim(array) >= 3 and array.nbytes > CHUNK_BYTES
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())


def stored_params(model_dir: str | Path, averaged: bool = False) -> tuple[Any, Any, Meta]:
    """(params, mutable, meta) of a run's newest checkpoint, with a `StoredArray` for each array: nothing is read yet.

    In a run of several processes each calls it.

    Args:
      model_dir: of the run.
      averaged: give the moving average of the parameters where the optimiser kept one.

    Raises:
      UserError: no checkpoint there.
    """
    path, stored, meta = _newest(model_dir, ("params", "mutable", "opt_state"))

    def lazily(keys: tuple[str, ...], tree: Any, like: Any, scale: float) -> Any:
        if isinstance(tree, dict):
            return {key: lazily((*keys, key), value, like[key], scale) for key, value in tree.items()}
        return StoredArray(path, keys, tuple(tree.shape), np.dtype(like.dtype), scale)

    params, mutable = stored["params"], stored.get("mutable") or {}
    keys: tuple[str, ...] = ("params",)
    tree, scale = params, 1.0
    optimizer = stored.get("opt_state")
    if averaged and isinstance(optimizer, dict) and "average" in optimizer:  # optimizer.AverageState
        missing = lazily(("opt_state", "missing"), optimizer["missing"], optimizer["missing"], 1.0)
        weight = 1.0 - float(np.asarray(missing))
        if weight > 0:
            keys, tree, scale = ("opt_state", "average"), optimizer["average"], 1.0 / weight
    return lazily(keys, tree, params, scale), lazily(("mutable",), mutable, mutable, 1.0), meta


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


def _newest(model_dir: str | Path, parts: Sequence[str] = ("params", "mutable")) -> tuple[Path, dict[str, Any], Meta]:
    """(folder of the state, the named parts of its tree as metadata, meta) of the newest checkpoint."""
    step = latest_step(model_dir)
    if step is None:
        raise UserError(f"{model_dir}: no checkpoint in it; train this stage first, or correct the path")
    path = Path(model_dir).absolute() / FOLDER / str(step)
    try:
        damage = _first_of_all(integrity.find_damage(path, jax.process_index(), jax.process_count()))
        if damage is not None:
            raise OSError(damage)
        meta = _read_meta(path)
        with ocp.PyTreeCheckpointer() as reader:
            stored = reader.metadata(path / "state").item_metadata.tree
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); move it away to use the checkpoint before it") from error
    return path / "state", {name: stored[name] for name in parts if stored.get(name)}, meta
