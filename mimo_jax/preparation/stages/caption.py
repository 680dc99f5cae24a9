"""Descriptions of how a recording sounds, for those that have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from mimo_jax.data.librosa_loading import load_librosa
from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Element, Outcome, Stage
from mimo_jax.preparation.stages.plugins import Captioner, recording, setup_plugin

_PITCH_LIMITS_HZ = (60.0, 400.0)
_LOUD_ENOUGH = 0.1  # of the loudest frame's amplitude: 20 dB


@dataclasses.dataclass(frozen=True)
class MeasuredCaption:
    """A sentence from measures: pitch, rate of the text, and what earlier stages scored (loudness, noise, bandwidth).

    "a low voice speaks quickly; there is background noise; it sounds like a telephone". What was not measured is not
    mentioned, nor is anything that a measure cannot tell (gender, age, mood).

    Attributes:
        excerpt: seconds from the middle in which the pitch is measured.
        low_hz, high_hz: median pitch below and above which a voice is called low and high.
        slow, fast: words per second of speech.
        quiet_lufs, loud_lufs: loudness of the recording as it was.
        noisy_db, very_noisy_db, clean_db: signal-to-noise ratios.
        telephone_hz: bandwidth up to which it sounds like one.
        distorted: share of clipped samples.
    """

    excerpt: float = 6.0
    low_hz: float = 140.0
    high_hz: float = 200.0
    slow: float = 2.2
    fast: float = 3.4
    quiet_lufs: float = -38.0
    loud_lufs: float = -16.0
    noisy_db: float = 15.0
    very_noisy_db: float = 5.0
    clean_db: float = 30.0
    telephone_hz: float = 4500.0
    distorted: float = 0.005

    def __call__(self, wave: np.ndarray, sample_rate: int, record: Record) -> str:
        """The sentence; see `plugins.Captioner`."""
        manner = [word for word in (self._rate(wave, sample_rate, record), self._loudness(record)) if word]
        speaking = f"a {self._voice(wave, sample_rate)} speaks {' and '.join(manner)}".rstrip()
        return "; ".join([speaking, *self._surroundings(record)])

    def _voice(self, wave: np.ndarray, sample_rate: int) -> str:
        spare = max(0, len(wave) - round(self.excerpt * sample_rate)) // 2
        pitch = median_pitch(wave[spare : len(wave) - spare], sample_rate)
        if pitch is None:
            return "voice"
        return "low voice" if pitch < self.low_hz else "high voice" if pitch > self.high_hz else "voice of medium pitch"

    def _rate(self, wave: np.ndarray, sample_rate: int, record: Record) -> str:
        words = len((record.text or "").split())
        if words < 3:  # or a script without spaces
            return ""
        rate = words * sample_rate / (len(wave) * max(0.1, record.scores.get("speech_share", 1.0)))
        return "slowly" if rate < self.slow else "quickly" if rate > self.fast else "at a normal pace"

    def _loudness(self, record: Record) -> str:
        loudness = record.scores.get("loudness_lufs")
        if loudness is None or self.quiet_lufs <= loudness <= self.loud_lufs:
            return ""
        return "quietly" if loudness < self.quiet_lufs else "loudly"

    def _surroundings(self, record: Record) -> list[str]:
        said = []
        snr = record.scores.get("snr_db")
        if snr is not None and snr < self.noisy_db:
            said.append(f"there is {'loud ' if snr < self.very_noisy_db else ''}background noise")
        elif snr is not None and snr > self.clean_db:
            said.append("there is no noise")
        if record.scores.get("bandwidth_hz", np.inf) < self.telephone_hz:
            said.append("it sounds like a telephone")
        if record.scores.get("clipping_share", 0.0) > self.distorted:
            said.append("the sound is distorted")
        return said


def median_pitch(wave: np.ndarray, sample_rate: int) -> float | None:
    """Median pitch in Hz over the loud frames of ``[samples]`` (YIN); None below 0.1 s or in digital silence."""
    if len(wave) < 0.1 * sample_rate or not wave.any():
        return None
    librosa = load_librosa()
    frame, hop = round(0.05 * sample_rate), round(0.02 * sample_rate)
    pitch = librosa.yin(
        wave, fmin=_PITCH_LIMITS_HZ[0], fmax=_PITCH_LIMITS_HZ[1], sr=sample_rate, frame_length=frame, hop_length=hop
    )
    level = librosa.feature.rms(y=wave, frame_length=frame, hop_length=hop)[0][: len(pitch)]
    return float(np.median(pitch[level >= _LOUD_ENOUGH * level.max()]))


@dataclasses.dataclass(frozen=True)
class Caption(Stage):
    """Describes recordings that have no caption; marks it by ``attributes["caption_source"] = "captioned"``.

    Attributes:
        captioner: plug-in; see `plugins.Captioner`.
    """

    name: ClassVar[str] = "caption"
    captioner: Captioner = MeasuredCaption()

    def setup(self) -> None:
        setup_plugin(self.captioner)

    def process(self, element: Element) -> Iterator[Outcome]:
        record, wave = recording(element)
        if record.caption is None and (made := self.captioner(wave, element.sample_rate, record)):
            attributes = {**record.attributes, "caption_source": "captioned"}
            element = dataclasses.replace(
                element, record=dataclasses.replace(record, caption=made, attributes=attributes)
            )
        yield element
