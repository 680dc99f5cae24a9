"""Speaker similarity as a plug-in: no embedding model comes with this package, any callable can be bound by gin."""

from __future__ import annotations

import dataclasses
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

    return _CosineSimilarity(embed)


@dataclasses.dataclass(frozen=True)
class _CosineSimilarity:
    embed: Callable[[np.ndarray, int], np.ndarray]

    def __call__(
        self, references: Sequence[np.ndarray], degraded: Sequence[np.ndarray], sample_rate: int
    ) -> list[float]:
        return [
            _cosine(self.embed(reference, sample_rate), self.embed(other, sample_rate))
            for reference, other in zip(references, degraded, strict=True)
        ]


def similarity_name(similarity: SpeakerSimilarity) -> str:
    """Module and name of a similarity, or of the embedding that it compares; stored beside the figures it made."""
    function = similarity.embed if isinstance(similarity, _CosineSimilarity) else similarity
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / size if size > 0 else float("nan")
