"""Answers that are sent while they are made: server-sent events, and sound in parts."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mimo_jax.serving.errors import ApiError
from mimo_jax.serving.http import ClientGone, unless_gone

logger = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"


def event(values: Mapping[str, object]) -> bytes:
    """A server-sent event; its data is JSON, on one line."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    # A tokenizer's output may hold what UTF-8 lacks.
    return b"data: " + text.encode(errors="replace") + b"\n\n"


class Parts(Response):
    """A response in parts. When the client hangs up, the iterator is closed, which ends the work.

    Args:
      parts: its first part is awaited before anything is sent, so that an error can still have a status of its own.
      media_type: content type.
      events: whether an error in the middle is sent as an event; else the connection is cut.
    """

    def __init__(self, parts: AsyncIterator[bytes], media_type: str, events: bool = False) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        self._parts, self._events = parts, events
        super().__init__(None, 200, headers, media_type)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all parts."""
        await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async def body(part: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": more})

        try:
            first = await anext(self._parts, b"")
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await body(first)
            try:
                async for part in self._parts:
                    if part:
                        await body(part)
            except ApiError as error:
                if not self._events:
                    raise ClientGone from error
                await body(event(error.body))
            except Exception as error:
                if not self._events:
                    raise
                logger.exception("an answer failed in the middle")
                failed = ApiError(500, "something is wrong on our side; it was noted", code="internal_error")
                await body(event(failed.body))
                del error
            await body(b"", more=False)
        finally:
            await self._parts.aclose()  # type: ignore[attr-defined]
