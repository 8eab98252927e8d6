"""Intake: from the jobs queue into the record.

One active consumer (the broker sees to it) takes whatever is ready, records it in the order in
which it came, and settles it. What can crash between two lines:

- before the record: the broker delivers again, nothing happened;
- after the record, before the ack: the broker delivers again, the upsert finds it and its place
  in line stays (without an idempotency key it is recorded anew: see docs/amqp.md);
- after the ack: the scheduler's sweep finds the operation in the record.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import structlog

from dispatcher.events import EventLog, operation_event
from dispatcher.intake.decode import UnreadableMessage
from dispatcher.intake.decoder import MessageDecoder
from dispatcher.senders import Senders
from modelyard.broker import Broker, Delivery, Subscription, bury
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.message_types import CANCEL_TYPE, OVERDUE_TYPE
from modelyard.contract.states import OperationState
from modelyard.contract.topology import JOBS, JOBS_QUEUE, SUBMIT_KEY
from modelyard.process.crash_points import crash_point
from modelyard.process.tasks import together
from modelyard.store import Store
from modelyard.store.operation_queries import KnownOperation
from modelyard.store.records import NewOperation, OperationRecord

log = structlog.get_logger(__name__)

AT_ONCE = 1_000
"""Operations that are recorded with one write; a message holds no more."""
OVERDUE_S = 3.0
"""Seconds after which a recorded operation may get its place in line without its message."""
_AT_INTAKE = (OperationState.QUEUED, OperationState.REJECTED)


class IntakeBatch:
    """Operations to record with one write: the first of each id, and every payload it came with."""

    def __init__(self) -> None:
        self.first: dict[str, NewOperation] = {}
        self.hashes: dict[str, set[str]] = {}

    def add(self, operation: NewOperation) -> None:
        """Add an operation, which may be a repetition."""
        self.first.setdefault(operation.operation_id, operation)
        self.hashes.setdefault(operation.operation_id, set()).add(operation.payload_hash)


class Intake:
    """Takes messages of `modelyard.jobs.v1` into the record."""

    def __init__(  # noqa: PLR0913 - all that a message may touch
        self,
        store: Store,
        broker: Broker,
        event_log: EventLog,
        senders: Senders,
        wake: Callable[[Iterable[str]], None],
        *,
        wishes: Callable[[], None],
        decoder: MessageDecoder,
    ) -> None:
        """`wake` is told the jobs with something new in line, `wishes` that someone cancels."""
        self._store = store
        self._broker = broker
        self._event_log = event_log
        self._senders = senders
        self._wake = wake
        self._wishes = wishes
        self._decoder = decoder

    async def handle(self, subscription: Subscription, batch: list[Delivery]) -> None:
        """Record a batch, settle it, wake the scheduler.

        Raises `StoreUnavailableError` or `BrokerUnavailableError`; nothing is settled then.
        """
        read, wanted = list[Delivery](), IntakeBatch()
        for delivery in batch:
            if delivery.settled:  # with an earlier part of the batch, before something failed
                continue
            trusted = self._senders.is_trusted(delivery.user_id)
            if trusted and delivery.type == OVERDUE_TYPE:
                await self._settle(subscription, read, wanted)
                read, wanted = [delivery], IntakeBatch()
                await self._take_overdue()
                continue
            if trusted and delivery.type == CANCEL_TYPE:
                self._wishes()
                read.append(delivery)
                continue
            decoded = await self._decoder.decode(delivery, trusted=trusted)
            if isinstance(decoded, UnreadableMessage):
                await bury(self._broker, delivery, decoded.error, queue=JOBS_QUEUE.name)
                decoded = []
            if len(wanted.first) + len(decoded) > AT_ONCE:
                await self._settle(subscription, read, wanted)
                read, wanted = [], IntakeBatch()
            read.append(delivery)
            for operation in decoded:
                wanted.add(operation)
        await self._settle(subscription, read, wanted)

    async def _settle(
        self, subscription: Subscription, read: Sequence[Delivery], wanted: IntakeBatch
    ) -> None:
        if wanted.first:
            await self._record(wanted)
            crash_point("dispatcher.intake.after_record")
        crash_point("dispatcher.intake.before_ack")
        await subscription.ack(read)

    async def ask_for_overdue(self) -> None:
        """Have recorded operations looked at whose message never came, if there are any.

        The question goes through the jobs queue: when its answer is due, all that was published
        before has had its turn, also what a dispatcher has in hand that is frozen or gone. So
        nobody is overtaken whose message still lies there. Raises `StoreUnavailableError`.
        """
        overdue = await self._store.operation_queries.overdue_for_line(
            older_than_s=OVERDUE_S, limit=1
        )
        if overdue:
            with suppress(BrokerUnavailableError):  # it is asked again
                await self._broker.publish(JOBS, SUBMIT_KEY, b"", message_type=OVERDUE_TYPE)

    async def _take_overdue(self) -> None:
        overdue = await self._store.operation_queries.overdue_for_line(
            older_than_s=OVERDUE_S, limit=AT_ONCE
        )
        if overdue:
            jobs = [one.job_id for one in overdue if one.job_id]
            await self._store.jobs.ensure(jobs)
            lines = await self._store.operations.next_lines(len(overdue))
            await self._store.operations.put_in_line(
                {one.operation_id: line for one, line in zip(overdue, lines, strict=True)}
            )
            self._wake(jobs)

    async def _record(self, batch: IntakeBatch) -> None:
        wanted = list(batch.first.values())
        ids = list(batch.first)
        jobs = sorted({one.job_id for one in wanted if one.job_id and not one.rejection})
        known, earlier, _ = await together(
            self._store.operation_queries.known(ids),
            self._store.operation_queries.not_in_line(jobs, but=ids),
            self._store.jobs.ensure(jobs),
        )
        for key, hashes in batch.hashes.items():
            kept = known[key].payload_hash if key in known else batch.first[key].payload_hash
            for dropped in sorted(hashes - {kept}):
                log.warning("intake.payload_mismatch", operation_id=key)
                await self._store.audit.payload_mismatch(key, kept, dropped)
        brought = {one.operation_id: one.job_id for one in wanted}
        order = in_order(brought, known, earlier)
        places = dict(zip(order, await self._store.operations.next_lines(len(order)), strict=True))
        await self._store.operations.put_in_line(
            {
                one.operation_id: places[one.operation_id]
                for one in earlier
                if one.operation_id in places
            }
        )
        await self._store.operations.take_in(
            [(one, places[one.operation_id]) for one in wanted if one.operation_id in places]
        )
        self._wake(jobs)
        # Told again if it comes again before it moved on: a crash may have swallowed the first.
        standing = [
            one
            for one in wanted
            if one.operation_id not in known or known[one.operation_id].state in _AT_INTAKE
        ]
        await self._event_log.publish([operation_event(_as_recorded(one)) for one in standing])


def in_order(
    brought: Mapping[str, str | None],
    known: Mapping[str, KnownOperation],
    unbrought: Sequence[KnownOperation],
) -> list[str]:
    """Return the ids that are to have places in line, in their order.

    `brought` are the operations of this batch and their jobs, in the broker's order. `unbrought`
    are recorded ones of the same jobs that no message has brought. One of those that was recorded
    before a brought one was not published before it (else the broker had brought it first): a
    gateway took it in while the broker was away, and it goes ahead. Of a brought one that is not
    recorded yet nobody knows since when it waits; ahead of it goes what the broker did not confirm.
    One that has its place already was brought before, and when it was recorded may be the moment
    of that; nothing can go ahead of it any more. The others' own messages are still to come.
    """
    order: list[str] = []
    left = sorted(unbrought, key=lambda one: one.accepted)
    for key, job_id in brought.items():
        there = known.get(key)
        if there is not None and there.line is not None:
            continue
        ahead = [
            one
            for one in left
            if one.job_id == job_id
            and (one.unpublished if there is None else one.accepted < there.accepted)
        ]
        order += [one.operation_id for one in ahead]
        left = [one for one in left if one not in ahead]
        order.append(key)
    return order


def _as_recorded(operation: NewOperation) -> OperationRecord:
    return OperationRecord(
        operation_id=operation.operation_id,
        job_id=operation.job_id,
        verb=operation.verb,
        state=OperationState.REJECTED if operation.rejection else OperationState.QUEUED,
        error=operation.rejection,
    )
