"""Enrolment: the dispatcher declares a host's queues, because its worker may not declare any.

A worker sends a `HostHello` when it boots, and again whenever its queues are missing. If an
operator has already declared them (`modelyard rabbitmq`), declaring them again changes nothing.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

import structlog

from dispatcher.control import ControlPublisher
from modelyard.broker import Broker, TopologyMismatchError
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.messages import HostHello
from modelyard.contract.topology import REPORTS_QUEUE, Queue, queues_of_host

log = structlog.get_logger(__name__)


AT_ONCE = 10
"""Hosts whose queues are declared over one connection, which may take some seconds."""
MOST_WAITING = 10_000
"""Hosts that may wait; a worker whose hello was dropped says hello again."""


class Enrolment:
    """Declares the queues of the hosts whose workers say hello. Doing so twice is harmless.

    It takes about 0.1 s a host, so it is done beside the heartbeats: a large fleet that boots at
    once must not make others look lost.
    """

    def __init__(self, broker: Broker, control: ControlPublisher) -> None:
        self._broker = broker
        self._control = control
        self._waiting: dict[str, HostHello] = {}
        self._any_waiting = asyncio.Event()

    def ask(self, hellos: Iterable[HostHello]) -> None:
        """Have the queues of these hosts declared soon."""
        for hello in hellos:
            if hello.host_id in self._waiting or len(self._waiting) < MOST_WAITING:
                self._waiting[hello.host_id] = hello
                self._any_waiting.set()

    async def run(self) -> None:
        """Declare queues until cancelled."""
        while True:
            await self._any_waiting.wait()
            some = [self._waiting.pop(host_id) for host_id in [*self._waiting][:AT_ONCE]]
            if not self._waiting:
                self._any_waiting.clear()
            await self._enrol(some)

    async def _enrol(self, waiting: Sequence[HostHello]) -> None:
        """Declare the queues of these hosts.

        Failures are only logged, because a worker repeats its hello until its queues exist. If a
        queue exists with other arguments, only the worker of that host is affected: the dispatcher
        tells it, and the worker exits with a message for its operator.
        """
        try:
            await self._declare(waiting)
        except TopologyMismatchError:
            for hello in waiting:
                await self._enrol_alone(hello)
        except BrokerUnavailableError as error:
            log.warning("enrolment.failed", error=str(error))

    async def _enrol_alone(self, hello: HostHello) -> None:
        try:
            await self._declare([hello])
        except TopologyMismatchError as error:
            log.warning("host.unusable", host_id=hello.host_id, error=str(error))
            for queue in queues_of_host(hello.host_id):
                await self._bind_even_if_it_differs(queue)
            await self._control.send(hello.host_id, hello.incarnation, unusable=error.told)
        except BrokerUnavailableError as error:
            log.warning("enrolment.failed", host_id=hello.host_id, error=str(error))

    async def _bind_even_if_it_differs(self, queue: Queue) -> None:
        """Bind a queue even if its arguments differ: control messages must reach the worker."""
        try:
            await self._broker.declare([queue])
        except TopologyMismatchError:
            with suppress(BrokerUnavailableError):  # the queue does not exist: another problem
                await self._broker.declare([], extra_bindings=[(queue, queue.routing_key)])
        except BrokerUnavailableError as error:
            log.warning("enrolment.failed", queue=queue.name, error=str(error))

    async def _declare(self, hellos: Sequence[HostHello]) -> None:
        await self._broker.declare(
            [*(queue for one in hellos for queue in queues_of_host(one.host_id)), REPORTS_QUEUE],
            extra_bindings=[(REPORTS_QUEUE, one.host_id) for one in hellos],
        )
