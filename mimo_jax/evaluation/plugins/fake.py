"""Plug-ins that look results up in a JSON file: exact, offline, for tests of what stands around them.

The file is one object, input -> result:

* judge: prompt -> reply;
* text embedder: text -> list of numbers (scaled to unit length here);
* transcriber: wave -> text; speaker embedder: wave -> list of numbers. A wave's key is the label that it carries
  (`labelled_wave`), which survives 16-bit files and what follows the label, else `wave_key`;
* translation scorer: ``"source\\nhypothesis\\nreference"`` -> number.

A result ``{"failures": 2, "then": RESULT}`` is a `PluginError` for the first two calls that need it. What is not in
the file is a `UserError` that shows the key.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.evaluation.plugins.base import PluginError, digest, unit_length

_MARK = np.array([0.875, -0.875, 0.875, 0.875], np.float32)  # values that no byte of a label has


def labelled_wave(label: str, samples: int = 0) -> np.ndarray:
    """A wave float32 that carries a label: a mark, the label's UTF-8 bytes as sample values, the mark again.

    Args:
      label: any text.
      samples: the least length; silence fills it up.
    """
    payload = (np.frombuffer(label.encode(), np.uint8).astype(np.float32) - 128) / 256
    wave = np.concatenate([_MARK, payload, _MARK])
    return np.pad(wave, (0, max(0, samples - len(wave))))


def label_of(wave: np.ndarray) -> str | None:
    """The label that `labelled_wave` put in; None if there is none."""
    wave = np.asarray(wave, np.float32)
    marks = [
        i
        for i in np.flatnonzero(np.abs(wave - _MARK[0]) < 0.01)
        if i + len(_MARK) <= len(wave) and np.allclose(wave[i : i + len(_MARK)], _MARK, atol=0.01)
    ]
    if len(marks) < 2 or marks[0] != 0:
        return None
    payload = np.round(wave[len(_MARK) : marks[1]] * 256 + 128)
    if not ((payload >= 0) & (payload <= 255)).all():
        return None
    return payload.astype(np.uint8).tobytes().decode(errors="replace")


def wave_key(wave: np.ndarray) -> str:
    """``"wave:"`` and 16 hexadecimal digits of SHA-256 over the samples as little-endian float32."""
    return "wave:" + hashlib.sha256(np.ascontiguousarray(wave, "<f4").tobytes()).hexdigest()[:16]


class _Table:
    def __init__(self, path: str, kind: str):
        self._path = path
        try:
            content = Path(path).read_text(encoding="utf-8")
            self._table = json.loads(content)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; a fake plug-in needs a JSON object input -> result") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not JSON ({error})") from None
        if not isinstance(self._table, dict):
            raise UserError(f"{path}: a fake plug-in needs a JSON object input -> result, not {type(self._table)}")
        self.identity = f"fake {kind} {digest(content)}"
        self._failed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def look_up(self, key: str, is_result: Callable[[Any], bool], wanted: str) -> Any:
        if key not in self._table:
            raise UserError(f"{self._path}: no entry for {key!r}")
        result = self._table[key]
        if isinstance(result, dict) and result.keys() == {"failures", "then"}:
            with self._lock:
                self._failed[key] += 1
                if self._failed[key] <= result["failures"]:
                    raise PluginError(f"{self._path}: failure {self._failed[key]} of {result['failures']} for {key!r}")
            result = result["then"]
        if not is_result(result):
            raise UserError(f"{self._path}: the entry for {key!r} must be {wanted}, it is {result!r}")
        return result

    def texts(self, keys: Sequence[str]) -> list[str]:
        return [self.look_up(key, lambda result: isinstance(result, str), "a text") for key in keys]

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        rows = [self.look_up(key, _is_vector, "a list of numbers") for key in keys]
        if len({len(row) for row in rows}) > 1:
            raise UserError(f"{self._path}: vectors of several lengths: {sorted({len(row) for row in rows})}")
        return unit_length(np.array(rows, np.float64)) if rows else np.zeros((0, self._size()), np.float32)

    def _size(self) -> int:
        return next((len(result) for result in self._table.values() if _is_vector(result)), 1)


def _is_vector(result: Any) -> bool:
    return isinstance(result, list) and bool(result) and all(_is_number(value) for value in result)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _keys(waves: Sequence[np.ndarray]) -> list[str]:
    return [wave_key(wave) if (label := label_of(wave)) is None else label for wave in waves]


class FakeTranscriber(_Table):
    """Texts by wave."""

    def __init__(self, path: str):
        super().__init__(path, "transcriber")

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int, language: str) -> list[str]:
        """See `base.Transcriber`."""
        return [self.texts([key])[0] if len(wave) else "" for key, wave in zip(_keys(waves), waves, strict=True)]


class FakeJudge(_Table):
    """Replies by prompt."""

    def __init__(self, path: str):
        super().__init__(path, "judge")

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """See `base.Judge`."""
        return self.texts(prompts)


class FakeTextEmbedder(_Table):
    """Vectors by text."""

    def __init__(self, path: str):
        super().__init__(path, "text_embedder")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `base.TextEmbedder`."""
        return self.vectors(texts)


class FakeSpeakerEmbedder(_Table):
    """Vectors by wave; an empty wave has zeros."""

    def __init__(self, path: str):
        super().__init__(path, "speaker_embedder")

    def embed(self, waves: Sequence[np.ndarray], sample_rate: int) -> np.ndarray:
        """See `base.SpeakerEmbedder`."""
        filled = [i for i, wave in enumerate(waves) if len(wave)]
        vectors = self.vectors(_keys([waves[i] for i in filled]))
        out = np.zeros((len(waves), vectors.shape[1]), np.float32)
        out[filled] = vectors
        return out


class FakeTranslationScorer(_Table):
    """Scores by source, hypothesis and reference."""

    def __init__(self, path: str):
        super().__init__(path, "translation_scorer")

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """See `base.TranslationScorer`."""
        keys = ["\n".join(item) for item in zip(sources, hypotheses, references, strict=True)]
        return np.array([self.look_up(key, _is_number, "a number") for key in keys], np.float64)
