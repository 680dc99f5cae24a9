"""A run that is asked to stop: by SIGTERM (preemption), Ctrl-C, or its cloud's notice of maintenance."""

from __future__ import annotations

import logging
import os
import signal
import threading
import urllib.request
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

METADATA_HOST = "GCE_METADATA_HOST"
"""Environment variable that names another metadata server than metadata.google.internal."""
_NOTICES = {"maintenance-event": "TERMINATE", "preempted": "TRUE"}
_SECONDS = 5.0
_TIMEOUT = 5.0


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


class MaintenanceNotice:
    """On Google Compute Engine, asks the metadata server whether this machine is to go, and then sends SIGTERM.

    The signal takes the way of every other one, so that all processes of a run stop after the same step. A notice that
    is there from the start is passed over: the run would stop again each time it is started.
    """

    def __init__(self, seconds: float = _SECONDS):
        """seconds: between two questions."""
        self._seconds = seconds
        self._closed = threading.Event()
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> MaintenanceNotice:
        if METADATA_HOST in os.environ or _on_compute_engine():
            threading.Thread(target=self._watch, name="maintenance_notice", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self) -> None:
        known = self._notices()
        while not self._closed.wait(self._seconds):
            new = self._notices() - known
            if new:
                logger.warning("notice of the machine's end: %s", ", ".join(sorted(new)))
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _notices(self) -> set[str]:
        host = os.environ.get(METADATA_HOST, "metadata.google.internal")
        found = set()
        for key, begin in _NOTICES.items():
            url = f"http://{host}/computeMetadata/v1/instance/{key}"
            request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            try:
                with self._opener.open(request, timeout=_TIMEOUT) as answer:
                    value = answer.read().decode().strip()
            except OSError:  # no such key here, or no answer this time
                continue
            if value.startswith(begin):
                found.add(f"{key}={value}")
        return found


def _on_compute_engine() -> bool:
    try:
        return Path("/sys/class/dmi/id/product_name").read_text(encoding="ascii").startswith("Google")
    except (OSError, UnicodeDecodeError):
        return False
