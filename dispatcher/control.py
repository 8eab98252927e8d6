"""Control messages: the dispatcher sends them to a worker ahead of the commands in its queue.

RabbitMQ keeps them for 15 s: a worker that is away for longer misses them. Each sender therefore
repeats its message for as long as the record still calls for it.
"""

from collections.abc import Sequence

import structlog

from modelyard.broker import Broker
from modelyard.contract.content.transfers import TransferAnswer
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.message_types import CONTROL_TYPE
from modelyard.contract.messages import (
    CancelOperation,
    DiscardContainer,
    HostControl,
    RepeatReport,
)
from modelyard.contract.topology import HOSTS, control_key

log = structlog.get_logger(__name__)


class ControlPublisher:
    """Publishes control messages to workers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def send(  # noqa: PLR0913 - one argument for each kind of order
        self,
        host_id: str,
        incarnation: str,
        *,
        cancels: Sequence[CancelOperation] = (),
        discards: Sequence[DiscardContainer] = (),
        repeats: Sequence[RepeatReport] = (),
        transfers: Sequence[TransferAnswer] = (),
        renounce: bool = False,
        unusable: str | None = None,
    ) -> None:
        """Send one message to one incarnation of a host's worker.

        An unavailable broker is only logged: the caller sends again later.
        """
        message = HostControl(
            host_id=host_id,
            incarnation=incarnation,
            cancels=tuple(cancels),
            discards=tuple(discards),
            repeats=tuple(repeats),
            transfers=tuple(transfers),
            renounce=renounce,
            unusable=unusable,
        )
        try:
            await self._broker.publish(
                HOSTS,
                control_key(host_id),
                message.model_dump_json().encode(),
                message_type=CONTROL_TYPE,
                mandatory=False,
                persistent=False,
            )
        except BrokerUnavailableError as error:
            log.warning("control.not_published", host_id=host_id, error=str(error))
