"""Replays: the requests of a dead letter are published again."""

from gateway.availability import Availability
from gateway.reading import BoundedReads
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError, ErrorCode, ModelyardError
from modelyard.contract.message_types import SUBMISSION_TYPE
from modelyard.contract.topology import (
    JOBS,
    JOBS_QUEUE,
    REPLAY_HEADER,
    REPORTS_QUEUE,
    SUBMIT_KEY,
    host_queue,
)
from modelyard.store import Store
from modelyard.store.records import DeadLetter

REPLAY_S = 1.0
"""How long RabbitMQ has to confirm the message."""


class Replays:
    """Publishes dead letters again."""

    def __init__(
        self, store: Store, reading: BoundedReads, broker: Broker, broker_up: Availability
    ) -> None:
        self._store = store
        self._reading = reading
        self._broker = broker
        self._broker_up = broker_up

    async def replay(self, dead_letter_id: str) -> DeadLetter | None:
        """Publish a dead letter again and return it as it is after; null if it is unknown.

        It is counted before it is published: the count tells one replay from the next, so that
        each of them makes operations of its own. Raises `ModelyardError` with `not_replayable`
        or `unavailable`, after which it may have been published all the same.
        """
        letter = await self._reading.ask(lambda: self._store.dead_letters.get(dead_letter_id))
        if letter is None:
            return None
        refuse_unless_replayable(letter)
        if self._broker_up.down:
            raise BrokerUnavailableError
        marked = await self._reading.ask(
            lambda: self._store.dead_letters.mark_replayed(dead_letter_id)
        )
        if marked is None:
            return None
        try:
            await self._broker.publish(
                JOBS,
                SUBMIT_KEY,
                letter.payload,
                # What a client called its message counts for nothing, and less so in our name.
                message_type=letter.message_type if letter.from_modelyard else None,
                headers={REPLAY_HEADER: f"{dead_letter_id}:{marked.replays}"},
                timeout_s=REPLAY_S,
            )
        except BrokerUnavailableError as error:
            # A queue that is gone is not RabbitMQ's absence, so nothing is concluded from it.
            message = "RabbitMQ has not confirmed it, or nothing takes messages of its queue now."
            raise BrokerUnavailableError(message) from error
        return marked


def refuse_unless_replayable(letter: DeadLetter) -> None:
    """Raise `ModelyardError` with `not_replayable` for a letter that may not be published again.

    Only requests may, and only if they were kept whole. A command is for one attempt on one boot,
    and the dispatcher gives it again by itself while it counts. Reports are asked for again, too:
    published from here they would count as nobody's.
    """
    if letter.payload_bytes > len(letter.payload):
        raise _not_replayable(
            f"Of its {letter.payload_bytes} bytes only the first {len(letter.payload)} were kept."
        )
    if letter.queue == JOBS_QUEUE.name:
        if letter.message_type == SUBMISSION_TYPE and not letter.from_modelyard:
            raise _not_replayable(
                "It says that a gateway sent it, and that is not proven: RabbitMQ has not verified "
                "its sender, or an older version recorded it."
            )
        return
    if letter.queue == REPORTS_QUEUE.name:
        raise _not_replayable("Workers are asked for lost reports again, never from here.")
    if letter.queue == host_queue(letter.routing_key).name:
        raise _not_replayable("Commands are given again by the dispatcher, never from here.")
    raise _not_replayable("It was taken out of a queue that nothing is sent to again.")


def _not_replayable(message: str) -> ModelyardError:
    return ModelyardError(ErrorCode.NOT_REPLAYABLE, message)
