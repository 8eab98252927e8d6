"""Reading deliveries of the jobs queue: requests, or signals of our own processes."""

from enum import Enum

from dispatcher.intake.decode import UnreadableMessage
from dispatcher.intake.decoder import MessageDecoder
from dispatcher.intake.replies import with_replies
from dispatcher.senders import Senders
from modelyard.broker import Broker, Delivery, send_to_dead_letters
from modelyard.contract.message_types import CANCEL_TYPE, OVERDUE_TYPE
from modelyard.contract.topology import JOBS_QUEUE
from modelyard.store.records import NewOperation


class Signal(Enum):
    """What a message of a gateway or a dispatcher asks for that is not a request."""

    CANCEL = "cancel"
    """Look at the cancel requests in the record."""
    OVERDUE = "overdue"
    """Put recorded operations in line whose own message has not come."""


class JobsReader:
    """Reads one delivery; what can't be read goes to the dead letters."""

    def __init__(self, broker: Broker, senders: Senders, decoder: MessageDecoder) -> None:
        self._broker = broker
        self._senders = senders
        self._decoder = decoder

    async def read(self, delivery: Delivery) -> list[NewOperation] | Signal:
        """Return the operations that a message asks for, or the signal that it is.

        A signal counts only from a verified gateway or dispatcher. Raises `BrokerUnavailableError`
        if a dead letter was not confirmed.
        """
        trusted = self._senders.is_trusted(delivery.user_id)
        if trusted and delivery.type == OVERDUE_TYPE:
            return Signal.OVERDUE
        if trusted and delivery.type == CANCEL_TYPE:
            return Signal.CANCEL
        decoded = await self._decoder.decode(delivery, trusted=trusted)
        if isinstance(decoded, UnreadableMessage):
            await send_to_dead_letters(self._broker, delivery, decoded.error, queue=JOBS_QUEUE.name)
            return []
        return with_replies(decoded, delivery)
