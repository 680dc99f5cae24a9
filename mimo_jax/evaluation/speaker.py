"""Speaker similarity as a plug-in: no embedding model comes with this package, any callable can be bound by gin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class SpeakerSimilarity(Protocol):
    """How alike the voices of pairs of recordings are."""

    def __call__(
        self, references: Sequence[np.ndarray], degraded: Sequence[np.ndarray], sample_rate: int
    ) -> Sequence[float]:
        """One figure per pair of mono float32 waves [samples] at `sample_rate` (Hz); 1 = the same, NaN = undefined."""
        ...


def cosine_similarity(embed: Callable[[np.ndarray, int], np.ndarray]) -> SpeakerSimilarity:
    """Cosine of speaker embeddings, as codec papers report it.

    Args:
      embed: (mono float32 wave [samples], sample rate in Hz) -> embedding [D], for instance of a WavLM speaker
        verification model. A vector of zeros makes the figure NaN.
    """

    def similarity(references: Sequence[np.ndarray], degraded: Sequence[np.ndarray], sample_rate: int) -> list[float]:
        return [
            _cosine(embed(reference, sample_rate), embed(other, sample_rate))
            for reference, other in zip(references, degraded, strict=True)
        ]

    return similarity


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / size if size > 0 else float("nan")
