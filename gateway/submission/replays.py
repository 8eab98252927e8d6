"""Replays: publishes the requests of a dead letter again."""

from gateway.availability import Availability
from gateway.reading import BoundedReads
from modelyard.broker import Broker, MessageProperties
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
        """Publish a dead letter again and return its new record; null if it is unknown.

        The replay is counted before it is published: each replay's number gives its operations ids
        of their own. Raises `ModelyardError` with `not_replayable` or `unavailable`; after the
        latter the letter may have been published nevertheless.
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
                # A client may have sent any message type: the gateway must not vouch for it.
                message_type=letter.message_type if letter.from_modelyard else None,
                headers={REPLAY_HEADER: f"{dead_letter_id}:{marked.replays}"},
                priority=letter.message_priority,
                properties=MessageProperties(letter.content_type, letter.content_encoding),
                timeout_s=REPLAY_S,
            )
        except BrokerUnavailableError as error:
            # The queue may be missing while RabbitMQ is up, so RabbitMQ is not marked as down.
            message = "RabbitMQ has not confirmed the message, or its queue is missing."
            raise BrokerUnavailableError(message) from error
        return marked


def refuse_unless_replayable(letter: DeadLetter) -> None:
    """Raise `ModelyardError` with `not_replayable` for a letter that may not be published again.

    Only requests may, and only if they were recorded whole. A command belongs to one attempt on one
    incarnation; the dispatcher publishes it again itself while the attempt is current. It also asks
    workers for lost reports again; a report from a gateway would be refused as forged.
    """
    if letter.payload_bytes > len(letter.payload):
        raise _not_replayable(
            f"Of its {letter.payload_bytes} bytes only the first {len(letter.payload)} were "
            "recorded."
        )
    if letter.queue == JOBS_QUEUE.name:
        if letter.message_type == SUBMISSION_TYPE and not letter.from_modelyard:
            raise _not_replayable(
                "Its type says that a gateway sent it, but that is not proven: RabbitMQ has not "
                "verified its sender, or an older version of Modelyard recorded it."
            )
        return
    if letter.queue == REPORTS_QUEUE.name:
        raise _not_replayable("The dispatcher asks workers for lost reports again by itself.")
    if letter.queue == host_queue(letter.routing_key).name:
        raise _not_replayable("The dispatcher publishes commands again by itself.")
    raise _not_replayable("It comes from a queue that does not hold requests.")


def _not_replayable(message: str) -> ModelyardError:
    return ModelyardError(ErrorCode.NOT_REPLAYABLE, message)
