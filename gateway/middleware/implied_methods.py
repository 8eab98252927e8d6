"""The methods that no route declares: `HEAD` of all that can be read, and `OPTIONS`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import problem_of, respond
from gateway.routes.allowed_methods import HEAD, OPTIONS, AllowedMethods
from modelyard.contract.errors import ErrorCode, ModelyardError


class ImpliedMethods:
    """Middleware: answers `HEAD` as `GET` without the content, and `OPTIONS` with `Allow`.

    The answer to `OPTIONS` has no CORS headers: only pages of an allowed origin may use the
    gateway, and `CrossSiteGuard` answers their preflights.
    """

    def __init__(self, app: ASGIApp, allowed: AllowedMethods) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == OPTIONS:
            await self._options(Request(scope))(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == HEAD:
            await self._app({**scope, "method": "GET"}, receive, _without_content(send))
        else:
            await self._app(scope, receive, send)

    def _options(self, request: Request) -> Response:
        methods = self._allowed.of(request.scope["path"])
        if not methods:
            return respond(request, problem_of(ModelyardError(ErrorCode.NOT_FOUND)))
        return Response(status_code=204, headers={"Allow": ", ".join(methods)})


def _without_content(send: Send) -> Send:
    """Return a `send` that ends the answer after its header.

    So a stored result is not read to its end for nobody: the server says that the client is gone.
    """

    async def header_only(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return header_only
