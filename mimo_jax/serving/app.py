"""The endpoint: its paths, and what each does with a request."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from mimo_jax.inference.tasks import Answer, MimoAudio, Piece
from mimo_jax.serving import schema, sound
from mimo_jax.serving.chat import Chat
from mimo_jax.serving.events import Parts, event
from mimo_jax.serving.history import History
from mimo_jax.serving.http import Gate, held_body, parsed_form, parsed_json, unless_gone
from mimo_jax.serving.jobs import Maker, Ordered
from mimo_jax.serving.limits import Limits
from mimo_jax.serving.metrics import Metrics
from mimo_jax.serving.work import Works, usage

JSON = "application/json"
FORM = "multipart/form-data"
EVENTS = "text/event-stream; charset=utf-8"


class Endpoint:
    """Answers requests of OpenAI's API with one model.

    Args:
      model: its engine is a `Service`.
      name: of the model, as requests call it.
      voices: float32 [samples] of each voice that requests may name.
      limits: of requests, and of all of them together.
      api_key: that requests must show; empty = none.
    """

    def __init__(
        self,
        model: MimoAudio,
        *,
        name: str = "mimo-audio",
        voices: Mapping[str, np.ndarray] | None = None,
        limits: Limits = Limits(),  # noqa: B008
        api_key: str = "",
    ) -> None:
        voices = voices or {}
        self.works = Works(model, limits)
        self._model, self._name, self._limits = self.works.model, name, limits
        codes = {voice: self._model.encode([wave])[0] for voice, wave in voices.items()}
        self._history = History()
        self._maker = Maker(self._model, codes, self._history, limits, name)
        self._created = int(time.time())
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/audio/speech", self.speech, methods=["POST"]),
            Route("/v1/audio/transcriptions", self.transcriptions, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.models, methods=["GET"]),
            Route("/v1/audio/voices", self.voices, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]
        self._voices = ["default", *sorted(voices)]
        self._metrics = Metrics(tuple(route.path for route in routes))
        self._gate = Gate(Router(routes, redirect_slashes=False), self.works, self._metrics, api_key)

    def app(self, before: Callable[[Starlette], None] = lambda app: None) -> Starlette:
        """The application. `before` may mount others, whose paths then come first; the service ends with it."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            try:
                yield
            finally:
                self.works.close()

        app = Starlette(lifespan=lifespan)
        before(app)
        app.mount("/", self._gate)
        return app

    # ----- chat ------------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""

        def make(body: bytes) -> tuple[schema.ChatRequest, Ordered]:
            asked = schema.chat(parsed_json(body), self._limits)
            return asked, self._maker.chat(asked)

        deadline = request.state.deadline
        async with held_body(request, self.works, JSON) as held:
            asked, ordered = await unless_gone(request.receive, self.works.read(lambda: make(held.pop()), deadline))
        self._note_prompt(ordered)
        chat = Chat(asked, self._name, self._model.sample_rate, self._history)
        if asked.stream:
            pieces = self._noted(ordered, deadline)
            return Parts(chat.chunks(pieces, lambda answer: self._usage(ordered, answer)), EVENTS, events=True)
        answer = await self._answer(request, ordered)
        usage = self._usage(ordered, answer)
        body = await self.works.read(lambda: _json(chat.whole(answer, usage)), deadline)
        return Response(body, media_type=JSON)

    # ----- speech ----------------------------------------------------------------------------------------------------

    async def speech(self, request: Request) -> Response:
        """`POST /v1/audio/speech`."""

        def make(body: bytes) -> tuple[schema.SpeechRequest, Ordered]:
            asked = schema.speech(parsed_json(body), self._limits)
            return asked, self._maker.speech(asked)

        deadline = request.state.deadline
        async with held_body(request, self.works, JSON) as held:
            asked, ordered = await unless_gone(request.receive, self.works.read(lambda: make(held.pop()), deadline))
        self._note_prompt(ordered)
        rate = self._model.sample_rate
        if asked.events:
            return Parts(self._speech_events(asked.format, ordered, deadline), EVENTS, events=True)
        media = sound.MEDIA_TYPES[asked.format](rate)
        if asked.format in ("wav", "pcm"):
            return Parts(self._speech_parts(asked.format, ordered, deadline), media)
        answer = await self._answer(request, ordered)
        wave = np.zeros(0, np.float32) if answer.wave is None else answer.wave
        return Response(
            await self.works.read(lambda: sound.encode(wave, rate, asked.format), deadline), media_type=media
        )

    async def _speech_parts(self, kind: str, ordered: Ordered, deadline: float) -> AsyncIterator[bytes]:
        encoder = sound.Encoder(kind, self._model.sample_rate)
        async with contextlib.aclosing(self._noted(ordered, deadline)) as pieces:
            async for piece in pieces:
                if part := encoder(piece.wave) if len(piece.wave) or piece.answer is not None else b"":
                    yield part
        if rest := encoder.end():
            yield rest

    async def _speech_events(self, kind: str, ordered: Ordered, deadline: float) -> AsyncIterator[bytes]:
        encoder = sound.Encoder(kind, self._model.sample_rate)
        async with contextlib.aclosing(self._noted(ordered, deadline)) as pieces:
            async for piece in pieces:
                data = encoder(piece.wave) if len(piece.wave) else b""
                if piece.answer is not None:
                    data += encoder.end()
                if data:
                    yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
                if piece.answer is not None:
                    yield event({"type": "speech.audio.done", "usage": self._tokens(ordered, piece.answer)})

    # ----- transcription ---------------------------------------------------------------------------------------------

    async def transcriptions(self, request: Request) -> Response:
        """`POST /v1/audio/transcriptions`."""

        def make(fields: dict[str, str], audio: bytes | None) -> tuple[schema.TranscriptionRequest, Ordered]:
            asked = schema.transcription(fields, audio, self._limits)
            return asked, self._maker.transcription(asked)

        deadline = request.state.deadline
        async with held_body(request, self.works, FORM) as held:
            form = [await parsed_form(request, held.pop())]
            asked, ordered = await unless_gone(request.receive, self.works.read(lambda: make(*form.pop()), deadline))
        self._note_prompt(ordered)
        if asked.stream:
            return Parts(self._transcript_events(ordered, deadline), EVENTS, events=True)
        answer = await self._answer(request, ordered)
        if asked.format == "text":
            return PlainTextResponse((answer.text + "\n").encode(errors="replace"))
        values: dict[str, Any] = {"text": answer.text, "usage": self._tokens(ordered, answer)}
        if asked.format == "verbose_json":
            language = {"en": "english", "zh": "chinese", None: "unknown"}[asked.language]
            seconds = round(ordered.seconds, 3)
            more = {"task": "transcribe", "language": language, "duration": seconds, "segments": []}
            values = {**more, **values, "usage": {"type": "duration", "seconds": seconds}}
        return Response(_json(values), media_type=JSON)

    async def _transcript_events(self, ordered: Ordered, deadline: float) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(self._noted(ordered, deadline)) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield event({"type": "transcript.text.delta", "delta": piece.text})
                if piece.answer is not None:
                    tokens = self._tokens(ordered, piece.answer)
                    yield event({"type": "transcript.text.done", "text": piece.answer.text, "usage": tokens})

    # ----- about the endpoint ----------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`, and of one of them."""
        model = {"id": self._name, "object": "model", "created": self._created, "owned_by": "mimo_jax"}
        asked = request.path_params.get("model")
        if asked is None:
            return Response(_json({"object": "list", "data": [model]}), media_type=JSON)
        self._maker.check_model(asked)
        return Response(_json(model), media_type=JSON)

    async def voices(self, request: Request) -> Response:
        """`GET /v1/audio/voices`."""
        return Response(_json({"voices": self._voices}), media_type=JSON)

    async def health(self, request: Request) -> Response:
        """`GET /health`: that it runs, and how busy it is."""
        status = "stopping" if self.works.stopping else "ok"
        return Response(_json({"status": status, **self._load()}), media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        gauges = {f"{name}_now": value for name, value in self._load().items()}
        return PlainTextResponse(self._metrics.text(gauges))

    def _load(self) -> dict[str, float]:
        running, waiting = self.works.service.load
        return {
            "requests": self.works.admitted,
            "max_requests": self._limits.max_requests,
            "rows_running": running,
            "rows_waiting": waiting,
            "held_bytes": self.works.held_bytes,
        }

    # ----- parts -----------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, ordered: Ordered) -> Answer:
        answer = await unless_gone(request.receive, self.works.answer(ordered, request.state.deadline))
        self._note_answer(answer)
        return answer

    async def _noted(self, ordered: Ordered, deadline: float) -> AsyncGenerator[Piece, None]:
        async with contextlib.aclosing(self.works.pieces(ordered, deadline)) as pieces:
            async for piece in pieces:
                if piece.answer is not None:
                    self._note_answer(piece.answer)
                yield piece

    def _note_prompt(self, ordered: Ordered) -> None:
        self._metrics.add("audio_in_seconds", ordered.seconds)
        self._metrics.add("prompt_positions", ordered.prompt_positions)

    def _note_answer(self, answer: Answer) -> None:
        self._metrics.add("answer_positions", answer.positions)
        if answer.wave is not None:
            self._metrics.add("audio_out_seconds", len(answer.wave) / self._model.sample_rate)

    def _usage(self, ordered: Ordered, answer: Answer) -> dict[str, Any]:
        return usage(ordered, answer, self._model.layout.group_size)

    def _tokens(self, ordered: Ordered, answer: Answer) -> dict[str, Any]:
        """As the audio paths of OpenAI's API count."""
        audio = ordered.prompt_audio
        return {
            "type": "tokens",
            "input_tokens": ordered.prompt_positions,
            "output_tokens": answer.positions,
            "total_tokens": ordered.prompt_positions + answer.positions,
            "input_token_details": {"audio_tokens": audio, "text_tokens": ordered.prompt_positions - audio},
        }


def _json(values: object) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
