"""mimo_jax: pretraining of MiMo-Audio-class speech language models in JAX and Flax.

Importing the package loads nothing heavy. The modules with public entry points are reached as attributes
(``mimo_jax.interop``, ``mimo_jax.models`` ...) and are imported on first use; so is the model for use, ``MimoAudio``.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = ("ahead_of_time", "data", "evaluation", "inference", "interop", "models", "objectives", "parallel", "training")

__all__ = ["MimoAudio", "__version__", *_ROOMS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "MimoAudio":
        return importlib.import_module(f"{__name__}.inference.tasks").MimoAudio
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
