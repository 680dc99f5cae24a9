"""Running the endpoint: uvicorn, with an end for clients that are too slow with their headers."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mimo_jax.serving.limits import Limits

logger = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Connections beyond those that have a place, such as idle ones and those that are told to come back later.
_MORE_CONNECTIONS = 256


def protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 that cuts a connection whose next request has not come with all headers in time."""

    class Impatient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._expect()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def _expect(self) -> None:
            """Time runs while no request is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(header_seconds, self._cut)

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _cut(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return Impatient


def server(app: ASGIApp, limits: Limits, **options: Any) -> uvicorn.Server:
    """A server that is ready to run; options are those of `uvicorn.Config`."""
    config = uvicorn.Config(
        app,
        http=protocol(limits.header_seconds),
        ws="none",
        lifespan="on",
        limit_concurrency=limits.max_requests + _MORE_CONNECTIONS,
        timeout_keep_alive=max(1, int(limits.header_seconds)),
        timeout_graceful_shutdown=max(1, round(limits.stop_seconds)),
        server_header=False,
        proxy_headers=False,
        **options,
    )
    return uvicorn.Server(config)


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    return listening
