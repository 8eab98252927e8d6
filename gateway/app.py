"""The app factory: routes, middleware, errors and the OpenAPI document."""

from fastapi import FastAPI

from gateway import openapi, problems
from gateway.middleware.cross_site import CrossSiteGuard, WebRules
from gateway.middleware.direct_routes import DirectRoutes
from gateway.middleware.error_boundary import ErrorBoundary
from gateway.middleware.implied_methods import ImpliedMethods
from gateway.middleware.query_bounds import QueryBounds
from gateway.middleware.request_ids import RequestIds
from gateway.middleware.shutdown import ShutdownMiddleware
from gateway.monitoring.access_log import AccessLog
from gateway.routes import (
    api_docs,
    catalog,
    dead_letters,
    health,
    hosts,
    inference,
    jobs,
    keys,
    operations,
)
from gateway.routes.allowed_methods import AllowedMethods
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
        # FastAPI's pages load their scripts from a CDN; `api_docs` has one that does not.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI would look for OpenTelemetry's providers, of which there is none, at each request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        responses=openapi.EVERYWHERE,
    )
    app.state.gateway = gateway
    direct = [jobs.submitting, inference.submitting]
    plain = (jobs, operations, hosts, catalog, dead_letters, keys, health, api_docs)
    others = [one.router for one in plain]
    for router in (*direct, *others):
        app.include_router(router)
    allowed = AllowedMethods(
        [*app.routes, *(route for router in (*direct, *others) for route in router.routes)]
    )
    problems.install(app, allowed)
    app.add_middleware(DirectRoutes, routes=[route for one in direct for route in one.routes])
    app.add_middleware(ImpliedMethods, allowed=allowed)
    app.add_middleware(QueryBounds)
    app.add_middleware(ErrorBoundary)
    app.add_middleware(ShutdownMiddleware, waiters=gateway.waiters)
    app.add_middleware(CrossSiteGuard, rules=rules or WebRules())
    app.add_middleware(AccessLog, metrics=gateway.metrics, with_lines=access_log)
    app.add_middleware(RequestIds)
    openapi.install(app)
    return app
