"""The access log: one line for each request, and its metrics.

A request that the connection layer refuses never gets here: `ClientConnection.refuse` tells of it.
The line has the template of the route and the id of the API key. Keys, queries and bodies are never
logged.
"""

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.middleware.shutdown import HEALTH
from gateway.monitoring.metrics import NO_ROUTE, GatewayMetrics
from gateway.monitoring.request_facts import CODE, PRINCIPAL, ROUTE, VERB

if TYPE_CHECKING:
    from modelyard.contract.access.scopes import Principal
    from modelyard.contract.errors import ErrorCode
    from modelyard.contract.states import Verb

log = structlog.get_logger(__name__)


class AccessLog:
    """Middleware: logs and counts each request at its end."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, *, with_lines: bool) -> None:
        """Without `with_lines` requests are only counted."""
        self._app = app
        self._metrics = metrics
        self._with_lines = with_lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None
        sent = 0

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        began = time.monotonic()
        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - began
            route = _route_of(scope)
            self._metrics.answered(scope["method"], route, status, seconds)
            code: ErrorCode | None = scope.get(CODE)
            if code is not None and VERB in scope:
                self._metrics.rejected(cast("Verb | None", scope[VERB]), code)
            if self._with_lines:
                _log_line(scope, route, status, sent, seconds)


def refused(metrics: GatewayMetrics, status: HTTPStatus, client: str, *, with_line: bool) -> None:
    """Count and log a request, or a connection, that was refused before it had a route.

    Connections beyond the limit get no line each, because a flood of them would fill the log:
    `connections.too_many` says every few seconds how many they were.
    """
    metrics.refused(status)
    if with_line and status is not HTTPStatus.SERVICE_UNAVAILABLE:
        log.info("request.refused", status=status.value, client=client)


def _log_line(scope: Scope, route: str, status: int | None, sent: int, seconds: float) -> None:
    principal: Principal | None = scope.get(PRINCIPAL)
    client = scope.get("client")
    # Supervisors and load balancers ask every few seconds.
    write = log.debug if scope["path"] in HEALTH else log.info
    write(
        "request.answered",
        method=scope["method"],
        path=scope["path"],
        route=route,
        status=status,
        code=scope.get(CODE),
        ms=round(seconds * 1_000, 1),
        bytes=sent,
        client=client[0] if client else None,
        tenant=principal.tenant if principal else None,
        key_id=principal.key_id if principal else None,
    )


def _route_of(scope: Scope) -> str:
    """Return the template of the route that took the request, such as `/v1/jobs/{job_id}`."""
    direct: str | None = scope.get(ROUTE)
    if direct is not None:
        return direct
    return str(getattr(scope.get("route"), "path", NO_ROUTE))
