"""Connections of a gateway that stops: each is told that its answer was the last one."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.live import Live


class Leaving:
    """Middleware: asks clients not to use the connection again once the gateway stops."""

    def __init__(self, app: ASGIApp, live: Live) -> None:
        self._app = app
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_farewell(message: Message) -> None:
            if message["type"] == "http.response.start" and self._live.closing:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_with_farewell)
