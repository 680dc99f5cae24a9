"""A run that is asked to stop: by SIGTERM (preemption) or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Set by SIGTERM (preemption) or Ctrl-C: the loop saves and exits. A second Ctrl-C kills at once.

    In a run of several processes a SIGTERM to any of them stops all after the same step; Ctrl-C kills.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._previous: dict[int, Any] = {}
        # The runtime has its own handler of SIGTERM there, which tells the other processes.
        self._shared = jax.process_count() > 1

    def __enter__(self) -> StopRequest:
        if not self._shared and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def asked(self, step: int) -> bool:
        """Whether to stop after `step`; every process calls it with the same steps and gets the same answers."""
        if self._shared:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._event.is_set()

    def _handle(self, number: int, frame: Any) -> None:
        self._event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
