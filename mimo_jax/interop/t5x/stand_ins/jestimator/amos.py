"""The names that t5x takes from `jestimator.amos`."""

from __future__ import annotations

from typing import Any, NamedTuple


class ScaleByAmosState(NamedTuple):
    """State of Amos, which t5x has in a table of optimiser states."""

    count: Any = None
    v: Any = None
    b: Any = None


def amos(*args: Any, **kwargs: Any) -> Any:
    """Amos (arXiv 2210.11693), which is not here."""
    raise NotImplementedError("jestimator is not installed, only a stand-in of mimo_jax for its names: no Amos")
