"""Memory of this process on its host."""

from __future__ import annotations

import os
import sys
import threading

_SECONDS = 0.2


def resident_bytes() -> int:
    """Bytes this process holds in physical memory; 0 where the system does not tell (no /proc)."""
    if not sys.platform.startswith("linux"):
        return 0
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """How far the resident memory rises above what it is now, sampled five times a second until `stop`."""

    def __init__(self) -> None:
        self._start = self._peak = resident_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak_memory", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._peak = max(self._peak, resident_bytes())

    def stop(self) -> int:
        """Ends the sampling; bytes of the highest sample above the first."""
        self._ended.set()
        self._thread.join()
        return max(self._peak, resident_bytes()) - self._start
