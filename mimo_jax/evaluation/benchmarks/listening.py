"""Judges that hear: a prompt with a recording each, a reply each. Style of speech is nothing that a transcript shows.

openai:BASE_URL#MODEL    chat completions of a model that takes "input_audio", such as gpt-4o-audio-preview; options
                         as of `mimo_jax.endpoints`, and temperature (0)
fake:PATH.json           replies by "PROMPT\\nKEY", KEY the recording's as of `plugins.fake`; for tests
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.endpoints import Endpoint
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


class EndpointListener(Endpoint):
    """See the module."""

    def __init__(self, spec: str):
        super().__init__("listener", spec, {"temperature": "0"})

    def ask(self, prompts: Sequence[str], waves: Sequence[tuple[np.ndarray, int]]) -> list[str]:
        """See `Listener`."""
        return self.each(self._ask, list(zip(prompts, waves, strict=True)))

    def _ask(self, item: tuple[str, tuple[np.ndarray, int]]) -> str:
        prompt, (wave, rate) = item
        sound = {"data": base64.b64encode(_wav(wave, rate)).decode(), "format": "wav"}
        content = [{"type": "text", "text": prompt}, {"type": "input_audio", "input_audio": sound}]
        values: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        if self.options["temperature"]:
            values["temperature"] = float(self.options["temperature"])
        return self.post_json("/chat/completions", values, _reply)


def _wav(wave: np.ndarray, rate: int) -> bytes:
    import soundfile

    file = io.BytesIO()
    sound = wave if len(wave) else np.zeros(int(_NO_SOUND * rate), np.float32)
    soundfile.write(file, np.clip(sound, -1, 1), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _reply(answer: Any) -> str:
    content = answer["choices"][0]["message"]["content"]
    if not isinstance(content, str) or not content.strip():
        raise ValueError("no text in the reply")
    return content


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
