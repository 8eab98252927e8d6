"""Enrolment: a host's queues are declared for its worker, which may declare nothing itself.

A worker says hello when it boots, and again whenever it misses its queues. A broker on which an
operator has declared them (`modelyard rabbitmq`) has them already, and declaring them again
changes nothing.
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
    """Answers hellos. Doing it again is harmless."""

    def __init__(self, broker: Broker, control: ControlPublisher) -> None:
        self._broker = broker
        self._control = control

    async def enrol(self, hellos: Iterable[HostHello]) -> None:
        """Declare the queues of these hosts.

        What goes wrong is told in the log: a worker says hello again for as long as it waits. A
        queue that exists with other arguments concerns its own host alone: that worker is told,
        and ends with a sentence for its operator.
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
        """Bind a queue also if its arguments differ, so that the worker can be told of it."""
        try:
            await self._broker.declare([queue])
        except TopologyMismatchError:
            with suppress(BrokerUnavailableError):  # it is not there: something else is wrong
                await self._broker.declare([], extra_bindings=[(queue, queue.routing_key)])
        except BrokerUnavailableError as error:
            log.warning("enrolment.failed", queue=queue.name, error=str(error))

    async def _declare(self, hellos: Sequence[HostHello]) -> None:
        await self._broker.declare(
            [*(queue for one in hellos for queue in queues_of_host(one.host_id)), REPORTS_QUEUE],
            extra_bindings=[(REPORTS_QUEUE, one.host_id) for one in hellos],
        )
