"""Intake: records the requests of the jobs queue as operations.

A single active consumer (RabbitMQ ensures that) takes whatever is ready, records it in the order
of delivery, and settles it. What a crash leaves behind:

- before the record: nothing happened; the broker redelivers;
- after the record, before the ack: the broker redelivers; the upsert finds the operation, which
  keeps its place in line (without an idempotency key it is recorded again: see docs/amqp.md);
- after the ack: the sweep finds the operation in the record and has it scheduled.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from dispatcher.events import EventLog, operation_event
from dispatcher.intake.overdue import AT_ONCE, OverdueOperations
from dispatcher.intake.reader import JobsReader, Signal
from modelyard.broker import Delivery, Subscription
from modelyard.contract.states import OperationState
from modelyard.process.crash_points import crash_point
from modelyard.process.tasks import together
from modelyard.store import Store
from modelyard.store.operation_queries import KnownOperation
from modelyard.store.records import NewOperation, OperationRecord

log = structlog.get_logger(__name__)

_AT_INTAKE = (OperationState.QUEUED, OperationState.REJECTED)


class IntakeBatch:
    """Operations to record with one write: the first of each id, and all payload hashes of it."""

    def __init__(self) -> None:
        self.first: dict[str, NewOperation] = {}
        self.hashes: dict[str, set[str]] = {}

    def add(self, operation: NewOperation) -> None:
        """Add an operation; its id may be in the batch already."""
        self.first.setdefault(operation.operation_id, operation)
        self.hashes.setdefault(operation.operation_id, set()).add(operation.payload_hash)


class Intake:
    """Records the messages of `modelyard.jobs.v1` as operations."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        reader: JobsReader,
        overdue: OverdueOperations,
        *,
        wake: Callable[[Iterable[str]], None],
        on_cancel: Callable[[], None],
    ) -> None:
        """Call `wake` with jobs that have new operations, `on_cancel` on a cancel request."""
        self._store = store
        self._event_log = event_log
        self._reader = reader
        self._overdue = overdue
        self._wake = wake
        self._on_cancel = on_cancel

    async def handle(self, subscription: Subscription, batch: list[Delivery]) -> None:
        """Record a batch, settle it, wake the scheduler.

        Raises `StoreUnavailableError` or `BrokerUnavailableError`; nothing is settled then.
        """
        read, wanted = list[Delivery](), IntakeBatch()
        for delivery in batch:
            if delivery.settled:  # with an earlier part of the batch, before something failed
                continue
            message = await self._reader.read(delivery)
            if message is Signal.OVERDUE:
                await self._settle(subscription, read, wanted)
                read, wanted = [delivery], IntakeBatch()
                await self._overdue.put_in_line()
                continue
            if message is Signal.CANCEL:
                self._on_cancel()
                read.append(delivery)
                continue
            if len(wanted.first) + len(message) > AT_ONCE:
                await self._settle(subscription, read, wanted)
                read, wanted = [], IntakeBatch()
            read.append(delivery)
            for operation in message:
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
        places = dict(
            zip(order, await self._store.operations.next_positions(len(order)), strict=True)
        )
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
        # Publish the event again on redelivery: a crash may have lost the first one.
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
    """Return the ids of the operations that get places in line now, in their order.

    `brought` maps the operations of this batch to their jobs, in the broker's order. `unbrought`
    are recorded operations of the same jobs whose messages intake has not received. For each
    operation of the batch:

    - It has a place already (a redelivery): it keeps it, and nothing goes before it.
    - The gateway has recorded it: unbrought operations of its job that were recorded earlier go
      before it. They were not published before it, or the broker would have delivered them first.
    - The gateway has not recorded it yet, so its age is unknown: unbrought operations of its job
      whose publish was never confirmed go before it.

    All other unbrought operations wait for their own messages.
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
