"""Traces of some steps, for xprof (`tensorboard --logdir MODEL_DIR`, tab Profile)."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mimo_jax.cli import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Profile:
    """Windows of steps that are traced into `MODEL_DIR/plugins/profile`.

    Attributes:
      windows: "first step:number of steps" of each, such as "100:5,2000:5", ascending; or pairs of numbers. The first
        steps of a process compile and tell little.
    """

    windows: str | Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        end = -1
        for first, count in self.steps():
            if first < end or count < 1:
                raise self._mistake()
            end = first + count

    def steps(self) -> list[tuple[int, int]]:
        """(first step, number of steps) of each window."""
        try:
            if isinstance(self.windows, str):
                pairs = [window.split(":") for window in self.windows.split(",") if window]
                return [(int(first), int(count)) for first, count in pairs]
            return [(int(first), int(count)) for first, count in self.windows]
        except (ValueError, TypeError) as error:
            raise self._mistake() from error

    def _mistake(self) -> UserError:
        return UserError(f"Profile.windows = {self.windows!r}: write 'FIRST:COUNT,FIRST:COUNT', ascending and apart")


class Profiler:
    """Starts and ends the traces of a run."""

    def __init__(self, model_dir: str | Path, profile: Profile):
        self._folder, self._windows = str(model_dir), profile.steps()
        self._end: int | None = None

    def step(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """Call it around the dispatch of step `number`, counted from 0."""
        if self._end is None:
            self._end = next((first + count for first, count in self._windows if first == number), None)
            if self._end is not None:
                jax.profiler.start_trace(self._folder)
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, number: int, result: Any) -> None:
        """Call it after step `number`; `result` is what the step computed."""
        if self._end is not None and number + 1 >= self._end:
            jax.block_until_ready(result)  # the trace would end before the devices do
            self.close()

    def close(self) -> None:
        """Ends an open trace."""
        if self._end is not None:
            self._end = None
            jax.profiler.stop_trace()
            logger.info("trace written: tensorboard --logdir %s, tab Profile", self._folder)
