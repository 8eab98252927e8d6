"""The last resort: an error that nobody expected is logged and answered without its details."""

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import internal_problem

log = structlog.get_logger(__name__)


class ErrorBoundary:
    """Middleware: the boundary of one request, where whatever it raised ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http":
                raise
            log.exception("request.failed", method=scope["method"], path=scope["path"])
            if started:
                raise  # half an answer is out: only a broken connection says so truthfully
            await internal_problem(Request(scope))(scope, receive, send)
