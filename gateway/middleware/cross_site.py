"""Cross-site protection: web pages of other sites can't use the gateway through a user's browser.

A page of any site can make its user's browser send requests to every address that the browser can
reach. Three rules stop it, without a cookie or a token:

- A request for a host name that is not the gateway's is refused. Otherwise an attacker could point
  another name at the gateway's address (DNS rebinding), and the requests of the attacker's page
  would look like requests of the gateway's own origin.
- A request that changes something is refused if the browser says that another site sent it.
- A request that changes something has to be JSON or have no body. A form can't send that. Uploads
  may be anything: they change nothing until a request names them, and that is JSON.

Reads are answered without CORS headers, so the browser does not show the answer to the page.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.middleware.shutdown import HEALTH
from gateway.problems import problem_of, respond, wrong_media_type
from modelyard.contract.errors import ErrorCode, InvalidRequestError, ModelyardError

READING = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITES = frozenset({"same-origin", "none"})
"""`Sec-Fetch-Site` of the gateway's own origin (its page is `/docs`) and of typed addresses."""
NAMES_REMEMBERED = 256
"""Cache size for host names: nearly all requests use the same few."""
PREFLIGHT_AGE_S = 600
CORS_METHODS = "GET, POST, PUT, DELETE"
CORS_REQUEST_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Prefer, X-Request-Id"
)
CORS_ANSWER_HEADERS = (
    "Content-Disposition, ETag, Link, Location, Preference-Applied, Retry-After, WWW-Authenticate, "
    "X-Request-Id"
)

HEADERS = (
    "host",
    "origin",
    "sec-fetch-site",
    "content-type",
    "content-length",
    "transfer-encoding",
    "access-control-request-method",
)
"""The request headers that are checked here. ASGI gives names in lower case."""
UPLOADS = "/v1/inputs"
_HEADER_NAMES = {name.encode("ascii"): name for name in HEADERS}
HeaderValues = dict[str, list[str]]

_ANSWER_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Headers of every answer, for browsers."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class WebRules:
    """The host names that the gateway answers for, and the origins whose pages may use it."""

    hosts: frozenset[str] = frozenset()
    """Names and addresses, in addition to loopback and the address of the connection itself."""
    origins: frozenset[str] = frozenset()
    """Such as `https://app.example`."""

    def answers_for(self, host: str, arrived_at: str | None) -> bool:
        """Tell whether a `Host` header names this gateway; its port does not count.

        `arrived_at`, the address at which the connection arrived, is always accepted: after DNS
        rebinding a browser sends the attacker's name as the host, never the address.
        """
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = canonical_host(match.group(1))
        if name == "localhost" or name in self.hosts:
            return True
        if arrived_at is not None and name == canonical_host(arrived_at):
            return True
        return _is_loopback(name)


@lru_cache(maxsize=NAMES_REMEMBERED)
def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=NAMES_REMEMBERED)
def canonical_host(name: str) -> str:
    """Return a host in its canonical form: lower case, no brackets, no trailing dot."""
    plain = name.strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(plain))
    except ValueError:
        return plain


class CrossSiteGuard:
    """Middleware: refuses requests that a page of another site makes a browser send."""

    def __init__(self, app: ASGIApp, rules: WebRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _read(scope)
        origin = self._allowed_origin(headers["origin"])
        preflight = scope["method"] == "OPTIONS" and bool(headers["access-control-request-method"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_ANSWER_HEADERS]
                if self._rules.origins:
                    _add_cors_headers(origin, MutableHeaders(scope=message))
            await send(message)

        app = self._app
        refusal = self._refusal(scope, headers, origin, preflight=preflight)
        if refusal is not None:
            app = respond(Request(scope), problem_of(refusal))
        elif preflight:
            app = _preflight()
        await app(scope, receive, send_with_headers)

    def _allowed_origin(self, origins: Sequence[str]) -> str | None:
        """Return the request's origin if its pages may use the gateway, else null."""
        allowed = len(origins) == 1 and origins[0].lower() in self._rules.origins
        return origins[0] if allowed else None

    def _refusal(
        self, scope: Scope, headers: HeaderValues, origin: str | None, *, preflight: bool
    ) -> ModelyardError | None:
        arrived_at = scope["server"][0] if scope.get("server") else None
        hosts = headers["host"]
        if scope["path"] not in HEALTH and not all(
            self._rules.answers_for(host, arrived_at) for host in hosts
        ):
            return ModelyardError(
                ErrorCode.MISDIRECTED,
                f"This gateway does not answer for the host {hosts[0][:255]!r}. If clients reach "
                "it by this name, add it to MODELYARD_GATEWAY_ALLOWED_HOSTS.",
            )
        if scope["method"] in READING and not preflight:
            return None
        if origin is None and _is_foreign(headers):
            return ModelyardError(
                ErrorCode.CROSS_SITE,
                "A web page of another site may not do this. To allow it, add its origin to "
                "MODELYARD_GATEWAY_ALLOWED_ORIGINS.",
            )
        if preflight or scope["path"] == UPLOADS:
            return None
        return _wrong_media_type(headers)


def _read(scope: Scope) -> HeaderValues:
    """Return all values of each header in `HEADERS`, in one pass."""
    headers: HeaderValues = {name: [] for name in HEADERS}
    for name, value in scope["headers"]:
        known = _HEADER_NAMES.get(name)
        if known is not None:
            headers[known].append(value.decode("latin-1"))
    return headers


def _is_foreign(headers: HeaderValues) -> bool:
    """Tell whether the browser says that a page of another origin sent the request."""
    if any(site.lower() not in OWN_SITES for site in headers["sec-fetch-site"]):
        return True
    hosts = [host.lower() for host in headers["host"]]
    own = {f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")}
    return any(origin.lower() not in own for origin in headers["origin"])


def _wrong_media_type(headers: HeaderValues) -> InvalidRequestError | None:
    """Return an error for a body that is not JSON: a form or a simple request could send it."""
    types = headers["content-type"]
    if not types and not _has_body(headers):
        return None
    if len(types) == 1 and types[0].split(";")[0].strip().lower() == "application/json":
        return None
    return wrong_media_type(types)


def _has_body(headers: HeaderValues) -> bool:
    lengths = headers["content-length"]
    return bool(headers["transfer-encoding"]) or (bool(lengths) and lengths[0] != "0")


def _add_cors_headers(origin: str | None, headers: MutableHeaders) -> None:
    """Let the pages of an allowed origin read the answer; null for any other request."""
    headers.add_vary_header("Origin")
    if origin is not None:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = CORS_ANSWER_HEADERS


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": CORS_METHODS,
            "Access-Control-Allow-Headers": CORS_REQUEST_HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_AGE_S),
        },
    )
