"""Asks a dispatcher to declare this host's queues: a worker's broker user may not declare any."""

from modelyard.broker import Broker
from modelyard.contract.message_types import HELLO_TYPE
from modelyard.contract.messages import HostHello
from modelyard.contract.topology import HEARTBEATS, queues_of_host


class EnrolmentClient:
    """Requests the queues of one host for one incarnation, and checks that they exist."""

    def __init__(self, broker: Broker, host_id: str, incarnation: str) -> None:
        self._broker = broker
        self._host_id = host_id
        self._hello = HostHello(host_id=host_id, incarnation=incarnation).model_dump_json().encode()

    async def say_hello(self) -> None:
        """Ask for the queues, which may exist already. Raises `BrokerUnavailableError`."""
        await self._broker.publish(
            HEARTBEATS,
            "",
            self._hello,
            message_type=HELLO_TYPE,
            mandatory=False,
            persistent=False,
        )

    async def is_enrolled(self) -> bool:
        """Return whether this host's queues exist; raises `BrokerUnavailableError`."""
        return await self._broker.has_queues([one.name for one in queues_of_host(self._host_id)])
