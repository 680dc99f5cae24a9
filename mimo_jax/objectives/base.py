"""What the trainer asks of an objective: parameters, a loss, an evaluation."""

from __future__ import annotations

from typing import Any, Protocol

import jax

Params = dict[str, Any]
Mutable = dict[str, Any]
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Objective(Protocol):
    """One stage's loss. Implementations are frozen dataclasses whose fields gin binds; every method is pure."""

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutable]:
        """Fresh parameters and non-gradient state (codebooks, spectral-norm vectors; {} if none)."""
        ...

    def loss(
        self, params: Params, mutable: Mutable, batch: Batch, rng: jax.Array, progress: jax.Array
    ) -> tuple[jax.Array, tuple[Mutable, Metrics]]:
        """(loss, (next non-gradient state, scalar metrics)); `progress` in [0, 1] is the share of the budget spent."""
        ...

    def evaluate(self, params: Params, mutable: Mutable, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Per metric (sum, count); the trainer adds both over the batches of an evaluation and divides."""
        ...
