"""The voices that a request may name: reference recordings of a folder, read once at the start."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data.audio import AudioError, load_audio

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
MAX_SECONDS = 60.0


def load_voices(folder: str | os.PathLike[str], sample_rate: int) -> dict[str, np.ndarray]:
    """{file name without suffix: float32 [samples] at `sample_rate` Hz} of the recordings of a folder.

    Raises:
      UserError: no such folder, nothing in it, two files of one name, or a file that is no usable recording.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--voices={folder}: no such folder")
    voices: dict[str, np.ndarray] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in voices or path.stem == "default":
            raise UserError(f"{path}: the name {path.stem!r} is taken already; rename the file")
        try:
            voices[path.stem] = load_audio(path, sample_rate, max_seconds=MAX_SECONDS)
        except AudioError as error:
            raise UserError(str(error)) from error
    if not voices:
        raise UserError(f"--voices={folder}: no recording ({', '.join(SUFFIXES)}) in it")
    return voices
