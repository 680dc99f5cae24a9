"""What the suite needs of the systems it measures, as protocols; and loading the exported folders behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from mimo_jax.evaluation.judge import Judge

Wave = np.ndarray  # mono float32 [samples] at 24 kHz
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shot:
    """One example of a conversion: source wave, its transcript said again by the target wave."""

    source: Wave
    text: str
    target: Wave


@dataclasses.dataclass(frozen=True)
class ConversionRequest:
    """A conversion shown by examples."""

    instruction: str
    shots: tuple[Shot, ...]
    query: Wave


@dataclasses.dataclass(frozen=True, eq=False)
class Reasoned(Generic[T]):
    """An answer and what was thought before it; the answer is empty where the thought did not come to an end."""

    answer: T
    thought: str | None


class Codec(Protocol):
    """The audio tokenizer in use."""

    def encode(self, waves: Sequence[Wave]) -> list[np.ndarray]:
        """Codes int [frames, codebooks] of each wave."""
        ...

    def decode(self, codes: Sequence[np.ndarray]) -> list[Wave]:
        """Waves of codes."""
        ...


class SpeechModel(Protocol):
    """The language model in use. Requests are batched inside; request i draws from ``seeds[i]`` alone."""

    def asr(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[str]:
        """Transcripts."""
        ...

    def tts(self, texts: Sequence[str], *, seeds: Sequence[int]) -> list[Wave]:
        """Speech of texts."""
        ...

    def continue_speech(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[Wave]:
        """What follows each prompt, without the prompt."""
        ...

    def convert(self, requests: Sequence[ConversionRequest], *, seeds: Sequence[int]) -> list[Wave]:
        """Few-shot speech-to-speech conversion."""
        ...

    def answer_about_audio(self, waves: Sequence[Wave], questions: Sequence[str], *, seeds: Sequence[int]) -> list[str]:
        """Text answers to questions about recordings."""
        ...

    def answer_after_thinking(
        self, waves: Sequence[Wave], questions: Sequence[str], *, seeds: Sequence[int]
    ) -> list[Reasoned[str]]:
        """Text answers to questions about recordings, each after a thought."""
        ...

    def answer_in_writing(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[str]:
        """Text answers to spoken questions."""
        ...

    def speak_as_instructed(
        self, texts: Sequence[str], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> list[Reasoned[Wave]]:
        """Speech of texts in described styles, each after a thought."""
        ...

    def answer_in_speech(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[Wave]:
        """Spoken answers to spoken questions."""
        ...


@dataclasses.dataclass(frozen=True)
class Systems:
    """Everything under test, and the judge. ``model`` is None when only the tokenizer is measured."""

    judge: Judge
    codec: Codec
    model: SpeechModel | None
    sample_rate: int = 24_000
