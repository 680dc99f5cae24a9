"""Text LLMs that write: an OpenAI-compatible endpoint whose replies are kept, or rules that need no model."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mimo_jax.cli import UserError
from mimo_jax.endpoints import CallError, Chat

_LOCK_SECONDS = 120.0
_SHOW_FROM = 32  # prompts; fewer are no wait worth a bar


class TextLlm(Protocol):
    """Completes prompts.

    Attributes:
        identity: what decides the replies (model, settings), not where it runs.
    """

    identity: str

    def complete(self, prompts: Sequence[str], keep: Callable[[int, str], None] | None = None) -> list[str]:
        """Replies, one for each prompt, each prompt in a conversation of its own; "" where there is nothing to say.

        Args:
            prompts: any number.
            keep: told the index of a prompt and its reply as soon as there is one, in this thread.

        Raises:
            CallError: some prompts have no reply; ``finished`` and ``failures`` say which. A `RefusedError` among the
                failures will not pass, others may.
            UserError: the settings are wrong.
        """
        ...


class EndpointLlm:
    """Chat completions of an OpenAI-compatible endpoint; specs and options: `mimo_jax.endpoints`.

    Options that decide replies: ``temperature`` (0), ``max_tokens``, ``seed``, ``reasoning_effort``.

    Raises:
        UserError: a spec of another form, or the variable that it names for the key is not set.
    """

    def __init__(self, spec: str):
        self._chat = Chat("writer", spec, may_be_empty=True)
        settings = "".join(f" {name}={value}" for name, value in self._chat.options.items() if value)
        self.identity = f"openai {self._chat.model}{settings}"

    def complete(self, prompts: Sequence[str], keep: Callable[[int, str], None] | None = None) -> list[str]:
        """See `TextLlm`."""
        return self._chat.ask(prompts, keep)


class Replies:
    """Replies on disk, an SQLite file that processes may share: the first reply to a prompt stays.

    Args:
        path: of the file; made where it is not there.

    Raises:
        UserError: the file is no such store, or cannot be read or written any more.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=_LOCK_SECONDS)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, model TEXT, prompt TEXT, reply TEXT)"
                )
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{path}: not a store of replies ({error}); name another file, or remove it") from error

    def find(self, model: str, prompt: str) -> str | None:
        """The reply that was kept."""
        key = (_key(model, prompt),)
        with self._named():
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", key).fetchone()
        return None if row is None else str(row[0])

    def keep(self, model: str, prompt: str, reply: str) -> None:
        """Keeps a reply, unless there is one; it is on disk on return."""
        with self._named(), self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", (_key(model, prompt), model, prompt, _plain(reply))
            )

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: {error}; it keeps the LLM's replies: make room, or end who holds it, and start again"
            ) from error


def _key(model: str, prompt: str) -> bytes:
    return hashlib.sha256(f"{model}\0{prompt}".encode("utf-8", "backslashreplace")).digest()


def _plain(text: str) -> str:
    """Without halves of surrogate pairs, which cannot be stored."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Remembering:
    """A text LLM that is never asked twice.

    Attributes:
        identity: of the LLM.
        asked: prompts that went to it.
    """

    def __init__(self, llm: TextLlm, replies: Replies):
        self._llm, self._replies = llm, replies
        self.identity = llm.identity
        self.asked = 0

    def complete(self, prompts: Sequence[str], keep: Callable[[int, str], None] | None = None) -> list[str]:
        """See `TextLlm`; what was kept before an error is not asked again."""
        from tqdm import tqdm

        found = {prompt: self._replies.find(self.identity, prompt) for prompt in prompts}
        missing = [prompt for prompt, reply in found.items() if reply is None]
        failures: dict[str, CallError] = {}
        message = ""
        with tqdm(total=len(missing), desc="replies", leave=False, disable=len(missing) < _SHOW_FROM) as bar:

            def store(index: int, reply: str) -> None:
                self._replies.keep(self.identity, missing[index], reply)
                bar.update(1)

            try:
                self.asked += len(missing)
                made = self._llm.complete(missing, store) if missing else []
                for prompt, text in zip(missing, made, strict=True):
                    self._replies.keep(self.identity, prompt, text)  # of an LLM that does not call `store`
            except CallError as error:
                message, failures = str(error), {missing[i]: one for i, one in error.failures.items()}
                if not failures:
                    raise
        # As they are on disk, where another process may have been first.
        known = {prompt: self._replies.find(self.identity, prompt) for prompt in found}
        finished = {i: reply for i, prompt in enumerate(prompts) if (reply := known[prompt]) is not None}
        if keep is not None:
            for index, told in finished.items():
                keep(index, told)
        if failures:
            raise CallError(message, finished, {i: failures[p] for i, p in enumerate(prompts) if p in failures})
        return [finished[i] for i in range(len(prompts))]


def open_llm(spec: str) -> TextLlm:
    """``rules``, or ``openai:BASE_URL#MODEL?option=value&...``.

    Raises:
        UserError: neither.
    """
    from mimo_jax.preparation.recipes.rules import Rules

    if spec == "rules":
        return Rules()
    if spec.startswith("openai:"):
        return EndpointLlm(spec.removeprefix("openai:"))
    raise UserError(f"--llm={spec}: there are: rules, openai:BASE_URL#MODEL")


def remembering(llm: TextLlm, path: str | Path) -> TextLlm:
    """The LLM with its replies kept in a file, unless it is as quick to ask again (``llm.quick``)."""
    quick: Any = getattr(llm, "quick", False)
    return llm if quick else Remembering(llm, Replies(path))
