"""Control: what a host's worker is told past the commands that wait in its queue.

Nothing of it is kept by the broker: a worker that is not there hears nothing. Whoever sends it
sends it again for as long as the record says so.
"""

from collections.abc import Sequence

import structlog

from modelyard.broker import Broker
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
    """Speaks to workers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def send(  # noqa: PLR0913 - the kinds of words
        self,
        host_id: str,
        incarnation: str,
        *,
        cancels: Sequence[CancelOperation] = (),
        discards: Sequence[DiscardContainer] = (),
        repeats: Sequence[RepeatReport] = (),
        renounce: bool = False,
        unusable: str | None = None,
    ) -> None:
        """Tell one boot of a host's worker; a broker that is away is no failure."""
        message = HostControl(
            host_id=host_id,
            incarnation=incarnation,
            cancels=tuple(cancels),
            discards=tuple(discards),
            repeats=tuple(repeats),
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
