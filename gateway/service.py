"""The gateway: wires its components and runs their background tasks."""

import asyncio
from dataclasses import dataclass
from functools import partial

import structlog
from prometheus_client import CollectorRegistry

from gateway.access.authentication import Authentication
from gateway.access.key_ring import KeyRing
from gateway.availability import Availability, Condition
from gateway.cancels import CancelRequests
from gateway.inference.job_choice import JobChoice
from gateway.inference.leaving_jobs import LeavingJobs
from gateway.monitoring.metrics import GatewayMetrics
from gateway.reading import BoundedReads
from gateway.submission.acceptor import Acceptor
from gateway.submission.catalog_cache import CatalogCache
from gateway.submission.dual_write import DualWrite
from gateway.submission.replays import Replays
from gateway.submission.request_reader import RequestReader
from gateway.submission.uploads import Uploads
from gateway.waiters import MAX_WAITING, Waiters
from modelyard.broker import Broker
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.errors import BrokerUnavailableError, StoreUnavailableError
from modelyard.contract.messages import MAX_BATCH_BYTES, MAX_REQUEST_BYTES
from modelyard.contract.topology import DEAD_QUEUE, JOBS, JOBS_QUEUE
from modelyard.process.tasks import TaskGroup, unending
from modelyard.store import Store

log = structlog.get_logger(__name__)

QUEUES = (JOBS_QUEUE, DEAD_QUEUE)
"""The queues that a gateway declares."""
PROBE_KEY = "gateway.probe"
"""A routing key to which no queue is bound: the broker confirms the message and drops it."""
PROBE_S = 2.0
CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """How much a gateway takes at once."""

    request_bytes: int = MAX_REQUEST_BYTES
    """Most bytes in the body of one request."""
    batch_bytes: int = MAX_BATCH_BYTES
    """Most bytes in the body of a batch."""
    input_bytes: int = MAX_CONTENT_BYTES
    """Most bytes of an input that is uploaded."""
    waiting: int = MAX_WAITING
    """Most requests that wait for an operation's end at the same time."""


class Gateway:
    """All components that the routes call."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        *,
        limits: GatewayLimits | None = None,
        with_keys: bool = False,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        """Without `with_keys` every client that reaches the gateway may do everything.

        Without `metrics` what is counted is not to be seen.
        """
        limits = limits or GatewayLimits()
        self.metrics = metrics or GatewayMetrics(CollectorRegistry())
        self.store = store
        self.reader = RequestReader(
            max_request_bytes=limits.request_bytes, max_batch_bytes=limits.batch_bytes
        )
        self._broker = broker
        self._store_up = Availability("mongodb", self._probe_store, StoreUnavailableError)
        self._broker_up = Availability("rabbitmq", self._probe_broker, BrokerUnavailableError)
        self._dual_write = DualWrite(store, self._store_up, broker, self._broker_up, self.metrics)
        self.catalog = CatalogCache(store)
        leaving = LeavingJobs()
        self.acceptor = Acceptor(
            store, self._store_up, self._dual_write, self.catalog, leaving, self.metrics
        )
        self.job_choice = JobChoice(store, self._store_up, leaving)
        self.uploads = Uploads(store.inputs, max_bytes=limits.input_bytes)
        self.reading = BoundedReads(store, self._store_up)
        self.cancels = CancelRequests(store, self.reading, broker, self._broker_up)
        self.replays = Replays(store, self.reading, broker, self._broker_up)
        self.waiters = Waiters(broker, max_waiting=limits.waiting)
        self.keys = KeyRing(store, self._store_up)
        self.authentication = Authentication(
            self.keys if with_keys else None, on_failure=self.metrics.authentication_failed
        )
        self.metrics.watch_waiting(lambda: self.waiters.waiting)
        for part in (self._store_up, self._broker_up):
            self.metrics.watch_dependency(part.name, partial(getattr, part, "down"))

    async def run(self) -> None:
        """Run the background tasks until cancelled; if one of them fails, the process ends.

        Raises `TopologyMismatchError`, in a group, if a queue exists with other arguments.
        """
        async with TaskGroup() as tasks:
            for work in (
                self._store_up.watch(),
                self._broker_up.watch(),
                self._dual_write.run(),
                self.reading.run(),
                self.job_choice.run(),
                self.cancels.run(),
                self.waiters.run(),
                self.keys.run(),
                self.keys.write_uses(),
            ):
                tasks.create_task(unending(work))

    async def close(self) -> None:
        """Close the connections and end the body process."""
        await self.reader.close()
        await self._broker.close()
        self.store.close()

    async def conditions(self) -> dict[str, Condition]:
        """Return the condition of RabbitMQ and MongoDB; ping each that is not known to be down."""
        broker, store = await asyncio.gather(
            self._broker_up.check(lambda: self._broker.ping(timeout_s=CHECK_S), within_s=CHECK_S),
            self._store_up.check(self.store.ping, within_s=CHECK_S),
        )
        return {self._broker_up.name: broker, self._store_up.name: store}

    async def _probe_store(self) -> None:
        await self.store.ping()
        # Requests may use MongoDB from here on, even while indexes are being built.
        self._store_up.answered()
        await self.store.prepare()

    async def _probe_broker(self) -> None:
        try:
            await self._broker.declare(QUEUES)
            # A broker under a memory alarm accepts connections and declarations, but no messages.
            await self._broker.publish(
                JOBS, PROBE_KEY, b"", mandatory=False, persistent=False, timeout_s=PROBE_S
            )
        except BrokerUnavailableError:
            # The connection may be dead before its heartbeat has noticed: open a new one.
            await self._broker.close()
            raise
