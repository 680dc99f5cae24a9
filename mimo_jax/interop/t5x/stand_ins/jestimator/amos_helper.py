"""The names that t5x takes from `jestimator.amos_helper`."""

from __future__ import annotations

from typing import Any


def state_partition_rule(state: Any, params_axes: Any) -> Any:
    """Placement of Amos' state, which is not here."""
    raise NotImplementedError("jestimator is not installed, only a stand-in of mimo_jax for its names: no Amos")
