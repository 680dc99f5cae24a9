"""The baseline that asks what learned codebooks are worth: random vectors of the right shape and size."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from mimo_jax.models.tokenizer import rvq

_SCALES = (0.125, 0.25, 0.5, 0.75, 1.0)
_MOST = 16_384  # features that are looked at, spread evenly: what is computed has size x features entries


def random_codebooks(features: np.ndarray, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Codebooks of Gaussian vectors with the mean and the covariance of what each of them has to quantise.

    Each codebook is drawn for the residual that the random ones before it leave. Vectors as long as the residuals would
    be too long: in many dimensions the nearest of a few thousand is still far away, and subtracting it may add more
    than it takes away. So the draw is scaled round its mean by whichever of a few factors leaves the smallest residual:
    the baseline is as good as random directions can be.

    Args:
        features: float [N, D] of representative speech, before quantisation.
        sizes: vectors of each codebook.
        seed: of the draws.

    Returns:
        float32 [size, D] per codebook.

    Raises:
        ValueError: fewer than two features.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features are {features.shape}: give [frames, D], at least two frames")
    rng = np.random.Generator(np.random.Philox(seed))
    chosen = np.linspace(0, len(features) - 1, min(len(features), _MOST)).astype(int)
    residual, books = np.asarray(features[chosen], np.float32), []
    for size in sizes:
        mean = residual.mean(axis=0)
        # Random mixtures of the centred residuals have their covariance, without D x D matrices.
        weights = rng.normal(size=(size, len(residual))).astype(np.float32)
        draw = weights @ (residual - mean) / np.float32(np.sqrt(len(residual)))
        candidates = [mean + np.float32(scale) * draw for scale in _SCALES]
        left = [residual - _quantised(residual, book) for book in candidates]
        best = int(np.argmin([np.square(rest).mean() for rest in left]))
        books.append(candidates[best])
        residual = left[best]
    return books


def _quantised(x: np.ndarray, book: np.ndarray) -> np.ndarray:
    """The vector of the book [size, D] that is nearest to each x [N, D]."""
    return book[np.asarray(rvq.nearest(jnp.asarray(x), jnp.asarray(book)))]
