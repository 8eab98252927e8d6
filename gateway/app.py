"""The app factory: routes, middleware, errors and the OpenAPI document."""

from fastapi import FastAPI

from gateway import openapi, problems
from gateway.middleware.cross_site import CrossSiteGuard, WebRules
from gateway.middleware.direct_routes import DirectRoutes
from gateway.middleware.error_boundary import ErrorBoundary
from gateway.middleware.query_bounds import QueryBounds
from gateway.middleware.request_ids import RequestIds
from gateway.middleware.shutdown import ShutdownMiddleware
from gateway.monitoring.access_log import AccessLog
from gateway.routes import (
    catalog,
    dead_letters,
    health,
    hosts,
    inference,
    jobs,
    keys,
    operations,
)
from gateway.service import Gateway
from modelyard import __version__


def create_app(
    gateway: Gateway, rules: WebRules | None = None, *, access_log: bool = True
) -> FastAPI:
    """Return the app that serves a gateway. The caller also has to run `gateway.run()`.

    `rules` say for which hosts it answers and which web pages may use it. Without rules it answers
    only for loopback and for the address at which a connection arrives. With `access_log` each
    request has a line in the log.
    """
    app = FastAPI(
        title="Modelyard",
        version=__version__,
        description=openapi.DESCRIPTION,
        # FastAPI's pages load their scripts from a CDN, so they are blank without the internet.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI would look for OpenTelemetry's providers, of which there is none, at each request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        responses=openapi.EVERYWHERE,
    )
    app.state.gateway = gateway
    for direct in (jobs, inference):
        app.include_router(direct.submitting)
    for routes in (jobs, operations, hosts, catalog, dead_letters, keys, health):
        app.include_router(routes.router)
    problems.install(app)
    app.add_middleware(DirectRoutes, routes=[*jobs.submitting.routes, *inference.submitting.routes])
    app.add_middleware(QueryBounds)
    app.add_middleware(ErrorBoundary)
    app.add_middleware(ShutdownMiddleware, waiters=gateway.waiters)
    app.add_middleware(CrossSiteGuard, rules=rules or WebRules())
    app.add_middleware(AccessLog, metrics=gateway.metrics, with_lines=access_log)
    app.add_middleware(RequestIds)
    openapi.install(app)
    return app
