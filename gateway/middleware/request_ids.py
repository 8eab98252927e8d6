"""Request ids: each request has one, in its answer, its log lines and its problem document."""

import random
import re

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_HEADER = HEADER.lower().encode("ascii")
_STATE_KEY = "request_id"
_VALID = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,128}")
"""Ids that are accepted from a client; for any other the gateway makes an id of its own."""


class RequestIds:
    """Middleware: gives the request an id, binds it to the log, and returns it in a header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _client_id(scope) or _new_id()
        scope.setdefault("state", {})[_STATE_KEY] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (_HEADER, request_id.encode("ascii"))]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


def _client_id(scope: Scope) -> str | None:
    """Return the id that the client has given its request; null without one, or if it is invalid.

    If the header was sent twice, the first one counts.
    """
    for name, value in scope["headers"]:
        if name == _HEADER:
            client_id: str = value.decode("latin-1")
            return client_id if _VALID.fullmatch(client_id) else None
    return None


def _new_id() -> str:
    """Return 32 hex digits: unique, but not secret, because `uuid4` would cost a system call."""
    return f"{random.getrandbits(128):032x}"


def request_id_of(request: Request) -> str | None:
    """Return the id of a request; null outside of the middleware."""
    found: str | None = request.scope.get("state", {}).get(_STATE_KEY)
    return found
