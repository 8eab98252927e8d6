"""Shutdown: a stopping gateway refuses new requests and asks clients to close their connections.

Requests in flight are still answered, and so are `/livez` and `/readyz` until the end.
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
"""Seconds that the body of a refused request may take to arrive."""


class ShutdownMiddleware:
    """Middleware: while the gateway stops, new requests get 503 and each answer closes."""

    def __init__(self, app: ASGIApp, waiters: Waiters) -> None:
        self._app = app
        self._waiters = waiters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._waiters.closing:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        app = self._app
        if scope["type"] == "http" and self._waiters.closing and scope["path"] not in HEALTH:
            error = ModelyardError(
                ErrorCode.UNAVAILABLE, "The gateway is stopping and accepts no new requests."
            )
            app = respond(Request(scope), problem_of(error))
            await _drop_body(receive)
        await app(scope, receive, send_and_close)


async def _drop_body(receive: Receive) -> None:
    """Read and drop the rest of a refused request.

    If a connection is closed with unread bytes, TCP resets it and the refusal may get lost.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_S):
            while (await receive()).get("more_body"):
                pass
