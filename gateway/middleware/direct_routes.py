"""Direct routes: the endpoints that nearly all requests call, without FastAPI's way to a route.

FastAPI matches each request against its routers and resolves everything that a dependency may have
(parameters, overrides, cleanup) anew. For a request that submits a job this cost more than all that
the gateway itself does. The routes are FastAPI's own, so the OpenAPI document has them, too.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.monitoring.request_facts import ROUTE
from gateway.problems import answer_to
from modelyard.contract.errors import ModelyardError

Endpoint = Callable[[Request], Awaitable[Response]]
_Template = tuple[str, re.Pattern[str], str, Endpoint]
"""A method, the paths with parameters for which its endpoint is, and their template."""


class DirectRoutes:
    """Middleware: answers requests for the given routes itself.

    Their endpoints take the request, and dependencies that take only the request; other routes
    raise `TypeError`. Parameters of a path are in `request.path_params`, as text. Dependencies are
    not cached, and the app's `dependency_overrides` do not apply.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._templates: list[_Template] = []
        for route in routes:
            if not isinstance(route, APIRoute):
                continue
            endpoint = _endpoint_of(route)
            for method in route.methods or ():
                if route.param_convertors:
                    self._templates.append((method, route.path_regex, route.path, endpoint))
                else:
                    self._endpoints[method, route.path] = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoint(scope) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except (ModelyardError, ClientDisconnect) as error:
            response = answer_to(request, error)
        await response(scope, receive, send)

    def _endpoint(self, scope: Scope) -> Endpoint | None:
        method, path = scope["method"], scope["path"]
        endpoint = self._endpoints.get((method, path))
        if endpoint is not None:
            scope[ROUTE] = path
            return endpoint
        for its_method, regex, template, endpoint in self._templates:
            if method == its_method and (found := regex.match(path)):
                scope[ROUTE] = template
                scope["path_params"] = found.groupdict()
                return endpoint
        return None


def _endpoint_of(route: APIRoute) -> Endpoint:
    takes_request_as = route.dependant.request_param_name
    if takes_request_as is None or not _takes_only_request(route.dependant):
        raise TypeError(f"{route.path}: its endpoint takes more than the request.")
    dependencies = [(one.name, one.call) for one in route.dependant.dependencies if one.call]
    for one in route.dependant.dependencies:
        if one.dependencies or not _takes_only_request(one):
            raise TypeError(f"{route.path}: `{one.name}` takes more than the request.")

    async def endpoint(request: Request) -> Response:
        values: dict[str, Any] = {takes_request_as: request}
        for name, call in dependencies:
            value = await call(request)
            if name is not None:
                values[name] = value
        response: Response = await route.endpoint(**values)
        return response

    return endpoint


def _takes_only_request(dependant: Dependant) -> bool:
    return not (
        dependant.path_params
        or dependant.query_params
        or dependant.header_params
        or dependant.cookie_params
        or dependant.body_params
    )
