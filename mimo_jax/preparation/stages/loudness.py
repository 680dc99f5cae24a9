"""Loudness by ITU-R BS.1770: measured, and brought to one level."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from mimo_jax.preparation.elements import Element, Outcome, Stage
from mimo_jax.preparation.stages.plugins import package, recording, with_scores

FLOOR_LUFS = -70.0
"""The absolute gate of BS.1770: what is quieter counts as silence, and is measured as this."""
_BLOCK_SECONDS = 0.4
_TINY = 1e-9


def integrated_loudness(wave: np.ndarray, sample_rate: int) -> float:
    """Gated loudness in LUFS of mono float32 ``[samples]``, at least `FLOOR_LUFS`.

    A wave shorter than one gating block of 400 ms is repeated until it fills one: its ungated loudness.
    """
    block = int(np.ceil(_BLOCK_SECONDS * sample_rate)) + 1
    samples = np.asarray(wave, np.float64)
    if len(samples) < block:
        samples = np.resize(samples, block)
    meter = package("pyloudnorm", "pyloudnorm", "loudness").Meter(sample_rate)
    return max(FLOOR_LUFS, float(meter.integrated_loudness(samples)))


def peak_dbfs(wave: np.ndarray) -> float:
    """Largest sample in dB of full scale; -180 for digital silence."""
    return 20.0 * float(np.log10(max(_TINY, float(np.abs(wave).max()))))


@dataclasses.dataclass(frozen=True)
class Normalise(Stage):
    """Scales a wave to one loudness, never so far that its peak passes a limit or that mere noise becomes loud.

    Scores: ``loudness_lufs`` of the wave as it came, and ``gain_db``, what it was scaled by (the file itself is not
    changed).

    Attributes:
        target_lufs: loudness to reach; -23 is that of EBU R 128.
        peak_dbfs: limit of the largest sample; it wins over the target.
        max_gain_db: limit of the amplification; quieter recordings stay quieter than the target.
    """

    name: ClassVar[str] = "normalise"
    target_lufs: float = -23.0
    peak_dbfs: float = -1.0
    max_gain_db: float = 20.0

    def __post_init__(self) -> None:
        if self.peak_dbfs > 0 or self.max_gain_db < 0:
            raise ValueError(
                f"Normalise: peak_dbfs must be <= 0 and max_gain_db >= 0, not {self.peak_dbfs} and {self.max_gain_db}"
            )

    def process(self, element: Element) -> Iterator[Outcome]:
        record, wave = recording(element)
        loudness = integrated_loudness(wave, element.sample_rate)
        gain = min(self.target_lufs - loudness, self.max_gain_db, self.peak_dbfs - peak_dbfs(wave))
        record = with_scores(record, {"loudness_lufs": loudness, "gain_db": gain})
        yield dataclasses.replace(element, record=record, wave=wave * np.float32(10.0 ** (gain / 20.0)))
