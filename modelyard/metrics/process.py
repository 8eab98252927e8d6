"""What every process measures: its build, its event loop, its calls to RabbitMQ and MongoDB."""

import asyncio
import platform

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from modelyard import __version__
from modelyard.metrics.exposition import Exposition
from modelyard.metrics.listener import MetricsListener
from modelyard.process.addresses import parse_address
from modelyard.process.tasks import TaskGroup, unending

LAG_EVERY_S = 0.5
"""Seconds between two measurements of how late the event loop is."""
FAST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper ends in seconds for calls that usually take milliseconds."""
WORK_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0)
"""Upper ends in seconds for what may take from milliseconds to hours."""
SIZE_BUCKETS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0)
"""Upper ends for the number of items in a batch."""


class ProcessMetrics:
    """The registry of one process, with what each of the three kinds measures.

    Metrics of a service add themselves to `registry`. Nothing here is global, so tests and several
    services in one process do not mix.
    """

    def __init__(self, service: str) -> None:
        """`service` is `gateway`, `dispatcher` or `worker`."""
        # A line with the time of creation for each series would double what is scraped.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(namespace="modelyard", registry=self.registry)
        build = Info("modelyard_build", "The version that runs.", registry=self.registry)
        build.info(
            {
                "service": service,
                "version": __version__,
                "python_version": platform.python_version(),
            }
        )
        self._lag = Histogram(
            "modelyard_event_loop_lag_seconds",
            "How late the event loop is with a timer.",
            buckets=FAST_BUCKETS,
            registry=self.registry,
        )
        confirms = Histogram(
            "modelyard_broker_publish_seconds",
            "Time until RabbitMQ has confirmed a message, or until it failed to.",
            ["outcome"],
            buckets=FAST_BUCKETS,
            registry=self.registry,
        )
        self._confirmed, self._not_confirmed = (
            confirms.labels(outcome) for outcome in ("confirmed", "failed")
        )

    def publish_ended(self, seconds: float, *, confirmed: bool) -> None:
        """Count a message to RabbitMQ; for `Broker`."""
        (self._confirmed if confirmed else self._not_confirmed).observe(seconds)

    async def run(self, address: str) -> None:
        """Answer scrapes at `address` (`HOST:PORT`, or `off`) until cancelled."""
        place = parse_address(address)
        if place is None:
            await asyncio.Event().wait()
            return
        listener = MetricsListener(Exposition(self.registry), place)
        async with TaskGroup() as tasks:
            tasks.create_task(unending(listener.run()))
            tasks.create_task(unending(self._measure_lag()))

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._lag.observe(max(0.0, loop.time() - due))


class StoreMetrics:
    """What a process that uses MongoDB measures of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = Histogram(
            "modelyard_database_call_seconds",
            "Time of a call to MongoDB, which may be several round trips.",
            ["outcome"],
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self._answered, self._failed = (calls.labels(outcome) for outcome in ("answered", "failed"))

    def call_ended(self, seconds: float, *, answered: bool) -> None:
        """Count a call; for `Store`. An answer that is an error is an answer."""
        (self._answered if answered else self._failed).observe(seconds)
