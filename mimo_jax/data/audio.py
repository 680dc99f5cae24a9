"""Reading and writing audio files: any common format in, mono float32 at one sample rate out.

Every kind of unusable file becomes an :class:`AudioError` with a machine-readable reason, so that callers count and
list bad files instead of crashing on them or, worse, training on half of one. A file may also be named by a URL, or be
a part of another one: see :mod:`mimo_jax.data.references`.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mimo_jax.data.references import AudioError, is_reference, open_reference
from mimo_jax.files import replacing

SAMPLE_RATE = 24_000
"""The sample rate (Hz) of the audio tokenizer's waveforms."""

REASONS: dict[str, str] = {
    "missing": "no such file",
    "unreadable": "the file cannot be opened (permissions, I/O, a package that reads it is not installed)",
    "bad_reference": "the range of bytes or the row that is named is not in the file",
    "empty_file": "the file has 0 bytes",
    "not_audio": "no known audio format",
    "corrupt": "an audio header, but nothing that can be decoded",
    "truncated": "fewer frames than the header promises",
    "zero_length": "a valid file with no frames",
    "bad_sample_rate": "a sample rate outside what audio is recorded at",
    "bad_range": "start and end lie outside the recording",
    "too_short": "shorter than the lower limit",
    "too_long": "longer than the upper limit",
    "silent": "the peak is below the silence threshold",
    "non_finite": "NaN or infinite samples",
}
"""Every reason an :class:`AudioError` can carry, with its meaning."""

MIN_SECONDS = 0.02
MAX_SECONDS = 3600.0
SILENCE_PEAK = 1e-4
RATE_LIMITS = (4_000, 384_000)
"""Sample rates (Hz) that audio is recorded at."""
_BLOCK_SAMPLES = 1 << 21
# Mean rounding of `end` in hand-made manifests: an end this much past the last sample is taken as the last sample.
_END_TOLERANCE_SECONDS = 0.1
# An MP3 header counts whole frames of 1,152 samples and encoders disagree on the last one.
_MP3_SLACK_FRAMES = 1152
_UNKNOWN_SIZE = 0xFFFFFFFF
UNKNOWN_FRAMES = 1 << 62
"""Of `soundfile.SoundFile`: so many or more say that the header does not know."""


def load_audio(
    path: str | os.PathLike[str],
    sample_rate: int = SAMPLE_RATE,
    start: float | None = None,
    end: float | None = None,
    *,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
    silence_peak: float = SILENCE_PEAK,
) -> np.ndarray:
    """Reads a file, or the part from ``start`` to ``end`` seconds, as mono float32 ``[samples]`` at ``sample_rate`` Hz.

    ``path`` is a local path or a reference (:mod:`mimo_jax.data.references`: URLs, ranges of bytes, rows of tables).
    Channels are averaged; resampling is soxr's HQ. The limits are in seconds of the part that is read.

    Raises:
      AudioError: with one of :data:`REASONS`.
    """
    wave, native_rate = read_native(
        path, start, end, min_seconds=min_seconds, max_seconds=max_seconds, silence_peak=silence_peak
    )
    return resample(wave, native_rate, sample_rate)


def resample(wave: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Float32 ``[samples]`` at ``from_rate`` Hz to float32 at ``to_rate`` Hz."""
    if from_rate == to_rate:
        return wave
    import soxr

    return soxr.resample(wave, from_rate, to_rate, quality="HQ").astype(np.float32, copy=False)


def read_native(
    path: str | os.PathLike[str],
    start: float | None = None,
    end: float | None = None,
    *,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
    silence_peak: float = SILENCE_PEAK,
) -> tuple[np.ndarray, int]:
    """Like :func:`load_audio` without resampling: (mono float32 ``[samples]``, the file's own sample rate in Hz)."""
    limits = (min_seconds, max_seconds, silence_peak)
    if is_reference(os.fspath(path)):
        with open_reference(os.fspath(path)) as file:
            try:
                _check_bytes(path, file)
                file.seek(0)
            except OSError as error:
                raise AudioError("unreadable", path, str(error)) from error
            return _read(path, file, start, end, limits)
    path = Path(path)
    check_file(path)
    return _read(path, path, start, end, limits)


def read_bytes(
    name: str,
    data: bytes,
    *,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
    silence_peak: float = SILENCE_PEAK,
) -> tuple[np.ndarray, int]:
    """Like :func:`read_native` for the bytes of a whole file; ``name`` is what errors call it."""
    _check_bytes(name, io.BytesIO(data))
    return _read(name, io.BytesIO(data), None, None, (min_seconds, max_seconds, silence_peak))


def _read(
    path: str | os.PathLike[str],
    source: Path | BinaryIO,
    start: float | None,
    end: float | None,
    limits: tuple[float, float, float],
) -> tuple[np.ndarray, int]:
    """(wave, sample rate) of what passed the check of its container; ``limits`` as in :func:`read_native`."""
    import soundfile

    min_seconds, max_seconds, silence_peak = limits
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise open_error(path, source, str(error)) from error
    with file:
        if not RATE_LIMITS[0] <= file.samplerate <= RATE_LIMITS[1]:
            raise AudioError(
                "bad_sample_rate", path, f"{file.samplerate} Hz, allowed are {RATE_LIMITS[0]} to {RATE_LIMITS[1]} Hz"
            )
        check_length(path, file)
        first, count, to_the_end = _frame_range(path, file.frames, file.samplerate, start, end)
        if count > max_seconds * file.samplerate and not to_the_end:
            raise AudioError("too_long", path, f"{count / file.samplerate:.2f} s, the limit is {max_seconds:g} s")
        wave = _decode(path, file, first, count, max_seconds)
        native_rate = file.samplerate
    seconds = len(wave) / native_rate
    if seconds < min_seconds:
        raise AudioError("too_short", path, f"{seconds:.4f} s, the limit is {min_seconds:g} s")
    if not np.isfinite(wave).all():
        raise AudioError("non_finite", path, f"{int((~np.isfinite(wave)).sum())} of {len(wave)} samples are NaN or inf")
    peak = float(np.abs(wave).max())
    if peak < silence_peak:
        raise AudioError("silent", path, f"peak {peak:.2g}, the threshold is {silence_peak:g}")
    return wave, native_rate


def write_flac(path: str | os.PathLike[str], wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Writes mono ``[samples]`` in [-1, 1] as 16-bit FLAC, atomically. Values outside are clipped.

    Raises:
      ValueError: the wave is not one-dimensional, empty or not finite.
    """
    _write(path, wave, sample_rate, "FLAC", "PCM_16", compression_level=0.5)


def write_wav(path: str | os.PathLike[str], wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Writes mono ``[samples]`` in [-1, 1] as 16-bit WAV, atomically. Values outside are clipped.

    Raises:
      ValueError: the wave is not one-dimensional, empty or not finite.
    """
    _write(path, wave, sample_rate, "WAV", "PCM_16")


def _write(path: str | os.PathLike[str], wave: np.ndarray, rate: int, kind: str, subtype: str, **options: Any) -> None:
    import soundfile

    wave = np.asarray(wave, np.float32)
    if wave.ndim != 1 or wave.size == 0:
        raise ValueError(f"{path}: a mono wave [samples] with at least one sample is needed, got shape {wave.shape}")
    if not np.isfinite(wave).all():
        raise ValueError(f"{path}: the wave has NaN or infinite samples")
    pcm = np.round(np.clip(wave, -1.0, 1.0) * 32767.0).astype(np.int16)
    with replacing(path) as partial:
        soundfile.write(partial, pcm, rate, format=kind, subtype=subtype, **options)


def _frame_range(
    path: str | os.PathLike[str], frames: int, rate: int, start: float | None, end: float | None
) -> tuple[int, int, bool]:
    """(first frame, number of frames, whether that is all up to the end the header promises)."""
    if frames <= 0:
        raise AudioError("zero_length", path, "the file holds no frames")
    total = frames / rate
    begin, stop = start or 0.0, total if end is None else end
    if not (0.0 <= begin < stop) or begin >= total or stop > total + _END_TOLERANCE_SECONDS:
        raise AudioError("bad_range", path, f"start {start} s, end {end} s, but the recording has {total:.3f} s")
    first = round(begin * rate)
    last = frames if end is None else min(frames, round(stop * rate))
    return first, last - first, end is None


def _decode(path: str | os.PathLike[str], file: Any, first: int, count: int, max_seconds: float) -> np.ndarray:
    """Decodes block by block: memory follows what is really there, whatever a damaged header promises."""
    import soundfile

    limit = int(max_seconds * file.samplerate)
    size = max(1, _BLOCK_SAMPLES // file.channels)  # hundreds of channels compress to nothing
    blocks: list[np.ndarray] = []
    done = 0
    try:
        file.seek(first)
        while done < count:
            block = file.read(min(size, count - done), dtype="float32", always_2d=True)
            if len(block) == 0:
                break
            blocks.append(block.mean(axis=1, dtype=np.float32))
            done += len(block)
            if done > limit:
                raise AudioError(
                    "too_long", path, f"{count / file.samplerate:.2f} s promised, the limit is {max_seconds:g} s"
                )
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            "truncated", path, f"decoding stops after {first + done} of {first + count} frames ({error})"
        ) from error
    if done < count - slack_frames(file) or done == 0:
        raise AudioError("truncated", path, f"only {first + done} of {first + count} frames can be decoded")
    return np.concatenate(blocks)


def check_length(path: str | os.PathLike[str], file: Any) -> None:
    """Raises AudioError where the header of an open `soundfile.SoundFile` does not say how much there is."""
    if file.frames >= UNKNOWN_FRAMES:  # libsndfile cannot find the end of it either
        raise AudioError(
            "corrupt",
            path,
            "the header does not say how long it is, as of FLAC from a pipe; write it anew (ffmpeg -i IN OUT.flac)",
        )


def slack_frames(file: Any) -> int:
    """Frames that may lack of those which the header of an open `soundfile.SoundFile` counts."""
    return _MP3_SLACK_FRAMES if "MPEG" in file.subtype else 0


def check_file(path: Path) -> None:
    """What can be told of a local file without a decoder; raises AudioError."""
    try:
        if not path.is_file():
            raise AudioError("missing", path, "not a file" if path.exists() else "no such file")
        with open(path, "rb") as file:
            _check_bytes(path, file)
    except OSError as error:
        raise AudioError("unreadable", path, str(error)) from error


def _check_bytes(path: str | os.PathLike[str], file: BinaryIO) -> None:
    """What only the bytes can tell: decoders quietly shorten a WAV, AIFF, AU or Ogg file that was cut off."""
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise AudioError("empty_file", path, "0 bytes")
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        declared, present = _chunk_sizes(file, size, b"data", "<I")
    elif head[:4] == b"FORM" and head[8:11] == b"AIF":
        declared, present = _chunk_sizes(file, size, b"SSND", ">I")
    elif head[:4] == b".snd" and len(head) == 12:
        offset, declared = struct.unpack(">II", head[4:])
        present = size - offset
    elif head[:4] == b"OggS":
        _check_ogg_end(path, file, size)
        return
    else:
        return
    if declared != _UNKNOWN_SIZE and declared > present:
        raise AudioError("truncated", path, f"the header promises {declared} bytes of samples, {present} are there")


def _chunk_sizes(file: BinaryIO, size: int, name: bytes, order: str) -> tuple[int, int]:
    """(declared, present) bytes of a RIFF/IFF chunk; a chunk list that runs past the end counts as cut there."""
    position = 12
    while position + 8 <= size:
        file.seek(position)
        header = file.read(8)
        declared = struct.unpack(order, header[4:])[0]
        if header[:4] == name:
            return declared, size - position - 8
        position += 8 + declared + (declared & 1)
    return max(0, position - size), 0


def _check_ogg_end(path: str | os.PathLike[str], file: BinaryIO, size: int) -> None:
    """A complete Ogg stream ends in a whole page with the end-of-stream flag (RFC 3533, section 6)."""
    tail_size = min(size, 1 << 17)  # a page has at most 65,307 bytes
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    page = tail.rfind(b"OggS")
    header = tail[page : page + 27]
    if page < 0 or len(header) < 27 or not header[5] & 4:
        raise AudioError("truncated", path, "the last Ogg page does not end the stream")
    lacing = tail[page + 27 : page + 27 + header[26]]
    if page + 27 + len(lacing) + sum(lacing) > len(tail) or len(lacing) < header[26]:
        raise AudioError("truncated", path, "the last Ogg page is incomplete")


def open_error(path: str | os.PathLike[str], source: Path | BinaryIO, message: str) -> AudioError:
    """Why libsndfile, which said `message`, does not open what passed the check of its container."""
    if isinstance(source, Path):
        with open(source, "rb") as file:
            head = file.read(12)
    else:
        source.seek(0)
        head = source.read(12)
    if head[:4] == b"fLaC":
        return AudioError("truncated", path, f"a FLAC header without a decodable stream ({message})")
    if head[8:12] == b"WAVE" or head[8:11] == b"AIF":
        return AudioError("corrupt", path, f"a {head[8:12].decode('ascii', 'replace')} header, but {message}")
    return AudioError("not_audio", path, message)
