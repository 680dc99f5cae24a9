"""Held-out evaluation inside a run: losses over fixed batches, and further evaluations (few-shot tasks) as hooks."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training.state import TrainState

Hook = Callable[[Any, Any], Mapping[str, float]]
"""`hook(params, mutable) -> {metric: value}`; it may generate, and runs on every process."""


class Evaluation:
    """Sums and counts over fixed batches, then the hooks."""

    def __init__(
        self,
        evaluate: Callable[..., Any],
        sources: Mapping[str, Any],
        batches: int,
        mesh: Mesh,
        hooks: Sequence[Hook] = (),
    ):
        """evaluate: `Objective.evaluate`, jitted. sources: held-out `loop.Source`s by name."""
        self._evaluate, self._sources, self._batches, self._mesh = evaluate, sources, batches, mesh
        self._hooks = hooks

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Metric `m` of source `s` as `s/m`, then what the hooks give; {} without sources and hooks."""
        results: dict[str, float] = {}
        params = state.evaluated_params
        for name, source in self._sources.items():
            sums: dict[str, float] = collections.defaultdict(float)
            counts: dict[str, float] = collections.defaultdict(float)
            for step in range(self._batches):
                batch = mesh_lib.put_batch(source.batch(step), self._mesh)
                for key, (total, count) in jax.device_get(self._evaluate(params, state.mutable, batch)).items():
                    sums[key] += float(np.sum(total))
                    counts[key] += float(np.sum(count))
            results |= {f"{name}/{key}": sums[key] / counts[key] for key in sums if counts[key] > 0}
        for hook in self._hooks:
            results |= hook(params, state.mutable)
        return results
