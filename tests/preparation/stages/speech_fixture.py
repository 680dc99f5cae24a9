"""Real synthesised speech for the stages: cheap, and with everything about it known."""

import functools

import numpy as np

from mimo_jax.data.audio import resample
from mimo_jax.data.corpus.espeak import SAMPLE_RATE, synthesize
from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Element

RATE = 24_000
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "Please turn the light on in the kitchen and close the door.",
    "Seven boats went down the river before the rain began to fall.",
)


@functools.cache
def speech(text: str = SENTENCES[0], voice: str = "en-us", rate: int = 175, pitch: int = 50) -> np.ndarray:
    """Speech float32 [samples] at `RATE`, without silence at its ends, peak 0.5."""
    wave = resample(synthesize(text, voice=voice, rate=rate, pitch=pitch), SAMPLE_RATE, RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    wave = wave[loud[0] : loud[-1] + 1]
    return wave * np.float32(0.5 / np.abs(wave).max())


def silence(seconds: float) -> np.ndarray:
    """Digital silence float32 [samples] at `RATE`."""
    return np.zeros(round(seconds * RATE), np.float32)


def joined(*waves: np.ndarray) -> np.ndarray:
    """One wave after the other."""
    return np.concatenate(waves)


def element(wave: np.ndarray, **fields) -> Element:
    """A decoded recording."""
    return Element(Record(**{"id": "rec", "audio": "rec.wav", **fields}), wave, RATE)


def only(outcomes):
    """The single outcome of a stage."""
    (outcome,) = list(outcomes)
    return outcome
