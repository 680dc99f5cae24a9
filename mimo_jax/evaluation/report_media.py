"""Pictures and sound for the report, as data addresses: spectrogram PNGs and FLAC clips."""

from __future__ import annotations

import base64
import io
import os

import numpy as np

from mimo_jax.evaluation.metrics import log_mel_frames

# Dark violet to pale yellow, even in brightness, readable in grey and by colour-blind readers.
_ANCHORS = np.array([(8, 6, 24), (66, 15, 107), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 253, 191)], float)
_RANGE = 7.0  # natural-log units (about 61 dB) below the loudest bin


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def spectrogram(wave: np.ndarray, sample_rate: int, frames: int) -> str:
    """A mel spectrogram (80 bins, time to the right, low frequencies at the bottom), padded or cut to ``frames``."""
    from PIL import Image

    mel = log_mel_frames(wave, sample_rate)[:frames]
    level = np.clip((mel - mel.max()) / _RANGE + 1, 0, 1)
    level = np.pad(level, ((0, frames - len(level)), (0, 0))).T[::-1]
    image = Image.fromarray((level * 255).round().astype(np.uint8))
    steps = np.linspace(0, len(_ANCHORS) - 1, 256)
    palette = np.stack([np.interp(steps, np.arange(len(_ANCHORS)), _ANCHORS[:, c]) for c in range(3)], axis=1)
    image.putpalette(palette.round().astype(np.uint8).tobytes())
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return _address("image/png", out.getvalue())


def clip(path: str | os.PathLike[str], max_seconds: float) -> str:
    """An audio file as FLAC, cut to ``max_seconds``."""
    import soundfile

    with soundfile.SoundFile(path) as file:
        wave = file.read(int(max_seconds * file.samplerate), dtype="int16")
        rate = file.samplerate
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format="FLAC", subtype="PCM_16")
    return _address("audio/flac", out.getvalue())


def read_wave(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """(mono float32 [samples], sample rate) of a sample."""
    import soundfile

    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return wave[:, 0], rate
