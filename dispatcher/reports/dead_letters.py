"""Dead letters: records each one with its reason, and ends the operations that wait for it.

If a request is dead-lettered, its operation is recorded as REJECTED. If a report that an operation
has ended is dead-lettered, the operation has FAILED. A command that the broker dead-lettered is
not recorded, because its operation is in the record; one that its worker could not read is.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.intake.decode import UnreadableMessage
from dispatcher.intake.decoder import MessageDecoder
from dispatcher.maintenance.cancels import tell_to_cancel
from dispatcher.maintenance.retries import Retries
from dispatcher.metrics import DispatcherMetrics
from dispatcher.senders import Senders
from modelyard.broker import (
    DETAIL_HEADER,
    GENERATED_ID_HEADER,
    OUR_HEADERS,
    QUEUE_HEADER,
    REASON_HEADER,
    SENDER_HEADER,
    SIZE_HEADER,
    Delivery,
    Subscription,
    added_by_rabbitmq,
)
from modelyard.contract.errors import (
    SENTENCES,
    ErrorCode,
    ErrorInfo,
)
from modelyard.contract.messages import MAX_BATCH_BYTES
from modelyard.contract.states import OperationState
from modelyard.contract.topology import JOBS_QUEUE, REPORTS_QUEUE, host_queue
from modelyard.process.body_process import LARGE_BODY_BYTES
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.records import DeadLetter, NewOperation, OperationRecord

log = structlog.get_logger(__name__)

MAX_KEPT_PAYLOAD = MAX_BATCH_BYTES
"""Most bytes of a payload that are recorded; a MongoDB document holds 16 MiB."""
_SIZE = re.compile(r"[0-9]{1,12}")
_BROKER_REASONS = {
    "expired": ErrorCode.EXPIRED_MESSAGE,
    "delivery_limit": ErrorCode.DELIVERY_LIMIT,
}
_HOST_QUEUE_PREFIX, _ = host_queue("|").name.split("|")


@dataclass(frozen=True, slots=True)
class ReportedAttempt:
    """Names one attempt of an operation."""

    host_id: str
    operation_id: str
    epoch: int

    def is_current_of(self, operation: OperationRecord) -> bool:
        """Tell whether this is the operation's current attempt and is still open."""
        return (operation.host_id, operation.epoch) == (
            self.host_id,
            self.epoch,
        ) and operation.state in (OperationState.DISPATCHED, OperationState.RUNNING)


class DeadLetterRecorder:
    """Records the messages of `modelyard.dead.v1`."""

    def __init__(
        self,
        store: Store,
        senders: Senders,
        *,
        control: ControlPublisher,
        retries: Retries,
        decoder: MessageDecoder,
        metrics: DispatcherMetrics,
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._senders = senders
        self._decoder = decoder
        self._control = control
        self._retries = retries

    async def handle(self, subscription: Subscription, batch: list[Delivery]) -> None:
        """Record a batch and settle it; raises `StoreUnavailableError`."""
        kept: list[tuple[DeadLetter, list[NewOperation], list[ReportedAttempt]]] = []
        for delivery in batch:
            letter = (
                await asyncio.to_thread(letter_of, delivery, self._senders)
                if len(delivery.body) >= LARGE_BODY_BYTES
                else letter_of(delivery, self._senders)
            )
            requests = await self._requests(delivery, letter)
            if await self._is_known_command(letter) or await self._are_recorded(requests):
                log.info("dead_letter.not_needed", reason=letter.reason, queue=letter.queue)
            else:
                kept.append((letter, requests, await self._ended_attempts(letter)))
        await self._store.dead_letters.add([letter for letter, _, _ in kept])
        self._metrics.dead_letters(len(kept))
        crash_point("dispatcher.dead.after_letters")
        for letter, requests, ended in kept:
            await self._reject(requests, letter)
            await self._end(ended, letter)
            log.warning(
                "dead_letter", reason=letter.reason, queue=letter.queue, detail=letter.detail
            )
        crash_point("dispatcher.dead.before_ack")
        await subscription.ack(batch)

    async def _requests(self, delivery: Delivery, letter: DeadLetter) -> list[NewOperation]:
        """Return the requests in a letter of the jobs queue; none if they were unreadable."""
        unreadable = letter.buried and letter.reason != ErrorCode.INTERNAL
        if letter.queue != JOBS_QUEUE.name or unreadable:
            return []
        decoded = await self._decoder.decode(
            delivery, fallback_key=letter.dead_letter_id, trusted=letter.from_modelyard
        )
        return [] if isinstance(decoded, UnreadableMessage) else decoded

    async def _is_known_command(self, letter: DeadLetter) -> bool:
        """Tell whether the letter is a command whose operation the record has.

        Such a command is published again, and counted, until a worker accepts it. A command that
        its worker could not read does not count: only the dead letter says what is wrong with it.
        """
        if not letter.queue.startswith(_HOST_QUEUE_PREFIX) or letter.buried:
            return False
        if letter.reason == ErrorCode.EXPIRED_MESSAGE:
            return True
        return bool(await self._decoder.listed(letter.payload, "commands"))

    async def _ended_attempts(self, letter: DeadLetter) -> list[ReportedAttempt]:
        """Return the attempts whose end a letter from the reports' queue reports.

        There are none if its sender may not report on that host: a forged report ends nothing.
        """
        if letter.queue != REPORTS_QUEUE.name or letter.reason == ErrorCode.FORBIDDEN:
            return []
        if not self._senders.may_speak_for(letter.sender, letter.routing_key):
            return []
        return [
            ReportedAttempt(letter.routing_key, one["operation_id"], one["epoch"])
            for one in await self._decoder.listed(letter.payload, "operations")
            if isinstance(one.get("operation_id"), str)
            and isinstance(one.get("epoch"), int)
            and one.get("state") != OperationState.RUNNING
        ]

    async def _are_recorded(self, requests: Sequence[NewOperation]) -> bool:
        """Tell whether all the requests are recorded operations: they need no message any more."""
        if not requests:
            return False
        known = await self._store.operation_queries.known([one.operation_id for one in requests])
        states = [known[one.operation_id].state for one in requests if one.operation_id in known]
        return len(states) == len(requests) and OperationState.REJECTED not in states

    async def _end(self, attempts: Sequence[ReportedAttempt], letter: DeadLetter) -> None:
        """Fail the operations of these attempts: the report of their end can't be recorded."""
        known = await self._store.operation_queries.get_many([one.operation_id for one in attempts])
        for attempt in attempts:
            operation = known.get(attempt.operation_id)
            if operation is None or not attempt.is_current_of(operation):
                continue
            await tell_to_cancel(self._control, [operation], "stale")
            await self._retries.end(operation, _error(letter), OperationState.FAILED)

    async def _reject(self, requests: Sequence[NewOperation], letter: DeadLetter) -> None:
        """Record the requests of a dead letter as REJECTED, so that clients find them."""
        if not requests:
            return
        await self._store.operations.record(
            [
                one if one.rejection else one.model_copy(update={"rejection": _error(letter)})
                for one in requests
            ]
        )


def _error(letter: DeadLetter) -> ErrorInfo:
    """Return a letter's reason as an error; one that only a newer version knows is general."""
    return ErrorInfo.model_validate({"code": letter.reason, "message": letter.detail})


@dataclass(frozen=True, slots=True)
class _Origin:
    """What is proven about where a dead letter comes from."""

    queue: str
    reason: str
    detail: str
    sender: str | None
    buried: bool
    """True if a Modelyard process dead-lettered the message and gave the reason."""
    payload_bytes: int
    """Size of the original message: if it was too large, the letter holds only its beginning."""


def _origin(delivery: Delivery, senders: Senders) -> _Origin:
    """Return what is proven about the origin of a dead letter.

    A Modelyard process that dead-letters a message gives the reason and the queue in headers; they
    are trusted if a gateway or a dispatcher set them. For messages that RabbitMQ dead-letters
    itself, the first entry of `x-death` has both. No other user may publish to `modelyard.dead`,
    so every letter without Modelyard's headers comes from RabbitMQ.
    """
    headers, user = delivery.headers, delivery.user_id
    if REASON_HEADER in headers and senders.is_trusted(user):
        reason = str(headers[REASON_HEADER])
        sender = headers.get(SENDER_HEADER)
        return _Origin(
            str(headers.get(QUEUE_HEADER) or ""),
            reason,
            str(headers.get(DETAIL_HEADER) or _sentence(reason)),
            str(sender) if sender else None,
            buried=True,
            payload_bytes=max(delivery.size, _buried_bytes(headers)),
        )
    death = _first_death(headers)
    reason = _BROKER_REASONS.get(str(death.get("reason")), ErrorCode.DEAD_LETTERED)
    return _Origin(
        str(death.get("queue") or ""),
        reason,
        _sentence(reason),
        user,
        buried=False,
        payload_bytes=delivery.size,
    )


def letter_of(delivery: Delivery, senders: Senders) -> DeadLetter:
    """Return the record of a dead letter, with what is proven about its origin."""
    origin = _origin(delivery, senders)
    content = hashlib.sha256(delivery.body)
    # An unreadable command is published again and again with new message ids: record it once.
    command = origin.queue.startswith(_HOST_QUEUE_PREFIX)
    message_id = None if command else delivery.message_id
    content.update(f"\n{message_id}\n{origin.reason}\n{origin.queue}".encode())
    return DeadLetter(
        dead_letter_id=content.hexdigest()[:40],
        reason=origin.reason,
        detail=origin.detail,
        queue=origin.queue,
        routing_key=delivery.routing_key,
        headers=_publishers_headers(delivery.headers, buried=origin.buried),
        sender=origin.sender,
        from_modelyard=senders.is_trusted(origin.sender),
        buried=origin.buried,
        message_id=None if _made_for_it(delivery, origin) else delivery.message_id,
        message_type=delivery.type,
        message_priority=delivery.priority,
        content_type=delivery.properties.content_type,
        content_encoding=delivery.properties.content_encoding,
        payload=delivery.body[:MAX_KEPT_PAYLOAD],
        payload_bytes=origin.payload_bytes,
    )


def _publishers_headers(headers: Mapping[str, Any], *, buried: bool) -> dict[str, str]:
    """Return what the publisher set, without what our processes and RabbitMQ have added."""
    return {
        _field_name(name): str(value)[:1_000]
        for name, value in headers.items()
        if not added_by_rabbitmq(name) and not (buried and name in OUR_HEADERS)
    }


def _made_for_it(delivery: Delivery, origin: _Origin) -> bool:
    """Tell whether the message's id was made when it was dead-lettered."""
    return origin.buried and GENERATED_ID_HEADER in delivery.headers


def _buried_bytes(headers: Mapping[str, Any]) -> int:
    """Return the size of the original message if it was dead-lettered cut off, else 0."""
    size = headers.get(SIZE_HEADER)
    return int(size) if isinstance(size, str) and _SIZE.fullmatch(size) else 0


def _field_name(header: str) -> str:
    """Return a header's name as a valid MongoDB field name."""
    return header.replace("\0", "\ufffd")


def _first_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return deaths[0]
    return {}


def _sentence(reason: str) -> str:
    return SENTENCES[ErrorCode(reason)] if reason in ErrorCode.__members__.values() else reason
