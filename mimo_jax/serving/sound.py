"""Bytes to waves and back."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np

from mimo_jax.data import audio
from mimo_jax.serving.errors import bad
from mimo_jax.serving.schema import Recording

_MAX_CHANNELS = 8
# Recordings of a higher rate may be shorter: what is held while they are decoded is the same.
_REFERENCE_RATE = 48_000
_STREAMED_BYTES = 0xFFFFFFFF


def decode(recording: Recording, sample_rate: int, max_seconds: float) -> np.ndarray:
    """An uploaded file as mono float32 [samples] at `sample_rate` Hz.

    Decoding goes block by block and stops at the limit: a small file may hold hours.

    Raises:
      ApiError: 400; what is wrong with it.
    """
    where, data = recording.where, recording.data
    if not _is_known(data):
        raise bad(
            f"{where}: these {len(data)} bytes are no WAV, MP3, FLAC or Ogg file; convert the recording to one",
            where,
            "invalid_audio",
        )
    limit = _checked_limit(recording, max_seconds)
    try:
        wave, rate = audio.read_bytes(where, data, max_seconds=limit)
    except audio.AudioError as error:
        raise bad(f"{where}: {error.reason}: {error.detail}", where, f"audio_{error.reason}") from None
    return audio.resample(wave, rate, sample_rate)


def _is_known(data: bytes) -> bool:
    """Whether the file begins as one of the formats that are taken; libsndfile would read many more."""
    known = data[:4] in (b"RIFF", b"RF64", b"fLaC", b"OggS") or data[:3] == b"ID3"
    return known or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0)


def _checked_limit(recording: Recording, max_seconds: float) -> float:
    """Checks what the header says; seconds that may be decoded."""
    import soundfile

    where = recording.where
    try:
        with soundfile.SoundFile(io.BytesIO(recording.data)) as file:
            rate, channels, frames = file.samplerate, file.channels, file.frames
    except (soundfile.LibsndfileError, TypeError, ValueError, RuntimeError):
        return max_seconds  # the reader says what is wrong
    if channels > _MAX_CHANNELS:
        raise bad(f"{where} has {channels} channels; at most {_MAX_CHANNELS} are taken", where, "invalid_audio")
    limit = max_seconds * min(1.0, _REFERENCE_RATE / max(rate, 1))
    # Where the header does not know, the reader says so.
    if limit * rate < frames < audio.UNKNOWN_FRAMES:
        raise bad(
            f"{where} has {frames / rate:.1f} s at {rate} Hz; {limit:.1f} s of audio are left of what a request may "
            "hold: send less",
            where,
            "audio_too_long",
        )
    return limit


# ----- writing --------------------------------------------------------------------------------------------------------


class Encoder:
    """Waves to the bytes of a file while they come: WAV and raw samples at once, other formats at the end.

    Args:
      kind: wav, pcm (= pcm16: 16 bits, little-endian, mono), flac, mp3 or opus (in Ogg).
      sample_rate: Hz.
    """

    def __init__(self, kind: str, sample_rate: int) -> None:
        self._kind, self._rate = kind, sample_rate
        self._held: list[np.ndarray] = []
        self._begun = False

    def __call__(self, wave: np.ndarray) -> bytes:
        """Bytes of the next samples, float32 [samples] in [-1, 1]; may be none yet."""
        if self._kind not in ("pcm", "pcm16", "wav"):
            self._held.append(_samples(wave))
            return b""
        header = b"" if self._begun or self._kind != "wav" else _wav_header(self._rate, _STREAMED_BYTES)
        self._begun = True
        return header + _samples(wave).tobytes()

    def end(self) -> bytes:
        """Bytes of what is left."""
        if self._kind in ("pcm", "pcm16", "wav"):
            return b""
        return _write(np.concatenate([np.zeros(0, np.int16), *self._held]), self._rate, self._kind)


def encode(wave: np.ndarray, sample_rate: int, kind: str) -> bytes:
    """A whole file (formats as of `Encoder`) of float32 [samples]."""
    samples = _samples(wave)
    if kind in ("pcm", "pcm16"):
        return samples.tobytes()
    if kind == "wav":
        return _wav_header(sample_rate, samples.nbytes) + samples.tobytes()
    return _write(samples, sample_rate, kind)


MEDIA_TYPES: dict[str, Callable[[int], str]] = {
    "wav": lambda rate: "audio/wav",
    "pcm": lambda rate: f"audio/pcm;rate={rate};encoding=signed-int;bits=16",
    "flac": lambda rate: "audio/flac",
    "mp3": lambda rate: "audio/mpeg",
    "opus": lambda rate: "audio/ogg;codecs=opus",
}


def _samples(wave: np.ndarray) -> np.ndarray:
    return np.round(np.clip(wave, -1.0, 1.0) * 32767.0).astype("<i2")


def _wav_header(rate: int, size: int) -> bytes:
    """Of 16-bit mono; an unknown size is all ones, in both places."""
    riff = size if size == _STREAMED_BYTES else size + 36
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + fmt + struct.pack("<4sI", b"data", size)


def _write(samples: np.ndarray, rate: int, kind: str) -> bytes:
    import soundfile

    if not len(samples):  # no encoder makes a file of nothing
        return b""
    container, subtype = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", None), "opus": ("OGG", "OPUS")}[kind]
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()
