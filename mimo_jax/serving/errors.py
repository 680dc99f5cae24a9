"""What a client is told when something does not work, in the shape of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

RETRY_SECONDS = 5
_TYPES = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}


class ApiError(Exception):
    """An answer other than success.

    Args:
      status: HTTP status.
      message: names the field and the value, and says what to do.
      param: the field.
      code: for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, object]:
        """The JSON object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """As an HTTP response."""
        more = dict(headers or {})
        if self.status in (429, 503):
            more["Retry-After"] = str(RETRY_SECONDS)
        if self.status == 401:
            more["WWW-Authenticate"] = "Bearer"
        text = json.dumps(self.body, ensure_ascii=False)
        return Response(text.encode(errors="replace"), self.status, more, "application/json")


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong in itself."""
    return ApiError(400, message, param, code)


def too_slow(seconds: float) -> ApiError:
    """The answer took longer than it may."""
    return ApiError(504, f"the answer took longer than {seconds:g} s; ask for less, or try again later", code="timeout")


def full(message: str) -> ApiError:
    """No room for another request."""
    return ApiError(429, f"{message}; try again in {RETRY_SECONDS} s", code="overloaded")
