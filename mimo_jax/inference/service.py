"""One engine for many threads: their requests are answered together, each as soon as there is room.

    with Service(engine, max_batch=16) as service:
        model = MimoAudio(service, tokenizer, codec)   # its methods may now be called from any thread

One thread owns the batch and the device. A caller's thread waits for updates of its own request only; a request whose
caller goes away (closes its stream) gives its row to the next one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from mimo_jax.inference.batcher import FIRST_PATCHES, Batcher
from mimo_jax.inference.engine import Engine
from mimo_jax.inference.requests import Request, Result, Update, joined
from mimo_jax.models.mimo_audio import MimoAudioConfig


class OverloadedError(RuntimeError):
    """More requests wait than may."""


class ClosedError(RuntimeError):
    """The service has ended."""


class Service:
    """Answers requests of many threads with one engine.

    Args:
      engine: generates; nobody else should use its device meanwhile.
      max_waiting: requests that may wait for a row; more are refused.
      max_seconds: longest time a request may take, waiting included; None = any.
      limits: attributes of `Limits`: max_batch, ...; others are the engine's, but for `positions` and `first_patches`,
        which are chosen for those who listen meanwhile.
    """

    def __init__(
        self, engine: Engine, *, max_waiting: int = 1024, max_seconds: float | None = None, **limits: int
    ) -> None:
        if max_waiting < 0:
            raise ValueError(f"max_waiting = {max_waiting}: at least 0")
        self._engine, self._limits = engine, {"positions": 8, "first_patches": FIRST_PATCHES, **limits}
        self._max_waiting, self._max_seconds = max_waiting, max_seconds
        self._batcher = engine.batcher(**self._limits)
        self._changed = threading.Condition()
        self._new: list[Stream] = []  # not yet known to the batcher
        self._gone: list[Stream] = []
        self._streams: dict[int, Stream] = {}  # by ticket
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def config(self) -> MimoAudioConfig:
        """Shape of the model."""
        return self._engine.config

    @property
    def max_positions(self) -> int:
        """Limit of prompt and answer together."""
        return self._batcher.limits.max_positions

    @property
    def load(self) -> tuple[int, int]:
        """Requests that are being answered, and that wait."""
        with self._changed:
            known = len(self._streams)
            return self._batcher.running, known - self._batcher.running + len(self._new)

    def stream(self, request: Request) -> Stream:
        """One answer as it comes.

        Raises:
          ValueError: a request that cannot run. OverloadedError, ClosedError: it is not taken. While it comes:
          TimeoutError: it took longer than `max_seconds`.
        """
        self._engine.check(request)
        stream = Stream(self, request, self._max_seconds)
        with self._changed:
            if self._closed:
                raise ClosedError("the service has ended")
            # Those that find a row at once do not wait.
            pending = len(self._new) + sum(not stream.ended for stream in self._streams.values())
            if pending >= self._batcher.limits.max_batch + self._max_waiting:
                raise OverloadedError(f"{pending} requests are being answered or wait; try again later")
            self._new.append(stream)
            self._changed.notify_all()
        return stream

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Answers in the order of the requests; raises what `stream` raises, and then answers none of them."""
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(self.stream(request))
            return [joined(list(stream)) for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    def close(self) -> None:
        """Ends the thread; requests that are being answered fail with ClosedError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self, stream: Stream) -> None:
        """The caller of `stream` has gone."""
        with self._changed:
            if stream in self._new:
                self._new.remove(stream)
            else:
                self._gone.append(stream)
                self._changed.notify_all()

    # ----- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._take():
            try:
                updates = self._batcher.turn()
            except Exception as error:  # noqa: BLE001  (whatever it is, those who wait must hear of it)
                self._fail(error)
                continue
            with self._changed:
                heard = [(self._streams.get(update.ticket), update) for update in updates]
                for update in updates:
                    if update.stop_reason is not None:
                        self._streams.pop(update.ticket, None)
            for stream, update in heard:
                if stream is not None:
                    stream.put(update)
        self._fail(ClosedError("the service has ended"))

    def _take(self) -> bool:
        """Waits until there is something to do; takes in who came and lets go who left. False at the end."""
        with self._changed:
            while not (self._closed or self._new or self._batcher.busy):
                self._gone.clear()
                self._changed.wait()
            for stream in self._new:
                stream.ticket = self._batcher.submit(stream.request)
                self._streams[stream.ticket] = stream
            self._new.clear()
            for stream in self._gone:
                if self._streams.pop(stream.ticket, None) is not None:
                    self._batcher.cancel(stream.ticket)
            self._gone.clear()
            return not self._closed

    def _fail(self, error: Exception) -> None:
        """Tells everybody, and begins anew: what a failed dispatch was given is used up."""
        with self._changed:
            streams = [*self._streams.values(), *(self._new if self._closed else ())]
            self._streams.clear()
            self._batcher = self._fresh()
        for stream in streams:
            stream.put(error)

    def _fresh(self) -> Batcher:
        return self._engine.batcher(**self._limits)


class Stream:
    """The updates of one request, for the thread that asked; an iterator, to be closed by who does not read it all.

    `ended`: nothing more is read from it.
    """

    def __init__(self, service: Service, request: Request, max_seconds: float | None):
        self.request, self.ticket = request, 0
        self._service = service
        self._arrived: queue.SimpleQueue[Update | Exception | None] = queue.SimpleQueue()
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.ended = False

    def put(self, arrived: Update | Exception) -> None:
        """For the service's thread."""
        self._arrived.put(arrived)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Update:
        if self.ended:
            raise StopIteration
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            arrived = self._arrived.get(timeout=left)
        except queue.Empty:
            self.close()
            raise TimeoutError("the answer took longer than a request may") from None
        if arrived is None:  # closed by another thread
            raise StopIteration
        if isinstance(arrived, Exception):
            self.ended = True
            raise arrived
        self.ended = arrived.stop_reason is not None
        return arrived

    def close(self) -> None:
        """The rest is not wanted; may be called by another thread, while this one waits."""
        if not self.ended:
            self.ended = True
            self._arrived.put(None)
            self._service._forget(self)
