"""What the stages share: plug-ins (functions that a user may replace by gin) and what they load once per process."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Element, StageFault

Span = tuple[float, float]
"""Start and end in seconds."""
Turn = tuple[str, float, float]
"""Speaker, start and end in seconds."""


class Detector(Protocol):
    """Where somebody speaks. A function, or an object that may have ``setup()``, called once per process."""

    def __call__(self, wave: np.ndarray, sample_rate: int) -> Sequence[Span]:
        """Spans of speech in float32 ``[samples]`` at ``sample_rate`` Hz, ascending, not overlapping."""
        ...


class Diariser(Protocol):
    """Who speaks when."""

    def __call__(self, wave: np.ndarray, sample_rate: int) -> Sequence[Turn]:
        """Turns in float32 ``[samples]`` at ``sample_rate`` Hz, ascending by start; any names for the speakers."""
        ...


class Recogniser(Protocol):
    """What is said."""

    def __call__(self, waves: Sequence[np.ndarray], sample_rate: int) -> Sequence[str]:
        """A text for each of float32 ``[samples]`` at ``sample_rate`` Hz, whatever the others are; "" for nothing."""
        ...


class QualityModel(Protocol):
    """How good a recording is, as a trained model hears it."""

    def __call__(self, wave: np.ndarray, sample_rate: int) -> Mapping[str, float]:
        """Scores by name of float32 ``[samples]`` at ``sample_rate`` Hz."""
        ...


class Captioner(Protocol):
    """What a recording sounds like, in words."""

    def __call__(self, wave: np.ndarray, sample_rate: int, record: Record) -> str | None:
        """A description of float32 ``[samples]`` at ``sample_rate`` Hz; None where there is nothing to say."""
        ...


class LoadsOnce:
    """For frozen dataclasses: whatever is not a field (a `functools.cached_property`) stays out of pickles."""

    def __getstate__(self) -> dict[str, Any]:
        assert dataclasses.is_dataclass(self)
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def setup_plugin(plugin: Any) -> None:
    """Lets a plug-in load what it needs, if it has a ``setup``."""
    if (setup := getattr(plugin, "setup", None)) is not None:
        setup()


def package(module: str, distribution: str, user: str) -> Any:
    """An optional module.

    Raises:
        StageFault: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StageFault(f"{user} needs the package {distribution} ({error}): pip install {distribution}") from error


def recording(element: Element) -> tuple[Record, np.ndarray]:
    """Record and wave of a decoded element.

    Raises:
        StageFault: it is no recording, or was not decoded.
    """
    if not isinstance(element.record, Record) or element.wave is None:
        raise StageFault(f"{element.id}: a decoded recording is needed here; put decode.Decode first in the chain")
    return element.record, element.wave


def with_scores(record: Record, scores: Mapping[str, float]) -> Record:
    """The record with more scores, rounded to six decimals so that a manifest stays readable."""
    return dataclasses.replace(record, scores={**record.scores, **{k: round(float(v), 6) for k, v in scores.items()}})
