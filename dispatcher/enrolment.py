"""Enrolment: the dispatcher declares a host's queues, because its worker may not declare any.

A worker sends a `HostHello` when it boots, and again whenever its queues are missing. If an
operator has already declared them (`modelyard rabbitmq`), declaring them again changes nothing.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import structlog

from dispatcher.control import ControlPublisher
from modelyard.broker import Broker, TopologyMismatchError
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.messages import HostHello
from modelyard.contract.topology import REPORTS_QUEUE, Queue, queues_of_host

log = structlog.get_logger(__name__)


class Enrolment:
    """Declares the queues of the hosts whose workers say hello. Doing so twice is harmless."""

    def __init__(self, broker: Broker, control: ControlPublisher) -> None:
        self._broker = broker
        self._control = control

    async def enrol(self, hellos: Iterable[HostHello]) -> None:
        """Declare the queues of these hosts.

        Failures are only logged, because a worker repeats its hello until its queues exist. If a
        queue exists with other arguments, only the worker of that host is affected: the dispatcher
        tells it, and the worker exits with a message for its operator.
        """
        waiting = list(hellos)
        if not waiting:
            return
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
