"""What the gateway measures. docs/monitoring.md has a line on each metric."""

from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import Verb
from modelyard.metrics.process import FAST_BUCKETS, SIZE_BUCKETS

UNKNOWN_VERB = "unknown"
"""The verb of a request that was refused before its verb was read."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Stands for all methods but `METHODS`, because a client may send any word."""
NO_ROUTE = "none"
"""The route of a path that has none."""
NO_STATUS = "none"
"""The status of a request whose client disconnected before it was answered."""


class GatewayMetrics:
    """Counters of requests, and gauges that are read when somebody scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "modelyard_http_requests_total",
            "HTTP requests by route and status.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "modelyard_http_request_seconds",
            "Time from a request's header to the end of its answer; a request may ask to wait.",
            ["route"],
            buckets=(*FAST_BUCKETS, 15.0, 60.0),
            registry=registry,
        )
        self._by_answer: dict[tuple[str, str, str], Counter] = {}
        self._by_route: dict[str, Histogram] = {}
        self._refused = Counter(
            "modelyard_http_refused_total",
            "Requests and connections that were refused before they had a route.",
            ["status"],
            registry=registry,
        )
        accepted = Counter(
            "modelyard_requests_accepted_total",
            "Requests on jobs that became durable as new operations.",
            ["verb"],
            registry=registry,
        )
        self._accepted = {verb: accepted.labels(verb.value) for verb in Verb}
        self._rejected = Counter(
            "modelyard_requests_rejected_total",
            "Requests on jobs that were answered with an error, by its code.",
            ["verb", "code"],
            registry=registry,
        )
        self._failed_authentications = Counter(
            "modelyard_authentication_failures_total",
            "Requests without a valid API key.",
            registry=registry,
        )
        sizes = Histogram(
            "modelyard_group_commit_size",
            "Requests that shared one write.",
            ["target"],
            buckets=SIZE_BUCKETS,
            registry=registry,
        )
        seconds = Histogram(
            "modelyard_group_commit_seconds",
            "Time of one write of requests.",
            ["target"],
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self._commits = {
            target: (sizes.labels(target), seconds.labels(target))
            for target in ("mongodb", "rabbitmq")
        }
        self._up = Gauge(
            "modelyard_dependency_up",
            "1 while RabbitMQ or MongoDB answers this gateway, else 0.",
            ["dependency"],
            registry=registry,
        )
        self._waiting = Gauge(
            "modelyard_http_waiting_requests",
            "Requests that wait for an operation to end.",
            registry=registry,
        )
        self._connections = Gauge(
            "modelyard_http_connections",
            "Open connections of clients.",
            registry=registry,
        )

    def answered(self, method: str, route: str, status: int | None, seconds: float) -> None:
        """Count an HTTP request; `route` is the template of its path, null `status` no answer."""
        key = (
            method if method in METHODS else OTHER,
            route,
            NO_STATUS if status is None else str(status),
        )
        counter = self._by_answer.get(key)
        if counter is None:
            counter = self._by_answer[key] = self._requests.labels(*key)
        histogram = self._by_route.get(route)
        if histogram is None:
            histogram = self._by_route[route] = self._request_seconds.labels(route)
        counter.inc()
        histogram.observe(seconds)

    def refused(self, status: HTTPStatus) -> None:
        """Count what the connection layer refused."""
        self._refused.labels(str(status.value)).inc()

    def accepted(self, verb: Verb) -> None:
        """Count a new operation."""
        self._accepted[verb].inc()

    def rejected(self, verb: Verb | None, code: ErrorCode) -> None:
        """Count a request on a job that was refused; null if its verb was not read."""
        self._rejected.labels(verb.value if verb else UNKNOWN_VERB, code.value).inc()

    def authentication_failed(self) -> None:
        """Count a request without a valid API key."""
        self._failed_authentications.inc()

    def committed(self, target: str) -> Callable[[int, float], None]:
        """Return what counts the writes to `mongodb` or `rabbitmq`, by size and seconds."""
        size_of, seconds_of = self._commits[target]

        def count(size: int, seconds: float) -> None:
            size_of.observe(size)
            seconds_of.observe(seconds)

        return count

    def watch_dependency(self, name: str, down: Callable[[], bool]) -> None:
        """Read whether a dependency is down at each scrape."""
        self._up.labels(name).set_function(lambda: not down())

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Read how many requests wait at each scrape."""
        self._waiting.set_function(count)

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Read how many connections are open at each scrape."""
        self._connections.set_function(count)
