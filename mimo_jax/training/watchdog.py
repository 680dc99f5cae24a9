"""Notices a step that does not end (a lost host, a dead filesystem) and says where every thread stands."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from pathlib import Path

import jax

from mimo_jax.cli import EXIT_TRY_AGAIN

logger = logging.getLogger(__name__)

EXIT_STUCK = EXIT_TRY_AGAIN
"""Exit code of a process that its watchdog has ended: start it again and it goes on from the last checkpoint."""


class Watchdog:
    """Writes the stacks of all threads once `beat` has not been called for `seconds`.

    A collective that waits for a lost host waits on every host: each has a watchdog, so all stacks are written.

    Args:
      model_dir: `stacks_<process>.txt` is written there, and to standard error.
      seconds: without a beat; 0 = no watchdog.
      end_process: whether the process is then ended with exit code `EXIT_STUCK`.
    """

    def __init__(self, model_dir: str | Path, seconds: float, end_process: bool = False):
        self._path = Path(model_dir) / f"stacks_{jax.process_index()}.txt"
        self._seconds, self._end_process = seconds, end_process
        self._last: float | None = None
        self._step = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def beat(self, step: int) -> None:
        """The run is alive at `step`. Time counts from the first call on: compilation is no step."""
        self._step, self._last = step, time.monotonic()

    def pause(self) -> None:
        """What follows may take long (an evaluation, a restore): time counts again from the next `beat`."""
        self._last = None

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 10.0)):
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                self._report(time.monotonic() - last)
                self._last = None  # once is enough; the next step starts the clock again

    def _report(self, seconds: float) -> None:
        logger.error(
            "no step for %.0f s after step %d on process %d of %d; stacks of all threads: %s%s",
            *(seconds, self._step, jax.process_index(), jax.process_count(), self._path),
            "; ending the process, start it again to go on" if self._end_process else "",
        )
        try:
            with self._path.open("a") as file:
                file.write(f"\nno step for {seconds:.0f} s after step {self._step}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:  # the filesystem may be what is stuck
            logger.error("%s cannot be written: %s", self._path, error)
        faulthandler.dump_traceback(all_threads=True)
        if self._end_process:
            os._exit(EXIT_STUCK)
