"""Plug-ins that ask an OpenAI-compatible endpoint: chat completions, transcriptions, embeddings.

A spec is ``BASE_URL#MODEL?option=value&...``, for instance ``https://api.openai.com/v1#gpt-4o-mini?temperature=0`` or
``http://127.0.0.1:8000/v1#judge?key=``. Options of all three, none of which changes a result:

* ``key``: the environment variable that holds the key (``OPENAI_API_KEY``); empty for an endpoint without one. Where
  ``OPENAI_API_KEY`` is meant and not set, calls go without a key;
* ``timeout`` (120): seconds that the endpoint may be silent;
* ``retries`` (6): further tries after 408, 429, 5xx, a broken connection or an unreadable reply; before each a wait
  that doubles from ``backoff`` (1) seconds to a minute, with jitter, or what ``Retry-After`` says;
* ``concurrency`` (8): calls under way at once.

The key goes into the header of the requests and nowhere else: it is cut out of every message, and a redirection to
another address is an error.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import numpy as np
from absl import logging

from mimo_jax.cli import UserError
from mimo_jax.evaluation.plugins.base import PluginError, number_option, split_options, unit_length

_DEFAULT_KEY = "OPENAI_API_KEY"
_CALL_OPTIONS = {"key": _DEFAULT_KEY, "timeout": "120", "retries": "6", "backoff": "1", "concurrency": "8"}
_LONGEST_WAIT = 60.0
_RETRIED = {408, 409, 425, 429}
_WRONG_SETTINGS = {401, 403, 404, 405}
_TEXTS_PER_CALL = 64
_EXCERPT = 300

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Again(Exception):
    """A failure that may pass; ``wait``: seconds that the endpoint asked to wait."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # urllib would send the key along


class Endpoint:
    """Base of the plug-ins below.

    Args:
      kind: for the identity.
      spec: see the module.
      options: further options with their defaults; they decide results and are part of the identity.

    Raises:
      UserError: a spec of another form, or the named variable is not set.
    """

    def __init__(self, kind: str, spec: str, options: Mapping[str, str] | None = None):
        base, mark, model = spec.partition("#")
        self.model, given = split_options(model, {**_CALL_OPTIONS, **(options or {})})
        address = urlsplit(base)
        if address.scheme not in ("http", "https") or not address.hostname or not mark or not self.model:
            raise UserError(f"openai:{spec}: expected openai:BASE_URL#MODEL, as in openai:https://HOST/v1#MODEL")
        if address.username or address.password:
            raise UserError("a password has no place in an endpoint's address: name an environment variable, ?key=NAME")
        self._base = base.rstrip("/")
        self._timeout = number_option(spec, given, "timeout", 1e-3)
        self._retries = int(number_option(spec, given, "retries", 0))
        self._backoff = number_option(spec, given, "backoff", 0)
        self._concurrency = int(number_option(spec, given, "concurrency", 1))
        self._key = os.environ.get(given["key"], "").strip() if given["key"] else ""
        if given["key"] not in ("", _DEFAULT_KEY) and not self._key:
            raise UserError(
                f"openai:{spec}: the environment variable {given['key']}, which should hold the key, is empty"
            )
        self.options = {name: given[name] for name in options or {}}
        settings = "".join(f" {name}={value}" for name, value in self.options.items() if value)
        self.identity = f"openai {kind} {self._base}#{self.model}{settings}"
        self._stop = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirection)

    def each(self, call: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """``call`` of every item, at most ``concurrency`` at once.

        Raises:
          PluginError: a call failed for good; the others were made and are in its ``finished``.
          UserError: the endpoint refuses the settings; no further call is begun or tried again.
        """
        results: dict[int, _Result] = {}
        failures: dict[int, PluginError] = {}
        self._stop.clear()
        with ThreadPoolExecutor(min(self._concurrency, max(1, len(items)))) as pool:
            futures = {pool.submit(call, item): i for i, item in enumerate(items)}
            try:
                for future in as_completed(futures):
                    try:
                        results[futures[future]] = future.result()
                    except PluginError as error:
                        failures[futures[future]] = error
            except BaseException:
                self._stop.set()  # nobody waits for the calls that are being tried again
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failures:
            message = f"{len(failures)} of {len(items)} calls failed; the first: {failures[min(failures)]}"
            raise PluginError(message, results)
        return [results[i] for i in range(len(items))]

    def post(self, path: str, body: bytes, content_type: str, read: Callable[[Any], _Result]) -> _Result:
        """``read`` of the JSON that the endpoint replies with, tried again as the module says.

        Args:
          path: below the base URL.
          body: the request's.
          content_type: of the body.
          read: may raise KeyError, IndexError, TypeError or ValueError for a reply of another form.
        """
        for attempt in range(self._retries + 1):
            try:
                return self._post(path, body, content_type, read)
            except _Again as error:
                if attempt == self._retries:
                    raise PluginError(f"{self._base}{path}: {error} ({attempt + 1} tries)") from None
                wait = min(_LONGEST_WAIT, self._backoff * 2**attempt) * (0.5 + random.random() / 2)
                if error.wait is not None:
                    wait = min(_LONGEST_WAIT, max(wait, error.wait))
                logging.warning("%s%s: %s; trying again in %.1f s", self._base, path, error, wait)
                if self._pause(wait):
                    raise PluginError(f"{self._base}{path}: {error} (stopped)") from None
        raise AssertionError("unreachable")

    def _pause(self, seconds: float) -> bool:
        return self._stop.wait(seconds)

    def _post(self, path: str, body: bytes, content_type: str, read: Callable[[Any], _Result]) -> _Result:
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._base + path, body, headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            self._refused(path, error)
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSError
            raise _Again(self._safe(f"{type(error).__name__}: {error}")) from None
        try:
            return read(json.loads(content))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            excerpt = content[:_EXCERPT].decode(errors="replace")
            raise _Again(self._safe(f"unexpected reply ({type(error).__name__}: {error}): {excerpt}")) from None

    def _refused(self, path: str, error: urllib.error.HTTPError) -> NoReturn:
        with error:
            try:
                excerpt = error.read(_EXCERPT).decode(errors="replace")
            except (OSError, http.client.HTTPException):
                excerpt = ""
        message = self._safe(f"HTTP {error.code}: {excerpt}")
        if error.code >= 500 or error.code in _RETRIED:
            raise _Again(message, _seconds(error.headers.get("Retry-After"))) from None
        if error.code in _WRONG_SETTINGS or 300 <= error.code < 400:
            raise UserError(
                f"{self._base}{path}, model {self.model}: {message}; correct the address, model or key"
            ) from None
        # The rest is about this one request (too long, refused by a filter): trying at once would not help.
        raise PluginError(f"{self._base}{path}: {message}") from None

    def _safe(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message

    def post_json(self, path: str, values: Mapping[str, Any], read: Callable[[Any], _Result]) -> _Result:
        """`post` of JSON."""
        return self.post(path, json.dumps(values).encode(), "application/json", read)


def _seconds(value: str | None) -> float | None:
    """``Retry-After`` where it is a number; dates are left to the back-off."""
    try:
        return max(0.0, float(value or ""))
    except ValueError:
        return None


class EndpointJudge(Endpoint):
    """Chat completions, one user message each.

    Options that decide replies: ``temperature`` (0; empty leaves it out, as some models want), ``max_tokens`` (left
    out), ``seed`` (left out), ``reasoning_effort`` (left out).
    """

    def __init__(self, spec: str):
        options = {"temperature": "0", "max_tokens": "", "seed": "", "reasoning_effort": ""}
        super().__init__("judge", spec, options)
        self._settings: dict[str, Any] = {}
        for name, convert in (("temperature", float), ("max_tokens", int), ("seed", int), ("reasoning_effort", str)):
            if value := self.options[name]:
                try:
                    self._settings[name] = convert(value)  # type: ignore[operator]
                except ValueError:
                    raise UserError(f"openai:{spec}: {name}={value} must be a number") from None

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """See `base.Judge`."""
        return self.each(self._ask, prompts)

    def _ask(self, prompt: str) -> str:
        values = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self._settings}
        return self.post_json("/chat/completions", values, _reply)


def _reply(answer: Any) -> str:
    choice = answer["choices"][0]
    content = choice["message"]["content"]
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"no text in the reply, finish_reason {choice.get('finish_reason')}")
    return content


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
        body, content_type = _form({name: value for name, value in fields.items() if value}, _wav(wave, sample_rate))
        return self.post("/audio/transcriptions", body, content_type, _transcript)


def _transcript(answer: Any) -> str:
    if not isinstance(text := answer["text"], str):
        raise ValueError("no text in the reply")
    return text.strip()


def _wav(wave: np.ndarray, sample_rate: int) -> bytes:
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
        parts = self.each(lambda start: self._embed(texts[start : start + _TEXTS_PER_CALL]), starts)
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
