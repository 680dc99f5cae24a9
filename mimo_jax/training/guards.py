"""What a run does about bad steps: updates that are skipped, batches kept for replay, a way back.

The figures of a step are looked at `LAG` steps later, when they are there anyway: waiting for them would leave the
device without work. All that is remembered travels in the checkpoint, so that a resumed run decides alike.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.files import replacing

LAG = 2
"""Steps that are under way when the figures of an earlier one are looked at."""


@dataclasses.dataclass(frozen=True)
class Guards:
    """Limits of a run. A skipped update leaves parameters and optimiser as they were; its batch is used up.

    Attributes:
      max_skipped: most skipped updates of a stage.
      max_in_row: so many skipped updates in a row stop the run (or roll it back); the last batch is saved for replay.
      spike_z: an update whose loss lies more than so many standard deviations above the mean of the last
        `spike_window` losses is skipped too; None lets it pass.
      spike_window: losses that the mean is of; no update is a spike before there are so many.
      rollbacks: how often a stage goes back to its last checkpoint instead of stopping; the data in between are passed
        over.
      watchdog_seconds: a step that takes longer has the stacks of all threads written to the log and to
        `MODEL_DIR/stacks_<process>.txt`; 0 = never. Every process watches itself.
      watchdog_exit: then also ends the process, for a scheduler to start it again.
    """

    max_skipped: int = 50
    max_in_row: int = 20
    spike_z: float | None = None
    spike_window: int = 128
    rollbacks: int = 0
    watchdog_seconds: float = 1800.0
    watchdog_exit: bool = False

    def __post_init__(self) -> None:
        if self.max_in_row < 1 or self.spike_window < 2:
            raise UserError(
                f"Guards: max_in_row={self.max_in_row} must be at least 1, spike_window={self.spike_window} at least 2"
            )
        if self.spike_z is not None and self.spike_z <= 0:
            raise UserError(f"Guards.spike_z = {self.spike_z}: use a positive number, or None")


class Verdict(enum.Enum):
    """What follows from a step's figures."""

    FINE = "fine"
    TOO_MANY = "too many"
    IN_ROW = "in a row"


class Monitor:
    """Counts skipped updates and knows the recent losses.

    Args:
      guards: the limits.
      record: what `record()` gave when the checkpoint was saved; None in a fresh run.
    """

    def __init__(self, guards: Guards, record: dict[str, Any] | None = None):
        record = record or {}
        self._guards = guards
        self._losses = collections.deque[float](record.get("losses", ()), maxlen=guards.spike_window)
        self.skipped: int = record.get("skipped", 0)
        self.in_row: int = record.get("in_row", 0)

    def record(self) -> dict[str, Any]:
        """All that is remembered, for JSON."""
        losses = list(self._losses) if self._guards.spike_z is not None else []
        return {"losses": losses, "skipped": self.skipped, "in_row": self.in_row}

    def loss_limit(self) -> float:
        """Loss above which the next update is a spike; infinite without `spike_z` or until the window is full."""
        if self._guards.spike_z is None or len(self._losses) < self._guards.spike_window:
            return math.inf
        losses = np.asarray(self._losses)
        return float(losses.mean() + self._guards.spike_z * losses.std())

    def look(self, loss: float, skipped: int) -> Verdict:
        """Takes in a step's loss and the number of updates skipped up to it."""
        if skipped == self.skipped:
            self.in_row = 0
            self._losses.append(loss)
        else:
            self.in_row += 1
        self.skipped = skipped
        if self.in_row >= self._guards.max_in_row:
            return Verdict.IN_ROW
        return Verdict.TOO_MANY if skipped > self._guards.max_skipped else Verdict.FINE


def save_batch(model_dir: str | Path, data_step: int, batch: dict[str, np.ndarray]) -> Path:
    """Writes this process's rows of a batch to `bad_batch_<data step>_<process>.npz`; the path."""
    path = Path(model_dir) / f"bad_batch_{data_step}_{jax.process_index()}.npz"
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **batch)
    return path


def load_batch(paths: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """The global batch from the files of all processes, in their order; as `Objective.loss` takes it."""
    parts = [np.load(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
