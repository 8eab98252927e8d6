"""A broker in memory: what is published is kept, deliveries are made by hand."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from modelyard.broker import REASON_HEADER, Broker, Delivery, QueueHeldError, Subscription
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.message_types import HELLO_TYPE
from modelyard.contract.messages import OperationReport, WorkerReports
from modelyard.contract.states import OperationState
from modelyard.contract.topology import REPORTS, Exchange, Queue, control_queue, host_queue
from tests.support.worker.harness import HOST
from worker.session.host_channel import HostChannel
from worker.session.reporter import Reporter


class FakeSubscription(Subscription):
    """Deliveries by hand; remembers what was settled."""

    def __init__(self, broker: "FakeBroker") -> None:
        super().__init__()
        self._broker = broker

    def give(self, delivery: Delivery) -> None:
        """Have a message delivered."""
        self._ready.put_nowait(delivery)

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._broker.log.append(("ack", delivery.message_id))


class FakeBroker(Broker):
    """Keeps what is published; may be away."""

    def __init__(self) -> None:
        super().__init__("amqp://nowhere/", name="fake")
        self.away = False
        self.published: list[tuple[Exchange, bytes, Mapping[str, str]]] = []
        self.log: list[tuple[str, object]] = []
        self.subscription: FakeSubscription | None = None
        self.attached = 0
        """Consumers of the host's queue."""
        self.control: FakeSubscription | None = None
        """The consumer of the host's control queue, if there is one."""
        self.hellos = 0
        """How often a worker has asked for its host's queues; each time it has them."""
        self.enrolled = True
        """False: the host has no queues, until its worker asks for them."""
        self.routed = True
        """False: no queue takes reports, until a worker asks for its way."""
        self.held = 0
        """How many more subscriptions find that another has the queue."""

    async def publish(self, exchange: Exchange, routing_key: str, body: bytes, **more: Any) -> None:
        await asyncio.sleep(0)
        if self.away or (exchange is REPORTS and not self.routed):
            raise BrokerUnavailableError
        assert routing_key in {HOST, ""}
        if more.get("message_type") == HELLO_TYPE:
            self.hellos += 1
            self.routed = self.enrolled = True
            return
        self.published.append((exchange, body, more.get("headers") or {}))
        self.log.append(("publish", exchange.name))

    async def has_queues(self, names: Sequence[str]) -> bool:
        assert set(names) == {host_queue(HOST).name, control_queue(HOST).name}
        if self.away:
            raise BrokerUnavailableError
        return self.enrolled

    @asynccontextmanager
    async def subscribe(
        self, queue: Queue, *, prefetch: int, exclusive: bool = False
    ) -> AsyncIterator[Subscription]:
        assert prefetch > 0
        if queue.name == control_queue(HOST).name:
            self.control = listening = FakeSubscription(self)
            try:
                yield listening
            finally:
                if self.control is listening:
                    self.control = None
            return
        assert exclusive
        assert queue.name == f"modelyard.host.{HOST}.v1"
        if self.held:
            self.held -= 1
            raise QueueHeldError
        self.subscription = FakeSubscription(self)
        self.attached += 1
        try:
            yield self.subscription
        finally:
            self.attached -= 1

    @property
    def messages(self) -> list[WorkerReports]:
        return [
            WorkerReports.model_validate_json(body)
            for exchange, body, headers in self.published
            if exchange is REPORTS and REASON_HEADER not in headers
        ]

    @property
    def reports(self) -> list[OperationReport]:
        return [report for message in self.messages for report in message.operations]


def delivery_of(body: bytes) -> Delivery:
    """Return a message as it would come off a queue."""
    return Delivery(
        body=body,
        message_id="m",
        type=None,
        routing_key=HOST,
        redelivered=False,
        headers={},
        user_id=None,
        raw=None,  # type: ignore[arg-type]
    )


def reporter_on(broker: Broker) -> Reporter:
    return Reporter(
        HostChannel(broker, HOST, "i-1"),
        backoff=lambda _: 0.0,
    )


def report(number: int, seq: int = 1, **more: Any) -> OperationReport:
    fields: dict[str, Any] = {
        "operation_id": f"00000000-0000-7000-8000-{number:012}",
        "epoch": 1,
        "seq": seq,
        "job_id": "j",
        "generation": 1,
        "state": OperationState.RUNNING,
    }
    return OperationReport(**{**fields, **more})
