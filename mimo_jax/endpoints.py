"""Client of OpenAI-compatible endpoints: bounded concurrency, tries repeated with back-off, keys that stay secret.

A spec is ``BASE_URL#MODEL?option=value&...``, for instance ``https://api.openai.com/v1#gpt-4o-mini?temperature=0`` or
``http://127.0.0.1:8000/v1#judge?key=``. Options of every client, none of which changes a result:

* ``key``: the environment variable that holds the key (``OPENAI_API_KEY``); empty for an endpoint without one. Where
  ``OPENAI_API_KEY`` is meant and not set, calls go without a key;
* ``timeout`` (120): seconds that the endpoint may be silent;
* ``retries`` (6): further tries after 408, 429, 5xx, a broken connection or an unreadable reply; before each a wait
  that doubles from ``backoff`` (1) seconds to a minute, with jitter, or what ``Retry-After`` says, up to a minute too;
* ``concurrency`` (8): calls under way at once.

The key goes into the header of the requests and nowhere else: it is cut out of every message, and a redirection to
another address is an error.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, urlsplit

from absl import logging

from mimo_jax.cli import UserError

_DEFAULT_KEY = "OPENAI_API_KEY"
_CALL_OPTIONS = {"key": _DEFAULT_KEY, "timeout": "120", "retries": "6", "backoff": "1", "concurrency": "8"}
_LONGEST_WAIT = 60.0
_RETRIED = {408, 409, 425, 429}
_WRONG_SETTINGS = {401, 403, 404, 405}
_EXCERPT = 300

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class CallError(RuntimeError):
    """A call that failed and can be tried again. No item of it has a result: none may be scored, as 0 or otherwise.

    Attributes:
      finished: results of those items of the call that did succeed, by their index in it; may be empty.
      failures: what became of the others, by their index; may be empty.
    """

    def __init__(
        self,
        message: str,
        finished: Mapping[int, Any] | None = None,
        failures: Mapping[int, CallError] | None = None,
    ):
        super().__init__(message)
        self.finished: dict[int, Any] = dict(finished or {})
        self.failures: dict[int, CallError] = dict(failures or {})


class RefusedError(CallError):
    """The endpoint refuses this one request (too long, caught by a filter): the same again would be refused again."""


class _Again(Exception):
    """A failure that may pass; ``wait``: seconds that the endpoint asked to wait."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # urllib would send the key along


class Endpoint:
    """Base of the clients.

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
        # Before any message shows the spec. What an address holds besides its path would be stored with results, too.
        if address.username or address.password or address.query:
            raise UserError(
                "an endpoint's address, BASE_URL of openai:BASE_URL#MODEL?option=value, takes no user, password or "
                "?query; name the environment variable that holds the key: openai:BASE_URL#MODEL?key=NAME"
            )
        if address.scheme not in ("http", "https") or not address.hostname or not mark or not self.model:
            raise UserError(f"openai:{spec}: expected openai:BASE_URL#MODEL, as in openai:https://HOST/v1#MODEL")
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
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f"the environment variable {given['key']} holds signs that no key has, such as a line break"
            )
        self.options = {name: given[name] for name in options or {}}
        settings = "".join(f" {name}={value}" for name, value in self.options.items() if value)
        self.identity = f"openai {kind} {self._base}#{self.model}{settings}"
        self._stop = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirection)

    def each(
        self,
        call: Callable[[_Item], _Result],
        items: Sequence[_Item],
        keep: Callable[[int, _Result], None] | None = None,
    ) -> list[_Result]:
        """``call`` of every item, at most ``concurrency`` at once.

        Args:
          call: asks the endpoint.
          items: what it is called with.
          keep: told the index and the result of an item as soon as there is one, in this thread.

        Raises:
          CallError: a call failed for good; the others were made: ``finished`` has them, ``failures`` the errors.
          UserError: the endpoint refuses the settings; no further call is begun or tried again.
        """
        results: dict[int, _Result] = {}
        failures: dict[int, CallError] = {}
        self._stop.clear()
        with ThreadPoolExecutor(min(self._concurrency, max(1, len(items)))) as pool:
            futures = {pool.submit(call, item): i for i, item in enumerate(items)}
            try:
                for future in as_completed(futures):
                    index = futures[future]
                    try:
                        results[index] = future.result()
                    except CallError as error:
                        failures[index] = error
                        continue
                    if keep is not None:
                        keep(index, results[index])
            except BaseException:
                self._stop.set()  # nobody waits for the calls that are being tried again
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failures:
            message = f"{len(failures)} of {len(items)} calls failed; the first: {failures[min(failures)]}"
            raise CallError(message, results, failures)
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
                    raise CallError(f"{self._base}{path}: {error} ({attempt + 1} tries)") from None
                wait = min(_LONGEST_WAIT, self._backoff * 2**attempt) * (0.5 + random.random() / 2)
                if error.wait is not None:
                    wait = min(_LONGEST_WAIT, max(wait, error.wait))
                logging.warning("%s%s: %s; trying again in %.1f s", self._base, path, error, wait)
                if self._pause(wait):
                    raise CallError(f"{self._base}{path}: {error} (stopped)") from None
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
        raise RefusedError(f"{self._base}{path}: {message}") from None

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


class Chat(Endpoint):
    """Chat completions, one user message each.

    Options that decide replies: ``temperature`` (0; empty leaves it out, as some models want), ``max_tokens`` (left
    out), ``seed`` (left out), ``reasoning_effort`` (left out).

    Args:
      kind: for the identity.
      spec: see the module.
      may_be_empty: whether a reply without text is one; otherwise the call is tried again.
    """

    def __init__(self, kind: str, spec: str, may_be_empty: bool = False):
        options = {"temperature": "0", "max_tokens": "", "seed": "", "reasoning_effort": ""}
        super().__init__(kind, spec, options)
        self._read = _text_or_nothing if may_be_empty else _reply
        self._settings: dict[str, Any] = {}
        for name, convert in (("temperature", float), ("max_tokens", int), ("seed", int), ("reasoning_effort", str)):
            if value := self.options[name]:
                try:
                    self._settings[name] = convert(value)  # type: ignore[operator]
                except ValueError:
                    raise UserError(f"openai:{spec}: {name}={value} must be a number") from None

    def ask(self, prompts: Sequence[str], keep: Callable[[int, str], None] | None = None) -> list[str]:
        """Replies, one for each prompt, each prompt in a conversation of its own; ``keep`` and errors as of `each`."""
        return self.each(self.reply, prompts, keep)

    def reply(self, content: Any) -> str:
        """The reply to a user's message: text, or parts of text and sound."""
        values = {"model": self.model, "messages": [{"role": "user", "content": content}], **self._settings}
        return self.post_json("/chat/completions", values, self._read)


def _reply(answer: Any) -> str:
    choice = answer["choices"][0]
    content = choice["message"]["content"]
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"no text in the reply, finish_reason {choice.get('finish_reason')}")
    return content


def _text_or_nothing(answer: Any) -> str:
    content = answer["choices"][0]["message"].get("content")
    if not isinstance(content, str | None):
        raise ValueError("the reply's content is no text")
    return content or ""


def split_options(spec: str, known: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """``"NAME?a=1&b=2"`` as its name and options, those that are not given as in ``known``.

    Raises:
      UserError: an option that does not exist.
    """
    name, _, query = spec.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - known.keys()):
        raise UserError(f"{spec}: no option {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    return name, {**known, **options}


def number_option(spec: str, options: Mapping[str, str], name: str, least: float) -> float:
    """An option as a number.

    Raises:
      UserError: it is none, or below ``least``.
    """
    try:
        value = float(options[name])
    except ValueError:
        value = float("nan")
    if not least <= value < float("inf"):
        raise UserError(f"{spec}: {name}={options[name]} must be a number from {least:g} up")
    return value
