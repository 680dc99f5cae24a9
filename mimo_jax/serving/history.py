"""Spoken answers that a later request may name by their id: `{"role": "assistant", "audio": {"id": ...}}`."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections import OrderedDict

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Spoken:
    """Words and codes int32 [frames, C] of an answer."""

    text: str
    codes: np.ndarray


class History:
    """The latest spoken answers. Codes are small: 25 frames a second, a few codebooks; the wave is not needed again.

    Args:
      most: answers that are kept.
      seconds: how long.
    """

    def __init__(self, most: int = 512, seconds: int = 3600) -> None:
        self._most, self._seconds = most, seconds
        self._kept: OrderedDict[str, tuple[float, Spoken]] = OrderedDict()
        self._lock = threading.Lock()

    def reserve(self) -> tuple[str, int]:
        """(A new id that nobody can guess, the Unix time at which it will be forgotten)."""
        return f"audio_{secrets.token_hex(16)}", int(time.time()) + self._seconds

    def keep(self, ident: str, spoken: Spoken) -> None:
        """Remembers an answer."""
        spoken = dataclasses.replace(spoken, codes=spoken.codes.astype(np.int16))
        with self._lock:
            self._kept[ident] = time.monotonic() + self._seconds, spoken
            while self._kept:
                oldest = next(iter(self._kept))
                if len(self._kept) <= self._most and self._kept[oldest][0] >= time.monotonic():
                    break
                del self._kept[oldest]

    def find(self, ident: str) -> Spoken | None:
        """The answer, or None where it is unknown or forgotten."""
        with self._lock:
            until, spoken = self._kept.get(ident, (0.0, None))
        return spoken if spoken is not None and until >= time.monotonic() else None
