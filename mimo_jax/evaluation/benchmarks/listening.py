"""Judges that hear: a prompt with a recording each, a reply each. Style of speech is nothing that a transcript shows.

openai:BASE_URL#MODEL    chat completions of a model that takes "input_audio", such as gpt-4o-audio-preview; options
                         as of `mimo_jax.endpoints.Chat`
fake:PATH.json           replies by "PROMPT\\nKEY", KEY the recording's as of `plugins.fake`; for tests
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.endpoints import Chat
from mimo_jax.evaluation.plugins.endpoint import wav_file
from mimo_jax.evaluation.plugins.fake import FakeJudge, label_of, wave_key

_NO_SOUND = 0.1  # seconds that stand for an answer without sound: endpoints refuse empty files


class Listener(Protocol):
    """A language model that hears.

    Attributes:
      identity: what decides the replies.
    """

    identity: str

    def ask(self, prompts: Sequence[str], waves: Sequence[tuple[np.ndarray, int]]) -> list[str]:
        """Raw replies to prompts with recordings: float32 [samples] and sample rate in Hz.

        Raises:
          PluginError: it failed and can be tried again.
        """
        ...


class EndpointListener:
    """See the module."""

    def __init__(self, spec: str):
        self._chat = Chat("listener", spec)
        self.identity = self._chat.identity

    def ask(self, prompts: Sequence[str], waves: Sequence[tuple[np.ndarray, int]]) -> list[str]:
        """See `Listener`."""
        return self._chat.each(self._ask, list(zip(prompts, waves, strict=True)))

    def _ask(self, item: tuple[str, tuple[np.ndarray, int]]) -> str:
        prompt, (wave, rate) = item
        sound = wav_file(wave if len(wave) else np.zeros(int(_NO_SOUND * rate), np.float32), rate)
        heard = {"data": base64.b64encode(sound).decode(), "format": "wav"}
        return self._chat.reply([{"type": "text", "text": prompt}, {"type": "input_audio", "input_audio": heard}])


class FakeListener:
    """See the module."""

    def __init__(self, path: str):
        self._judge = FakeJudge(path)
        self.identity = self._judge.identity.replace("judge", "listener", 1)

    def ask(self, prompts: Sequence[str], waves: Sequence[tuple[np.ndarray, int]]) -> list[str]:
        """See `Listener`."""
        keys = [label_of(wave) or wave_key(wave) for wave, _ in waves]
        return self._judge.ask([f"{prompt}\n{key}" for prompt, key in zip(prompts, keys, strict=True)])


def load(spec: str) -> Listener:
    """A listener by its spec. Raises UserError for a spec that is none."""
    name, _, rest = spec.partition(":")
    if name == "openai" and rest:
        return EndpointListener(rest)
    if name == "fake" and rest:
        return FakeListener(rest)
    raise UserError(f"--listener={spec}: expected openai:BASE_URL#MODEL or fake:PATH.json")
