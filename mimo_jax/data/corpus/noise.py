"""Levels and background noises with a known signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_PEAK_LIMIT = 0.97


def rms(wave: np.ndarray) -> float:
    """Root mean square of ``[samples]``."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def trim(wave: np.ndarray, sample_rate: int, before: float, after: float) -> np.ndarray:
    """Cuts silence off both ends and puts ``before`` and ``after`` seconds of it back."""
    loud = np.flatnonzero(np.abs(wave) > 0.005 * np.abs(wave).max())
    speech = wave[loud[0] : loud[-1] + 1]
    return np.pad(speech, (round(before * sample_rate), round(after * sample_rate)))


def set_level(wave: np.ndarray, level_db: float) -> np.ndarray:
    """Scales to an RMS of ``level_db`` dB of full scale, or to just below clipping where that comes first."""
    scaled = wave * (10.0 ** (level_db / 20.0) / rms(wave))
    return limit_peak(scaled.astype(np.float32))


def limit_peak(wave: np.ndarray) -> np.ndarray:
    """Scales down a wave whose peak would clip."""
    peak = float(np.abs(wave).max())
    return wave if peak <= _PEAK_LIMIT else wave * np.float32(_PEAK_LIMIT / peak)


def mix(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Adds ``noise`` (same length) so that the RMS ratio speech : noise is ``snr_db``; the sum never clips."""
    gain = rms(speech) / max(rms(noise), 1e-9) * 10.0 ** (-snr_db / 20.0)
    return limit_peak((speech + gain * noise).astype(np.float32))


def white(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Flat spectrum, float32 ``[samples]``."""
    return rng.standard_normal(samples, dtype=np.float32)


def pink(rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Power falling as 1/f above 20 Hz, float32 ``[samples]``."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1.0 / sample_rate)
    spectrum /= np.sqrt(np.maximum(frequency, 20.0))
    spectrum[0] = 0.0
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def hum(rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """50 or 60 Hz mains hum with falling harmonics of random phase, float32 ``[samples]``."""
    base = (50.0, 60.0)[int(rng.integers(2))]
    time = np.arange(samples) / sample_rate
    phases = rng.uniform(0.0, 2.0 * np.pi, 10)
    return sum(np.sin(2 * np.pi * base * k * time + phases[k - 1]) / k for k in range(1, 11)).astype(np.float32)


def babble(rng: np.random.Generator, samples: int, talkers: Sequence[np.ndarray]) -> np.ndarray:
    """Several talkers at once, each looped from a random place, float32 ``[samples]``."""
    total = np.zeros(samples, np.float32)
    for wave in talkers:
        start = int(rng.integers(len(wave)))
        total += np.resize(np.roll(wave / rms(wave), -start), samples).astype(np.float32)
    return total
