"""How good a recording is: measures that need no model, and a slot for one that was trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from mimo_jax.data.audio import resample
from mimo_jax.preparation.elements import Element, Outcome, Stage
from mimo_jax.preparation.stages.loudness import integrated_loudness, peak_dbfs
from mimo_jax.preparation.stages.plugins import (
    LoadsOnce,
    QualityModel,
    package,
    recording,
    setup_plugin,
    with_scores,
)

_FRAME_SECONDS = 0.02
_DIGITAL_SILENCE = 1e-10  # power: -100 dB of full scale, below what 16 bits hold
_SILENCE = 1e-6  # power: -60 dB of full scale
_SILENCE_BELOW_SPEECH = 1e-4  # 40 dB
_FLOOR_SHARE = 0.05
_SNR_LIMITS = (-20.0, 80.0)
_CLIPPED = 0.97
_BAND_BELOW_PEAK = 1e-6  # 60 dB
_STEP_16_BIT = 2.0**-15


def frame_powers(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Variances float64 ``[frames]`` of consecutive 20 ms of ``[samples]``; a wave that is shorter is one frame.

    Variances, as an offset is no sound: it would be taken for noise.
    """
    size = min(len(wave), round(_FRAME_SECONDS * sample_rate))
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    return frames.var(axis=1, dtype=np.float64)


def snr_db(powers: np.ndarray) -> float:
    """Signal-to-noise ratio of `frame_powers`, within -20 to 80 dB.

    The noise is what the quietest twentieth of the frames hold (pauses, closures of stops); everything above it is
    signal. Within 3 dB for steady noise (white, pink, hum) at 0 to 30 dB; other voices in the background have pauses
    too and are underestimated (a babble at 10 dB reads some 16), and clean speech without any pause may read as little
    as 20. Digital silence at the ends is padding and does not count.
    """
    sounding = np.flatnonzero(powers > _DIGITAL_SILENCE)
    if not len(sounding):
        return _SNR_LIMITS[0]
    powers = np.sort(powers[sounding[0] : sounding[-1] + 1])
    noise = max(powers[: max(1, round(_FLOOR_SHARE * len(powers)))].mean(), 1e-12)
    signal = max(powers.mean() - noise, 1e-12)
    return float(np.clip(10.0 * np.log10(signal / noise), *_SNR_LIMITS))


def silence_ratio(powers: np.ndarray) -> float:
    """Share of `frame_powers` that are silent: below -60 dB of full scale, or 40 dB below the loudest twentieth."""
    return float(np.mean(powers < max(_SILENCE, _SILENCE_BELOW_SPEECH * np.quantile(powers, 0.95))))


def clipping_share(wave: np.ndarray) -> float:
    """Share of float32 ``[samples]`` near the peak, or near full scale where the peak lies above: some 1e-4 or less in
    sound speech, about the share that was cut off in clipped speech.

    Recordings that were clipped, turned down and then resampled are not recognised: the plateaus are gone.
    """
    height = np.abs(wave)
    return float(np.mean(height >= _CLIPPED * min(1.0, max(float(height.max()), 1e-9))))


def bandwidth_hz(wave: np.ndarray, sample_rate: int) -> float:
    """Highest frequency of float32 ``[samples]`` whose long-term power density is within 60 dB of the largest (and
    above the noise of 16-bit samples): about 4,000 for telephone speech, whatever rate it is stored at."""
    from scipy.signal import welch

    frequencies, density = welch(wave, sample_rate, nperseg=min(1024, len(wave)))
    threshold = max(float(density.max()) * _BAND_BELOW_PEAK, 4 * _STEP_16_BIT**2 / 12 / (sample_rate / 2))
    above = np.flatnonzero(density > threshold)
    return float(frequencies[above[-1]]) if len(above) else 0.0


@dataclasses.dataclass(frozen=True)
class Dnsmos(LoadsOnce):
    """DNSMOS P.835 and P.808 (arXiv 2110.01763), listeners' opinions predicted on a scale of 1 to 5, by the package
    ``speechmos``, which brings the networks.

    Scores: ``mos`` (overall), ``mos_signal``, ``mos_background``, ``mos_p808``.

    Attributes:
        excerpts: stretches of 9 s that are heard, evenly spread; each takes about 0.3 s of a core. Recordings that are
            shorter are heard once, repeated to 9 s.
    """

    excerpts: int = 1

    _RATE: ClassVar[int] = 16_000
    _SAMPLES: ClassVar[int] = int(9.01 * _RATE)
    _NAMES: ClassVar[dict[str, str]] = {
        "mos": "ovrl_mos",
        "mos_signal": "sig_mos",
        "mos_background": "bak_mos",
        "mos_p808": "p808_mos",
    }

    def __post_init__(self) -> None:
        if self.excerpts < 1:
            raise ValueError(f"Dnsmos.excerpts must be at least 1, not {self.excerpts}")

    def setup(self) -> None:
        """Loads the networks."""
        self._run(np.zeros(self._SAMPLES, np.float32), self._RATE)

    @functools.cached_property
    def _run(self) -> Any:
        package("onnxruntime", "onnxruntime", "quality.Dnsmos")
        return package("speechmos.dnsmos", "speechmos", "quality.Dnsmos").run

    def __call__(self, wave: np.ndarray, sample_rate: int) -> dict[str, float]:
        """Scores; see `plugins.QualityModel`."""
        heard = np.clip(resample(wave, sample_rate, self._RATE), -1.0, 1.0)
        spare = max(0, len(heard) - self._SAMPLES)
        # One excerpt: the middle; several: from the beginning to the end.
        starts = np.linspace(0, spare, self.excerpts) if self.excerpts > 1 else np.array([spare / 2])
        # The package fills short waves up by doubling and then hears several overlapping excerpts of the same.
        excerpts = [
            np.resize(heard[first : first + self._SAMPLES], self._SAMPLES) for first in np.unique(starts.astype(int))
        ]
        found = [self._run(excerpt, self._RATE) for excerpt in excerpts]
        return {name: float(np.mean([one[key] for one in found])) for name, key in self._NAMES.items()}


@dataclasses.dataclass(frozen=True)
class AudioQuality(Stage):
    """Measures a recording.

    Scores: ``snr_db``, ``clipping_share``, ``bandwidth_hz``, ``silence_ratio``, ``loudness_lufs``, ``peak_dbfs``,
    ``dc_offset`` (mean sample), each as of the function of that name, and those of the plug-in. Levels are of the
    recording as it was: what `loudness.Normalise` did to it before (``gain_db``) is undone.

    Attributes:
        learned: a trained model; see `plugins.QualityModel`. None: no such scores.
    """

    name: ClassVar[str] = "quality"
    learned: QualityModel | None = None

    def setup(self) -> None:
        setup_plugin(self.learned)

    def process(self, element: Element) -> Iterator[Outcome]:
        record, heard = recording(element)
        rate = element.sample_rate
        wave = heard * np.float32(10.0 ** (-record.scores.get("gain_db", 0.0) / 20.0))
        powers = frame_powers(wave, rate)
        scores = {
            "snr_db": snr_db(powers),
            "clipping_share": clipping_share(wave),
            "bandwidth_hz": bandwidth_hz(wave, rate),
            "silence_ratio": silence_ratio(powers),
            "loudness_lufs": integrated_loudness(wave, rate),
            "peak_dbfs": peak_dbfs(wave),
            "dc_offset": float(wave.mean(dtype=np.float64)),
        }
        if self.learned is not None:
            scores |= self.learned(heard, rate)
        yield dataclasses.replace(element, record=with_scores(record, scores))
