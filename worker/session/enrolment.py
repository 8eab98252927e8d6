"""Asking a dispatcher for this host's queues: a worker's user may declare nothing."""

from modelyard.broker import Broker
from modelyard.contract.message_types import HELLO_TYPE
from modelyard.contract.messages import HostHello
from modelyard.contract.topology import HEARTBEATS, queues_of_host


class EnrolmentClient:
    """One boot's hello, and what comes of it."""

    def __init__(self, broker: Broker, host_id: str, incarnation: str) -> None:
        self._broker = broker
        self._host_id = host_id
        self._hello = HostHello(host_id=host_id, incarnation=incarnation).model_dump_json().encode()

    async def say_hello(self) -> None:
        """Ask for the queues; having them already is harmless. Raises `BrokerUnavailableError`."""
        await self._broker.publish(
            HEARTBEATS,
            "",
            self._hello,
            message_type=HELLO_TYPE,
            mandatory=False,
            persistent=False,
        )

    async def is_enrolled(self) -> bool:
        """Tell whether this host has its queues; raises `BrokerUnavailableError`."""
        return await self._broker.has_queues([one.name for one in queues_of_host(self._host_id)])
