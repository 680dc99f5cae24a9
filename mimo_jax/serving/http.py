"""What every request passes: who may ask, is there room, how long may it take; its body; a client that hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimo_jax.serving.errors import ApiError, bad, full
from mimo_jax.serving.metrics import Metrics
from mimo_jax.serving.work import Works

logger = logging.getLogger(__name__)
T = TypeVar("T")

_GRACE_SECONDS = 5.0
_MAX_FORM_FIELDS = 32
_MAX_FIELD_BYTES = 64 << 10


class ClientGone(Exception):
    """Nobody waits for the response."""


class Gate:
    """ASGI middleware of the API's paths: key, places, deadline, errors as JSON, counts.

    Sets `deadline` (of `time.monotonic`) in the scope's state.

    Args:
      app: what is guarded.
      works: whose places they are.
      metrics: where requests are counted.
      api_key: that must be shown; empty = none.
    """

    def __init__(self, app: ASGIApp, works: Works, metrics: Metrics, api_key: str = "") -> None:
        self._app, self._works, self._metrics, self._key = app, works, metrics, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, ident = time.monotonic(), 0, f"req_{secrets.token_hex(12)}"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", ident.encode())]
            await send(message)

        path = scope["path"] if scope["path"] in self._metrics.paths else "other"
        try:
            await self._guarded(scope, receive, noting, start)
        except (ClientGone, ClientDisconnect):
            status = 499  # as web servers log it
        except ApiError as error:
            if status:
                raise  # in the middle of a response: only cutting the connection says so
            await error.response()(scope, receive, noting)
        except Exception:
            logger.exception("%s: %s %s failed", ident, scope["method"], path)
            if status:
                raise
            failed = ApiError(500, f"something is wrong on our side; it was noted as {ident}", code="internal_error")
            await failed.response()(scope, receive, noting)
        finally:
            self._metrics.count(path, status or 499, time.monotonic() - start)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, start: float) -> None:
        request = Request(scope, receive)
        if self._key and scope["path"] != "/health":
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("latin-1"), self._key):
                message = "the API key is missing or wrong; send the header `Authorization: Bearer KEY`"
                raise ApiError(401, message, code="invalid_api_key")
        if scope["method"] != "POST":
            await self._routed(scope, receive, send)
            return
        deadline = start + self._works.limits.request_seconds
        scope.setdefault("state", {})["deadline"] = deadline
        with self._works.admission():
            # Whoever waits looks at the deadline; this is for clients that do not fetch what they are sent.
            try:
                async with asyncio.timeout(self._works.limits.request_seconds + _GRACE_SECONDS):
                    await self._routed(scope, receive, send)
            except TimeoutError:
                raise ClientGone from None

    async def _routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except HTTPException as error:
            what = {404: "no such path", 405: f"{scope['method']} is not for this path"}
            message = what.get(error.status_code, str(error.detail))
            raise ApiError(error.status_code, f"{scope['path'][:200]}: {message}; see /v1/models") from None


async def body_of(request: Request, works: Works, kind: str) -> bytes:
    """The whole body. The caller must give it back to `works.held_bytes` when it has been read.

    Args:
      request: the request.
      works: its limits and counts.
      kind: the content type that it must have.

    Raises:
      ApiError: 415 (content type), 413 (too large), 408 (too slow), 429 (too much at once). ClientGone.
    """
    limits = works.limits
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    declared = request.headers.get("content-length", "")
    if found != kind:
        raise ApiError(415, f"Content-Type is {found[:80]!r}; this path takes {kind}", code="unsupported_media_type")
    if declared.isdigit() and int(declared[:20]) > limits.max_body_bytes:
        raise _too_large(limits.max_body_bytes)
    parts: list[bytes] = []
    held = 0
    try:
        # What comes after an error is dropped by uvicorn, so that clients which read last hear of it too.
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                if held + len(part) > limits.max_body_bytes:
                    raise _too_large(limits.max_body_bytes)
                if works.held_bytes + len(part) > limits.max_held_bytes:
                    raise full(f"{works.held_bytes} bytes of requests are being read")
                works.held_bytes += len(part)
                held += len(part)
                parts.append(part)
        return b"".join(parts)
    except BaseException as error:
        works.held_bytes -= held
        if isinstance(error, TimeoutError):
            message = f"the body did not come within {limits.body_seconds:g} s"
            raise ApiError(408, message, code="timeout") from None
        raise


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes; send less, or compress the audio", code="too_large")


@contextlib.asynccontextmanager
async def held_body(request: Request, works: Works, kind: str) -> AsyncIterator[list[bytes]]:
    """[the body], counted as held until the block ends; pop it to let it go early."""
    body = await body_of(request, works, kind)
    size = len(body)
    held = [body]
    del body
    try:
        yield held
    finally:
        works.held_bytes -= size


def parsed_json(body: bytes) -> object:
    """A JSON document. Raises ApiError 400."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        detail = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad(f"the body is no JSON: {detail}", code="invalid_json") from None


async def parsed_form(request: Request, body: bytes) -> tuple[dict[str, str], bytes | None]:
    """(fields, content of the file `file`) of a multipart form. Raises ApiError 400."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(
        request.headers,
        stream(),  # type: ignore[arg-type]
        max_files=1,
        max_fields=_MAX_FORM_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    parser.spool_max_size = len(body) + 1  # it is in memory already
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        message = error.message if isinstance(error, MultiPartException) else str(error)
        raise bad(f"the form cannot be read: {message}", code="invalid_form") from None
    fields: dict[str, str] = {}
    audio = None
    for name, value in form.multi_items():
        if isinstance(value, str):
            if name == "file":
                raise bad("file is a field; send it as a file: -F file=@recording.wav", "file", "invalid_type")
            if name in fields:
                raise bad(f"{name[:60]} is given twice", name[:60])
            fields[name] = value
        elif name == "file":
            audio = await value.read()
        else:
            raise bad(f"{name[:60]} is a file; the recording's field is `file`", name[:60])
    await form.close()
    return fields, audio


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. The body must have been read.

    Raises:
      ClientGone: it has hung up.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
