"""A worker's side of RabbitMQ: all that one incarnation of a host publishes and consumes.

A worker's broker user may read the two queues of its host and publish reports and heartbeats; it
may declare nothing. So a worker asks a dispatcher to declare its host's queues.
"""

from contextlib import AbstractAsyncContextManager

from modelyard.broker import DETAIL_HEADER, REASON_HEADER, Broker, Delivery, Subscription
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.message_types import (
    HEARTBEATS_TYPE,
    HELLO_TYPE,
    REPORTS_TYPE,
    TRANSFER_TYPE,
    UNREADABLE_TYPE,
)
from modelyard.contract.messages import Heartbeat, HostHello
from modelyard.contract.topology import (
    HEARTBEATS,
    REPORTS,
    control_queue,
    host_queue,
    queues_of_host,
)


class HostChannel:
    """Publishes and consumes for one incarnation of one host.

    Every method that publishes raises `BrokerUnavailableError`.
    """

    def __init__(self, broker: Broker, host_id: str, incarnation: str) -> None:
        self.host_id = host_id
        self.incarnation = incarnation
        self._broker = broker

    def is_addressed_by(self, host_id: str, incarnation: str) -> bool:
        """Return whether a message for this host and incarnation is for us."""
        return (host_id, incarnation) == (self.host_id, self.incarnation)

    def commands(self, *, prefetch: int) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe to the host's commands; raises `QueueHeldError` if another worker has them."""
        return self._broker.subscribe(host_queue(self.host_id), prefetch=prefetch, exclusive=True)

    def control(self, *, prefetch: int) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe to the host's control messages."""
        return self._broker.subscribe(control_queue(self.host_id), prefetch=prefetch)

    async def say_hello(self) -> None:
        """Ask for the host's queues, which may exist already."""
        hello = HostHello(host_id=self.host_id, incarnation=self.incarnation)
        await self._broker.publish(
            HEARTBEATS,
            "",
            hello.model_dump_json().encode(),
            message_type=HELLO_TYPE,
            mandatory=False,
            persistent=False,
        )

    async def is_enrolled(self) -> bool:
        """Return whether this host's queues exist; raises `BrokerUnavailableError`."""
        return await self._broker.has_queues([one.name for one in queues_of_host(self.host_id)])

    async def publish_reports(self, body: bytes) -> None:
        """Publish `WorkerReports` as JSON; return once the broker has confirmed it."""
        await self._broker.publish(REPORTS, self.host_id, body, message_type=REPORTS_TYPE)

    async def publish_transfer(self, body: bytes) -> None:
        """Publish a `WorkerTransfer` as JSON; return once the broker has confirmed it."""
        await self._broker.publish(REPORTS, self.host_id, body, message_type=TRANSFER_TYPE)

    async def publish_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Publish a heartbeat; it is lost if no dispatcher has declared the queue."""
        await self._broker.publish(
            HEARTBEATS,
            "",
            heartbeat.model_dump_json().encode(),
            message_type=HEARTBEATS_TYPE,
            mandatory=False,
            persistent=False,
        )

    async def return_command(self, delivery: Delivery, body: bytes, error: ErrorInfo) -> None:
        """Send a command that can't be read to a dispatcher, for the dead letters.

        `body` is the unreadable part of the delivery. Returns once the broker has confirmed it.
        """
        await self._broker.publish(
            REPORTS,
            self.host_id,
            body,
            message_type=UNREADABLE_TYPE,
            message_id=delivery.message_id,
            headers={REASON_HEADER: error.code, DETAIL_HEADER: error.message[:1_000]},
        )
