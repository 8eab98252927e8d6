"""A gateway that stops: it refuses what comes, and tells each connection that it was the last use.

What was in flight is still answered. Health is asked and told to the end.
"""

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.live import Live
from gateway.problems import problem_of, respond
from modelyard.contract.errors import ErrorCode, ModelyardError

HEALTH = frozenset({"/livez", "/readyz"})


class Leaving:
    """Middleware: once the gateway stops, 503 to new requests and no connection used again."""

    def __init__(self, app: ASGIApp, live: Live) -> None:
        self._app = app
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_farewell(message: Message) -> None:
            if message["type"] == "http.response.start" and self._live.closing:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        app = self._app
        if scope["type"] == "http" and self._live.closing and scope["path"] not in HEALTH:
            error = ModelyardError(ErrorCode.UNAVAILABLE, "It is stopping and takes nothing new.")
            app = respond(Request(scope), problem_of(error))
        await app(scope, receive, send_with_farewell)
