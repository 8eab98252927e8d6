"""Dead letters: from their queue into the record, each with its reason.

What waits for a message that is dead has its end as well: a request is REJECTED, and an operation
whose end could not be recorded has FAILED. A command that the broker took away is not kept, for
the record has it; one that its worker could not read is.
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
from dispatcher.senders import Senders
from modelyard.broker import (
    DETAIL_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    SENDER_HEADER,
    SIZE_HEADER,
    Delivery,
    Subscription,
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
"""Bytes of a payload that are kept; a MongoDB document holds 16 MiB."""
_A_SIZE = re.compile(r"[0-9]{1,12}")
_BROKER_REASONS = {
    "expired": ErrorCode.EXPIRED_MESSAGE,
    "delivery_limit": ErrorCode.DELIVERY_LIMIT,
}
_HOST_QUEUE_PREFIX, _ = host_queue("|").name.split("|")


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """One attempt of an operation."""

    host_id: str
    operation_id: str
    epoch: int

    def is_of(self, operation: OperationRecord) -> bool:
        """Tell whether it is what this operation is at."""
        return (operation.host_id, operation.epoch) == (
            self.host_id,
            self.epoch,
        ) and operation.state in (OperationState.DISPATCHED, OperationState.RUNNING)


class DeadLetterRecorder:
    """Takes messages of `modelyard.dead.v1` into the record."""

    def __init__(
        self,
        store: Store,
        senders: Senders,
        *,
        control: ControlPublisher,
        attempts: Retries,
        decoder: MessageDecoder,
    ) -> None:
        self._store = store
        self._senders = senders
        self._decoder = decoder
        self._control = control
        self._attempts = attempts

    async def handle(self, subscription: Subscription, batch: list[Delivery]) -> None:
        """Record a batch and settle it; raises `StoreUnavailableError`."""
        kept: list[tuple[DeadLetter, list[NewOperation], list[AttemptKey]]] = []
        for delivery in batch:
            letter = (
                await asyncio.to_thread(letter_of, delivery, self._senders)
                if len(delivery.body) >= LARGE_BODY_BYTES
                else letter_of(delivery, self._senders)
            )
            requests = await self._requests(delivery, letter)
            if await self._is_command(letter) or await self._are_carried_on(requests):
                log.info("dead_letter.not_needed", reason=letter.reason, queue=letter.queue)
            else:
                kept.append((letter, requests, await self._ends(letter)))
        await self._store.dead_letters.add([letter for letter, _, _ in kept])
        crash_point("dispatcher.dead.after_letters")
        for letter, requests, ends in kept:
            await self._reject(requests, letter)
            await self._end(ends, letter)
            log.warning(
                "dead_letter", reason=letter.reason, queue=letter.queue, detail=letter.detail
            )
        crash_point("dispatcher.dead.before_ack")
        await subscription.ack(batch)

    async def _requests(self, delivery: Delivery, letter: DeadLetter) -> list[NewOperation]:
        """Return the requests in a letter of the jobs queue, unless their text is what is wrong."""
        unreadable = letter.buried and letter.reason != ErrorCode.INTERNAL
        if letter.queue != JOBS_QUEUE.name or unreadable:
            return []
        decoded = await self._decoder.decode(
            delivery, fallback_key=letter.dead_letter_id, trusted=letter.from_modelyard
        )
        return [] if isinstance(decoded, UnreadableMessage) else decoded

    async def _is_command(self, letter: DeadLetter) -> bool:
        """Tell a command, which the record has: it is given again, and counted, until it is taken.

        Not one that its worker buried: what is wrong with it is told nowhere else.
        """
        if not letter.queue.startswith(_HOST_QUEUE_PREFIX) or letter.buried:
            return False
        if letter.reason == ErrorCode.EXPIRED_MESSAGE:
            return True
        return bool(await self._decoder.listed(letter.payload, "commands"))

    async def _ends(self, letter: DeadLetter) -> list[AttemptKey]:
        """Return the attempts whose end a letter from the reports' queue tells, readable or not.

        Only if its sender may report on that host: what a forged report says ends nothing.
        """
        if letter.queue != REPORTS_QUEUE.name or letter.reason == ErrorCode.FORBIDDEN:
            return []
        if not self._senders.may_speak_for(letter.sender, letter.routing_key):
            return []
        return [
            AttemptKey(letter.routing_key, one["operation_id"], one["epoch"])
            for one in await self._decoder.listed(letter.payload, "operations")
            if isinstance(one.get("operation_id"), str)
            and isinstance(one.get("epoch"), int)
            and one.get("state") != OperationState.RUNNING
        ]

    async def _are_carried_on(self, requests: Sequence[NewOperation]) -> bool:
        """Tell whether the record has all of them: they go on without their message."""
        if not requests:
            return False
        known = await self._store.operation_queries.known([one.operation_id for one in requests])
        states = [known[one.operation_id].state for one in requests if one.operation_id in known]
        return len(states) == len(requests) and OperationState.REJECTED not in states

    async def _end(self, ends: Sequence[AttemptKey], letter: DeadLetter) -> None:
        """End the operations whose end is in this letter and will not be recorded."""
        known = await self._store.operation_queries.get_many([one.operation_id for one in ends])
        for attempt in ends:
            operation = known.get(attempt.operation_id)
            if operation is None or not attempt.is_of(operation):
                continue
            await tell_to_cancel(self._control, [operation], "stale")
            error = ErrorInfo(code=ErrorCode(letter.reason), message=letter.detail)
            await self._attempts.end(operation, error, OperationState.FAILED)

    async def _reject(self, requests: Sequence[NewOperation], letter: DeadLetter) -> None:
        """Record what a dead letter asks for as REJECTED: it would be nowhere else."""
        if not requests:
            return
        reason = ErrorInfo(code=ErrorCode(letter.reason), message=letter.detail)
        await self._store.operations.record(
            [
                one if one.rejection else one.model_copy(update={"rejection": reason})
                for one in requests
            ]
        )


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a letter came from, as far as that is proven."""

    queue: str
    reason: str
    detail: str
    sender: str | None
    buried: bool
    """True if a process of ours has put it here and says why."""
    payload_bytes: int
    """Of the message before it was buried: of one that was too large only the beginning is kept."""


def _origin(delivery: Delivery, senders: Senders) -> _Origin:
    """Tell what is proven of a letter.

    A process that buries a message says why and where from in headers: they are believed of
    gateways and dispatchers. RabbitMQ says it in the first entry of `x-death`, for messages that it
    takes out of a queue itself. Nobody else may publish to `modelyard.dead`, so that every letter
    without our headers comes from there.
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
    """Return a dead letter as it is recorded, with what is proven of its origin."""
    origin = _origin(delivery, senders)
    content = hashlib.sha256(delivery.body)
    # A command that can't be read is published again and again, each time as another message.
    command = origin.queue.startswith(_HOST_QUEUE_PREFIX)
    message_id = None if command else delivery.message_id
    content.update(f"\n{message_id}\n{origin.reason}\n{origin.queue}".encode())
    return DeadLetter(
        dead_letter_id=content.hexdigest()[:40],
        reason=origin.reason,
        detail=origin.detail,
        queue=origin.queue,
        routing_key=delivery.routing_key,
        headers={_name(key): str(value)[:1_000] for key, value in delivery.headers.items()},
        sender=origin.sender,
        from_modelyard=senders.is_trusted(origin.sender),
        buried=origin.buried,
        message_id=delivery.message_id,
        message_type=delivery.type,
        payload=delivery.body[:MAX_KEPT_PAYLOAD],
        payload_bytes=origin.payload_bytes,
    )


def _buried_bytes(headers: Mapping[str, Any]) -> int:
    """Return how many bytes a message had before it was buried, if only its beginning was."""
    said = headers.get(SIZE_HEADER)
    return int(said) if isinstance(said, str) and _A_SIZE.fullmatch(said) else 0


def _name(header: str) -> str:
    """Return a header's name as MongoDB takes it for a field."""
    return header.replace("\0", "\ufffd")


def _first_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return deaths[0]
    return {}


def _sentence(reason: str) -> str:
    return SENTENCES[ErrorCode(reason)] if reason in ErrorCode.__members__.values() else reason
