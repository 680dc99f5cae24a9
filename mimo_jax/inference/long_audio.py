"""Transcripts of recordings of any length: window by window, each cut where it is quiet, in memory of a few windows.

    for passage in transcribe(model, "lecture.flac"):
        print(passage.start, passage.end, passage.text)

The model hears one window at a time: what was said before is not in its prompt.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mimo_jax.data.audio import SILENCE_PEAK
from mimo_jax.data.audio_stream import stream_audio
from mimo_jax.inference.tasks import MimoAudio

_PAUSE_SECONDS = 0.2  # a pause between words is hardly longer


@dataclasses.dataclass(frozen=True)
class Passage:
    """Part of a recording: `start` and `end` in seconds, and what is said there (empty where it is silent)."""

    start: float
    end: float
    text: str


def windows(
    blocks: Iterable[np.ndarray], sample_rate: int, *, longest: float = 30.0, search: float = 10.0
) -> Iterator[tuple[int, np.ndarray]]:
    """Cuts a stream into windows of at most `longest` seconds, at the quietest place of their last `search` seconds.

    Args:
      blocks: float32 [samples] each.
      sample_rate: of the samples, Hz.
      longest, search: seconds.

    Yields:
      (first sample, float32 [samples]); all together are the stream.

    Raises:
      ValueError: `search` is not below `longest`, or one of them is not positive.
    """
    if not 0 < search < longest:
        raise ValueError(f"longest = {longest} s, search = {search} s: search must be positive and the smaller one")
    limit, tail, pause = (round(seconds * sample_rate) for seconds in (longest, search, _PAUSE_SECONDS))
    held, count, first = [], 0, 0
    for block in blocks:
        held.append(block)
        count += len(block)
        # Never empty between two blocks: the last window is cut at the end of the stream alone.
        while count > limit:
            samples = np.concatenate(held)
            cut = limit - tail + _quietest(samples[limit - tail : limit], max(1, pause))
            yield first, samples[:cut]
            first, held, count = first + cut, [samples[cut:]], count - cut
    if count:
        yield first, np.concatenate(held)


def _quietest(samples: np.ndarray, width: int) -> int:
    """The middle of the quietest stretch of `width` samples."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    width = min(width, len(samples))
    return int(np.argmin(energy[width:] - energy[:-width])) + (width + 1) // 2


def transcribe(
    model: MimoAudio,
    audio: str | os.PathLike[str] | Iterable[np.ndarray],
    *,
    longest: float = 30.0,
    search: float = 10.0,
    together: int = 8,
    seed: int = 0,
    **options: Any,
) -> Iterator[Passage]:
    """Passages of a recording in their order, each as soon as it is known.

    Args:
      model: transcribes.
      audio: a file, or blocks of samples (float32 at the model's sample rate) as they come.
      longest, search: of `windows`.
      together: windows transcribed at a time; the bound of memory.
      seed: of the first window; those that follow count up.
      options: of `MimoAudio.asr`.

    Raises:
      AudioError: a file that cannot be used. ValueError: see `windows`.
    """
    blocks = stream_audio(audio, model.sample_rate) if isinstance(audio, str | os.PathLike) else audio
    waiting: list[tuple[int, np.ndarray]] = []
    for window in windows(blocks, model.sample_rate, longest=longest, search=search):
        waiting.append(window)
        if len(waiting) == together:
            yield from _passages(model, waiting, seed, options)
            seed, waiting = seed + len(waiting), []
    yield from _passages(model, waiting, seed, options)


def _passages(
    model: MimoAudio, parts: list[tuple[int, np.ndarray]], seed: int, options: dict[str, Any]
) -> list[Passage]:
    # A model that is given silence makes up words.
    spoken = [number for number, (_, wave) in enumerate(parts) if np.abs(wave).max() >= SILENCE_PEAK]
    texts = [""] * len(parts)
    if spoken:
        answers = model.asr([parts[n][1] for n in spoken], seeds=[seed + n for n in spoken], **options)
        for number, answer in zip(spoken, answers, strict=True):
            texts[number] = answer.text
    rate = model.sample_rate
    return [
        Passage(first / rate, (first + len(wave)) / rate, text)
        for (first, wave), text in zip(parts, texts, strict=True)
    ]
