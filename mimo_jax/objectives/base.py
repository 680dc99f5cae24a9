"""What the trainer asks of an objective: parameters, a loss, an evaluation."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Params = dict[str, Any]
Mutable = dict[str, Any]
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def must_fit(wanted: Any, found: Any) -> None:
    """Raises ValueError, naming an array, where `found` has not the arrays of `wanted`, or of another shape."""
    here, there = (
        {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (wanted, found)
    )
    if wrong := sorted(name for name in here | there if here.get(name) != there.get(name)):
        name = wrong[0]
        raise ValueError(
            f"what this stage starts from does not fit its configuration: {name} is {there.get(name)} there and "
            f"{here.get(name)} here ({len(wrong)} such arrays)"
        )


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


@runtime_checkable
class DivisibleObjective(Objective, Protocol):
    """An objective whose loss is a sum over the parts of a batch, so that the parts can be processed one by one."""

    def totals(self, batch: Batch) -> dict[str, jax.Array]:
        """What sums are divided by (weights, counts). Those of the parts add up to those of the batch."""
        ...

    def share(
        self,
        params: Params,
        mutable: Mutable,
        batch: Batch,
        rng: jax.Array,
        progress: jax.Array,
        totals: dict[str, jax.Array],
    ) -> tuple[jax.Array, tuple[Mutable, Metrics]]:
        """As `loss`, of a part of the batch with these `totals`: the parts' losses and metrics add up to the batch's.

        The non-gradient state must not change.
        """
        ...
