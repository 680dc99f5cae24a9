"""Modules that t5x imports by name and a run of ours never calls: `airio.core` and `jestimator`.

Both exist as source repositories alone. t5x needs of `airio` the names of some classes, for `isinstance`, and of
`jestimator` the optimiser Amos, which it offers under its own name. launch/t5x.sh puts this folder at the end of the
module search path of the environment it makes, so that the real modules win where they are installed; `install` does
the same in a running program.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER = str(Path(__file__).parent)
MODULES = ("airio", "jestimator")


def install() -> None:
    """Makes the stand-ins importable if one of the real modules is missing. Call it before t5x is imported."""
    if FOLDER not in sys.path and any(importlib.util.find_spec(name) is None for name in MODULES):
        sys.path.append(FOLDER)  # last: a real module that is there comes first
