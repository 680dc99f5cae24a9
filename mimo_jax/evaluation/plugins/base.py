"""Interfaces of the models that evaluation asks from outside: speech recognition, judges, embedders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from mimo_jax.endpoints import CallError as PluginError
from mimo_jax.endpoints import number_option as number_option
from mimo_jax.endpoints import split_options as split_options


@runtime_checkable
class Transcriber(Protocol):
    """Writes down speech.

    Attributes:
      identity: what decides the results (kind, model, settings), to be stored with the scores; the same of every
        plug-in below.
    """

    identity: str

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int, language: str) -> list[str]:
        """Texts of mono float32 waves [samples] at ``sample_rate`` Hz, whatever the others are.

        Args:
          waves: an empty one has the text "".
          sample_rate: any; recognisers that need another rate resample.
          language: ISO 639-1 code ("en", "zh"); "" where it is not known.

        Raises:
          PluginError: it failed and can be tried again.
        """
        ...


@runtime_checkable
class Judge(Protocol):
    """A language model that answers prompts about answers."""

    identity: str

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Raw replies, one for each prompt, each prompt in a conversation of its own.

        Raises:
          PluginError: it failed and can be tried again.
        """
        ...


@runtime_checkable
class TextEmbedder(Protocol):
    """Texts as points whose cosines say how much they mean the same."""

    identity: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [texts, D] of unit length; zeros for a text in which the embedder finds nothing.

        Raises:
          PluginError: it failed and can be tried again.
        """
        ...


@runtime_checkable
class SpeakerEmbedder(Protocol):
    """Recordings as points whose cosines say how alike their voices are."""

    identity: str

    def embed(self, waves: Sequence[np.ndarray], sample_rate: int) -> np.ndarray:
        """Float32 [waves, D] of unit length for mono float32 waves [samples] at ``sample_rate`` Hz.

        An empty or silent wave has zeros: its cosine with every voice is 0, so that a model that says nothing is like
        nobody.

        Raises:
          PluginError: it failed and can be tried again.
        """
        ...


@runtime_checkable
class TranslationScorer(Protocol):
    """Quality of translations by a trained metric."""

    identity: str

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Float64 [texts], higher is better, on the metric's own scale.

        Raises:
          PluginError: it failed and can be tried again.
        """
        ...


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Float32 [N, D] scaled to length 1; rows of zeros stay.

    Raises:
      PluginError: a value that is not finite.
    """
    vectors = np.asarray(vectors, np.float64)
    if not np.isfinite(vectors).all():
        raise PluginError("an embedding has values that are not finite")
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def digest(*parts: str | bytes | Path) -> str:
    """Twelve hexadecimal digits of SHA-256 over texts, bytes and the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                own = hashlib.file_digest(file, "sha256").digest()
        else:
            own = hashlib.sha256(part.encode() if isinstance(part, str) else part).digest()
        total.update(own)
    return total.hexdigest()[:12]
