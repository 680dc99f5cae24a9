"""The pitch of a recording."""

from __future__ import annotations

import numpy as np

_LIMITS_HZ = (60.0, 400.0)
_LOUD_ENOUGH = 0.1  # of the loudest frame's amplitude: 20 dB


def median_pitch(wave: np.ndarray, sample_rate: int) -> float | None:
    """Median pitch in Hz over the loud frames of ``[samples]`` (YIN); None below 0.1 s or in digital silence."""
    import librosa

    if len(wave) < 0.1 * sample_rate or not wave.any():
        return None
    frame, hop = round(0.05 * sample_rate), round(0.02 * sample_rate)
    pitch = librosa.yin(
        wave, fmin=_LIMITS_HZ[0], fmax=_LIMITS_HZ[1], sr=sample_rate, frame_length=frame, hop_length=hop
    )
    level = librosa.feature.rms(y=wave, frame_length=frame, hop_length=hop)[0][: len(pitch)]
    return float(np.median(pitch[level >= _LOUD_ENOUGH * level.max()]))
