"""Plug-ins that ask an OpenAI-compatible endpoint: chat completions, transcriptions, embeddings.

Specs and their options are those of `mimo_jax.endpoints`.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimo_jax.endpoints import Chat, Endpoint, RefusedError, number_option
from mimo_jax.evaluation.plugins.base import PluginError, unit_length

_TEXTS_PER_CALL = 64


class EndpointJudge(Chat):
    """Chat completions; see `base.Judge` and, for the options, `mimo_jax.endpoints.Chat`."""

    def __init__(self, spec: str):
        super().__init__("judge", spec)


class EndpointTranscriber(Endpoint):
    """Transcriptions of 16-bit WAV files. Option that decides texts: ``temperature`` (0)."""

    def __init__(self, spec: str):
        super().__init__("transcriber", spec, {"temperature": "0"})

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int, language: str) -> list[str]:
        """See `base.Transcriber`."""
        return self.each(lambda wave: self._transcribe(wave, sample_rate, language), waves)

    def _transcribe(self, wave: np.ndarray, sample_rate: int, language: str) -> str:
        if not len(wave):
            return ""
        fields = {"model": self.model, "response_format": "json", **self.options, "language": language}
        body, content_type = _form(
            {name: value for name, value in fields.items() if value}, wav_file(wave, sample_rate)
        )
        return self.post("/audio/transcriptions", body, content_type, _transcript)


def _transcript(answer: Any) -> str:
    if not isinstance(text := answer["text"], str):
        raise ValueError("no text in the reply")
    return text.strip()


def wav_file(wave: np.ndarray, sample_rate: int) -> bytes:
    """A mono wave [samples] as a 16-bit WAV file."""
    import soundfile

    file = io.BytesIO()
    pcm = np.round(np.clip(np.nan_to_num(wave), -1, 1) * 32767).astype(np.int16)
    soundfile.write(file, pcm, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _form(fields: Mapping[str, str], wav: bytes) -> tuple[bytes, str]:
    """(body, content type) of multipart/form-data with the fields and the file."""
    border = uuid.uuid4().hex
    parts = [
        f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="audio.wav"\r\n'
    parts += [head.encode(), b"Content-Type: audio/wav\r\n\r\n", wav, f"\r\n--{border}--\r\n".encode()]
    return b"".join(parts), f"multipart/form-data; boundary={border}"


class EndpointTextEmbedder(Endpoint):
    """Embeddings, 64 texts a call. Option that decides vectors: ``dimensions`` (left out)."""

    def __init__(self, spec: str):
        super().__init__("text_embedder", spec, {"dimensions": ""})
        self._settings = {}
        if self.options["dimensions"]:
            self._settings["dimensions"] = int(number_option(spec, self.options, "dimensions", 1))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `base.TextEmbedder`. A blank text is embedded as one space: endpoints refuse empty ones."""
        starts = range(0, len(texts), _TEXTS_PER_CALL)
        try:
            parts = self.each(lambda start: self._embed(texts[start : start + _TEXTS_PER_CALL]), starts)
        except PluginError as error:
            # By text, as callers count. A refusal may be about one of the texts: it says nothing about the others.
            calls = {i: one for i, one in error.failures.items() if not isinstance(one, RefusedError)}
            failures = {i: calls[i // _TEXTS_PER_CALL] for i in range(len(texts)) if i // _TEXTS_PER_CALL in calls}
            raise PluginError(str(error), failures=failures) from error
        sizes = {part.shape[1] for part in parts}
        if len(sizes) > 1:
            raise PluginError(f"{self._base}: embeddings of several sizes: {sorted(sizes)}")
        return unit_length(np.concatenate(parts)) if parts else np.zeros((0, 1), np.float32)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        values = {"model": self.model, "input": [text if text.strip() else " " for text in texts], **self._settings}

        def read(answer: Any) -> np.ndarray:
            rows = {row["index"]: row["embedding"] for row in answer["data"]}
            vectors = np.array([rows[i] for i in range(len(texts))], np.float64)
            if vectors.ndim != 2 or not np.isfinite(vectors).all():
                raise ValueError("no embeddings in the reply")
            return vectors

        return self.post_json("/embeddings", {**values, "encoding_format": "float"}, read)
