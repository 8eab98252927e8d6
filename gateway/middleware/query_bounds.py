"""Bounds on the query string, checked before it is parsed."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.problems import FaultyRequestError, problem_of, respond
from modelyard.contract.answers import Fault

MAX_QUERY_BYTES = 8 << 10
MAX_PARAMETERS = 64
"""Most parameters in one query; no route takes ten. Each unknown one would be an error to list."""


class QueryBounds:
    """Middleware: refuses a query that is too long or has too many parameters."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query: bytes = scope.get("query_string", b"")
        message = ""
        if len(query) > MAX_QUERY_BYTES:
            message = f"The query has {len(query)} bytes; at most {MAX_QUERY_BYTES} are allowed."
        elif (count := query.count(b"&") + 1) > MAX_PARAMETERS:
            message = f"The query has {count} parameters; at most {MAX_PARAMETERS} are allowed."
        if not message:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refused = problem_of(FaultyRequestError([Fault(parameter="", message=message)]))
        await respond(request, refused)(scope, receive, send)
