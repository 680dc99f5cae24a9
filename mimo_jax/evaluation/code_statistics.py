"""Bit rates of a tokenizer and how it uses its codebooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mimo_jax.evaluation.metrics import unigram_entropy


@dataclasses.dataclass(frozen=True)
class CodebookUse:
    """How often the codes of one codebook occur.

    Attributes:
        size: codes that there are.
        usage: share of them that occurs at all.
        perplexity: exp of the entropy: the number of codes in use, were all equally frequent.
        entropy_bits: of the empirical distribution, bits per code; too low where frames are few.
    """

    size: int
    usage: float
    perplexity: float
    entropy_bits: float


def codebook_use(codes: Sequence[np.ndarray], sizes: Sequence[int]) -> list[CodebookUse]:
    """One entry per codebook.

    Args:
        codes: int [frames, n] per utterance.
        sizes: codes in each of the n codebooks.

    Raises:
        ValueError: no frames, or other than n codebooks.
    """
    table = np.concatenate([np.asarray(c) for c in codes]) if codes else np.zeros((0, len(sizes)), int)
    if not len(table) or table.shape[1] != len(sizes):
        raise ValueError(f"codes are {table.shape}: give frames of {len(sizes)} codebooks")
    entropies = [unigram_entropy(column) for column in table.T]
    return [
        CodebookUse(size, len(np.unique(column)) / size, float(np.exp(entropy)), entropy / float(np.log(2)))
        for size, column, entropy in zip(sizes, table.T, entropies, strict=True)
    ]


def nominal_kbps(sizes: Sequence[int], frame_rate: float) -> float:
    """kbit/s of codebooks of these sizes, each code in log2(size) bits, at `frame_rate` (Hz)."""
    return float(np.log2(np.asarray(sizes, np.float64)).sum() * frame_rate / 1000)


def entropy_kbps(entropy_bits: Sequence[float], frame_rate: float) -> float:
    """kbit/s of an entropy coder that knows how frequent each code is; `entropy_bits` per codebook, each by itself."""
    return sum(entropy_bits) * frame_rate / 1000
