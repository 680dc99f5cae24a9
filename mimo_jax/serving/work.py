"""Doing the work of requests: bounded pools for reading and answering, and an end as soon as nobody wants the answer.

The event loop waits; threads work. Readers parse bodies, decode recordings and encode them to codes, so that what waits
for the model is small. Workers each follow one answer of the `Service`, which computes all of them together.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.requests import Request, Result, joined
from mimo_jax.inference.service import ClosedError, OverloadedError, Service, Stream
from mimo_jax.inference.tasks import Answer, MimoAudio, Piece
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.serving.errors import ApiError, full, too_slow
from mimo_jax.serving.jobs import Ordered
from mimo_jax.serving.limits import Limits

T = TypeVar("T")


class BoundedCodec(AudioCodec):
    """A codec of which few calls run at a time: what a call holds is bounded, so all of them together are.

    Args:
      codec: whose tokenizer it is.
      calls: that run at a time; others wait.
    """

    def __init__(self, codec: AudioCodec, calls: int) -> None:
        vars(self).update(vars(codec))
        self._turn = threading.BoundedSemaphore(calls)

    def encode(self, waves: Sequence[np.ndarray], num_quantizers: int | None = None) -> list[np.ndarray]:
        """As of `AudioCodec`."""
        with self._turn:
            return super().encode(waves, num_quantizers)

    def decode(self, codes: Sequence[np.ndarray], num_quantizers: int | None = None) -> list[np.ndarray]:
        """As of `AudioCodec`."""
        with self._turn:
            return super().decode(codes, num_quantizers)


class _Line:
    """The service, for one request: another thread may hang up while its answer is waited for."""

    def __init__(self, service: Service) -> None:
        self._service, self._streams, self._left = service, list[Stream](), False
        self._lock = threading.Lock()

    @property
    def config(self) -> MimoAudioConfig:
        return self._service.config

    @property
    def max_positions(self) -> int:
        return self._service.max_positions

    def stream(self, request: Request) -> Stream:
        with self._lock:
            if self._left:
                raise ClosedError("nobody waits for the answer")
            stream = self._service.stream(request)
            self._streams.append(stream)
            return stream

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        return [joined(list(self.stream(request))) for request in requests]

    def leave(self) -> None:
        """Gives the row back; who waits for an update gets ClosedError."""
        with self._lock:
            self._left = True
            for stream in self._streams:
                stream.close()
                stream.put(ClosedError("nobody waits for the answer"))


class Works:
    """Answers with one model.

    Args:
      model: its engine is a `Service`.
      limits: how much at a time, how long.
    """

    def __init__(self, model: MimoAudio, limits: Limits) -> None:
        if not isinstance(model.engine, Service):
            raise TypeError("the model's engine must be a Service: requests come from many threads")
        self.service, self._tokenizer, self.limits = model.engine, model.tokenizer, limits
        self._codec = BoundedCodec(model.codec, limits.codec_calls)
        self.model = MimoAudio(self.service, self._tokenizer, self._codec)
        self._readers = ThreadPoolExecutor(limits.readers, "reader")
        # Twice the rows: the next prompts are known to the service before a row is free.
        self._workers = ThreadPoolExecutor(2 * limits.max_batch, "worker")
        self._spoken = asyncio.Semaphore(limits.max_spoken_streams)
        self.admitted, self.held_bytes, self.stopping = 0, 0, False

    @contextlib.contextmanager
    def admission(self) -> Iterator[None]:
        """Holds one of the places. Raises ApiError 429 where there is none."""
        if self.stopping:
            raise ApiError(503, "the server is stopping; try again later", code="stopping")
        if self.admitted >= self.limits.max_requests:
            raise full(f"{self.admitted} requests are being answered or wait")
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    async def read(self, function: Callable[[], T], deadline: float) -> T:
        """Runs a function in a reader's thread. Raises ApiError 504 after the deadline (of `time.monotonic`)."""
        waiting = [function]
        future = self._readers.submit(lambda: waiting.pop()())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise too_slow(self.limits.request_seconds) from None
        finally:
            waiting.clear()  # the pool keeps what was cancelled until a thread is free, with the body that it holds

    async def answer(self, ordered: Ordered, deadline: float) -> Answer:
        """A whole answer; errors as of `pieces`."""

        def make(model: MimoAudio, tell: Callable[[Answer], None]) -> None:
            [answer] = model.answer([ordered.job], max_new=ordered.max_new, text_sampling=ordered.text_sampling)
            tell(answer)

        async with contextlib.aclosing(self._told(make, deadline)) as answers:
            async for answer in answers:
                return answer
        raise ClosedError("the service has ended")

    async def pieces(self, ordered: Ordered, deadline: float) -> AsyncGenerator[Piece, None]:
        """An answer as it comes; closing the iterator ends the work.

        Raises:
          ApiError: 504 after the deadline, 429 or 503 where the service does not take it.
        """

        def make(model: MimoAudio, tell: Callable[[Piece], None]) -> None:
            options: dict[str, Any] = {"max_new": ordered.max_new, "text_sampling": ordered.text_sampling}
            for piece in model.stream(ordered.job, **options):
                tell(piece)

        if not ordered.job.decoding.spoken:
            async with contextlib.aclosing(self._told(make, deadline)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        try:
            await asyncio.wait_for(self._spoken.acquire(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise too_slow(self.limits.request_seconds) from None
        loop = asyncio.get_running_loop()

        def done(_: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._spoken.release)

        # What a decoder of the stream holds is free when its thread has ended, not when the client has gone.
        async with contextlib.aclosing(self._told(make, deadline, done)) as pieces:
            async for piece in pieces:
                yield piece

    async def _told(
        self,
        make: Callable[[MimoAudio, Callable[[T], None]], None],
        deadline: float,
        done: Callable[[Future[None]], None] = lambda _: None,
    ) -> AsyncGenerator[T, None]:
        """What `make` tells from a worker's thread."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        line = _Line(self.service)

        def tell(what: T | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(told.put_nowait, what)

        def work() -> None:
            try:
                make(MimoAudio(line, self._tokenizer, self._codec), tell)
                tell(None)
            except Exception as error:  # noqa: BLE001  (whatever it is, the request must hear of it)
                tell(error)

        try:
            future = self._workers.submit(work)
        except RuntimeError:
            raise ApiError(503, "the server is stopping; try again later", code="stopping") from None
        future.add_done_callback(done)
        try:
            while True:
                what = await asyncio.wait_for(told.get(), max(0.0, deadline - time.monotonic()))
                if isinstance(what, Exception):
                    raise what
                if what is None:
                    return
                yield what
        except TimeoutError:
            raise too_slow(self.limits.request_seconds) from None
        except OverloadedError as error:
            raise full(str(error)) from None
        except ClosedError:
            raise ApiError(503, "the server is stopping; try again later", code="stopping") from None
        finally:
            line.leave()
            future.cancel()

    def close(self) -> None:
        """Ends all work."""
        self.stopping = True
        for pool in (self._readers, self._workers):
            pool.shutdown(wait=False, cancel_futures=True)
        self.service.close()


def usage(ordered: Ordered, answer: Answer, group_size: int) -> dict[str, Any]:
    """Positions of a prompt and its answer, as OpenAI counts tokens."""
    spoken = len(answer.codes) // group_size
    return {
        "prompt_tokens": ordered.prompt_positions,
        "completion_tokens": answer.positions,
        "total_tokens": ordered.prompt_positions + answer.positions,
        "prompt_tokens_details": {
            "audio_tokens": ordered.prompt_audio,
            "text_tokens": ordered.prompt_positions - ordered.prompt_audio,
            "cached_tokens": 0,
        },
        "completion_tokens_details": {
            "audio_tokens": spoken,
            "text_tokens": answer.positions - spoken,
            "reasoning_tokens": 0,
        },
    }
