"""A gateway that stops: it refuses what comes, and tells clients not to use the connection again.

What was in flight is still answered, and so are `/livez` and `/readyz` to the end.
"""

import asyncio
import contextlib

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import problem_of, respond
from gateway.waiters import Waiters
from modelyard.contract.errors import ErrorCode, ModelyardError

HEALTH = frozenset({"/livez", "/readyz"})
BODY_S = 0.5
"""Seconds that the body of a refused request may take to come."""


class ShutdownMiddleware:
    """Middleware: once the gateway stops, 503 to new requests and no connection used again."""

    def __init__(self, app: ASGIApp, waiters: Waiters) -> None:
        self._app = app
        self._waiters = waiters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_farewell(message: Message) -> None:
            if message["type"] == "http.response.start" and self._waiters.closing:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        app = self._app
        if scope["type"] == "http" and self._waiters.closing and scope["path"] not in HEALTH:
            error = ModelyardError(ErrorCode.UNAVAILABLE, "It is stopping and takes nothing new.")
            app = respond(Request(scope), problem_of(error))
            await _drop_body(receive)
        await app(scope, receive, send_with_farewell)


async def _drop_body(receive: Receive) -> None:
    """Read what a refused request still sends.

    A connection that is closed with unread bytes is reset, and the refusal on it may get lost.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_S):
            while (await receive()).get("more_body"):
                pass
