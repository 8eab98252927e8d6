"""The error boundary: logs unexpected errors and answers them without details."""

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import internal_problem

log = structlog.get_logger(__name__)


class ErrorBoundary:
    """Middleware: catches every exception that a request raises."""

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
                raise  # a part of the answer is sent: only a broken connection shows the error
            await internal_problem(Request(scope))(scope, receive, send)
