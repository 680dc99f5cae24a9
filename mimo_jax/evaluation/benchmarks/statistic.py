"""Figures over items with bootstrap intervals: functions of sums, so that resampling is one matrix product."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mimo_jax.evaluation.metrics import Estimate

DRAWS = 1000
_BLOCK = 1 << 22  # counts in memory at a time


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-12)


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU 0..100 of sums of `text_metrics.bleu_counts` [..., 10]."""
    from mimo_jax.evaluation.text_metrics import bleu_of_counts

    return bleu_of_counts(sums[..., None, :])


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ratio": _ratio, "bleu": _bleu}


def estimate(
    shares: Sequence[Sequence[float]], statistic: str = "ratio", seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """A statistic of items' shares [items, k] with its 95 % percentile interval over resampled items.

    Raises:
      ValueError: no items, or a ratio whose denominators sum to 0.
    """
    values = np.asarray(shares, np.float64)
    if not len(values) or (statistic == "ratio" and values[:, 1].sum() <= 0):
        raise ValueError("no items that the figure could be made of")
    compute, n = STATISTICS[statistic], len(values)
    rng = np.random.Generator(np.random.Philox(seed))
    samples = []
    rows = max(1, _BLOCK // n)
    for start in range(0, draws, rows):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(rows, draws - start))
        samples.append(compute(counts @ values))
    low, high = np.percentile(np.concatenate(samples), (2.5, 97.5))
    return Estimate(float(compute(values.sum(0))), n, float(low), float(high))
