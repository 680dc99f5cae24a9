"""Answers of a chat in OpenAI's shapes: whole, and as chunks."""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from mimo_jax.inference.tasks import Answer, Piece
from mimo_jax.serving import sound
from mimo_jax.serving.events import DONE, event
from mimo_jax.serving.history import History, Spoken
from mimo_jax.serving.schema import ChatRequest


class Chat:
    """The shapes of one answer.

    Args:
      request: what is answered.
      model: its name.
      sample_rate: of waves, Hz.
      history: where a spoken answer is kept.
    """

    def __init__(self, request: ChatRequest, model: str, sample_rate: int, history: History) -> None:
        self._request, self._rate, self._history = request, sample_rate, history
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._audio_id, self._expires_at = history.reserve()

    def whole(self, answer: Answer, usage: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer that is sent as a whole."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thinking is not None:
            message["reasoning_content"] = answer.thinking
        if answer.wave is not None:
            self._keep(answer)
            data = sound.encode(answer.wave, self._rate, self._request.format)
            message["content"] = None
            message["audio"] = {
                "id": self._audio_id,
                "data": base64.b64encode(data).decode(),
                "transcript": answer.text,
                "expires_at": self._expires_at,
            }
        choice = {"index": 0, "message": message, "finish_reason": answer.stop_reason, "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    async def chunks(self, pieces: AsyncGenerator[Piece, None], usage_of: Any) -> AsyncIterator[bytes]:
        """Events of an answer; `usage_of`: the whole answer -> its usage."""
        begun = False
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if not begun:
                    begun = True
                    yield self._chunk({"role": "assistant", "content": None if self._request.spoken else ""})
                if piece.thinking:
                    yield self._chunk({"reasoning_content": piece.thinking})
                if piece.text:
                    spoken = self._request.spoken
                    yield self._chunk(self._audio(transcript=piece.text) if spoken else {"content": piece.text})
                if len(piece.wave):
                    data = sound.encode(piece.wave, self._rate, "pcm16")
                    yield self._chunk(self._audio(data=base64.b64encode(data).decode()))
                if piece.answer is not None:
                    if self._request.spoken:
                        self._keep(piece.answer)
                        yield self._chunk(self._audio(expires_at=self._expires_at))
                    yield self._chunk({}, piece.answer.stop_reason)
                    if self._request.stream_usage:
                        usage = usage_of(piece.answer)
                        yield event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield DONE

    def _keep(self, answer: Answer) -> None:
        if len(answer.codes):
            self._history.keep(self._audio_id, Spoken(answer.text, answer.codes))

    def _audio(self, **values: object) -> dict[str, object]:
        return {"audio": {"id": self._audio_id, **values}}

    def _chunk(self, delta: dict[str, object], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})
