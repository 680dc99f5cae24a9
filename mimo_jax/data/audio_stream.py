"""Recordings of any length block by block, in memory that does not grow with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.data.audio import RATE_LIMITS, SAMPLE_RATE, check_file, check_length, open_error, slack_frames
from mimo_jax.data.references import AudioError


def stream_audio(
    path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE, *, block_seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """Mono float32 blocks [samples] at `sample_rate` Hz of a local file; joined, they are what `load_audio` gives.

    Args:
      path: of a file in any format that libsndfile reads.
      sample_rate: of what comes out, Hz.
      block_seconds: about the length of a block.

    Raises:
      AudioError: a file that cannot be used, with its reason; one that is cut off raises after its last whole block.
    """
    import soundfile
    import soxr

    path = Path(path)
    check_file(path)
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise open_error(path, path, str(error)) from error
    with file:
        rate = file.samplerate
        if not RATE_LIMITS[0] <= rate <= RATE_LIMITS[1]:
            raise AudioError("bad_sample_rate", path, f"{rate} Hz, allowed are {RATE_LIMITS[0]} to {RATE_LIMITS[1]} Hz")
        if file.frames <= 0:
            raise AudioError("zero_length", path, "the file holds no frames")
        check_length(path, file)
        resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, quality="HQ")
        for block in _decoded(path, file, max(1, round(block_seconds * rate))):
            made = block if resampler is None else resampler.resample_chunk(block)
            if len(made):
                yield made
        if resampler is not None:
            rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            if len(rest):
                yield rest


def _decoded(path: Path, file: Any, size: int) -> Iterator[np.ndarray]:
    """Mono blocks at the file's own rate."""
    import soundfile

    done = 0
    while True:
        try:
            block = file.read(size, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(
                "truncated", path, f"decoding stops after {done} of {file.frames} frames ({error})"
            ) from error
        if not len(block):
            break
        if not np.isfinite(block).all():
            raise AudioError("non_finite", path, f"NaN or infinite samples between frames {done} and {done + size}")
        done += len(block)
        yield block.mean(axis=1, dtype=np.float32)
    if done == 0:
        raise AudioError("corrupt", path, "nothing can be decoded")
    if done < file.frames - slack_frames(file):
        raise AudioError("truncated", path, f"only {done} of {file.frames} frames can be decoded")
