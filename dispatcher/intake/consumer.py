"""Intake: records the requests of the jobs queue as operations.

A single active consumer (RabbitMQ ensures that) takes whatever is ready, records it in the order
of delivery, and settles it once its events are published. What a crash leaves behind:

- before the record: nothing happened; the broker redelivers;
- after the record, before the ack: the broker redelivers; the operation is found, and keeps its
  place in line (without an idempotency key it is recorded again: see docs/amqp.md);
- after the ack: the sweep finds the operation in the record and has it scheduled.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from dispatcher.events import EventLog
from dispatcher.intake.first_pass import FirstPass
from dispatcher.intake.ordered_intake import OrderedIntake
from dispatcher.intake.overdue import AT_ONCE, OverdueOperations
from dispatcher.intake.reader import JobsReader, Signal
from modelyard.broker import Delivery, Subscription
from modelyard.process.crash_points import crash_point
from modelyard.store.records import NewOperation, ReplyAddress


class IntakeBatch:
    """Operations that are taken in together: the first of each id, and what else came with it."""

    def __init__(self) -> None:
        self.first: dict[str, NewOperation] = {}
        self.payloads: dict[str, dict[str, ReplyAddress | None]] = {}
        """The hashes of all payloads that came with an id, each with its newest reply address."""
        self._returned: set[str] = set()

    def add(self, operation: NewOperation, *, redelivered: bool) -> None:
        """Add an operation; its id may be in the batch already."""
        key, payload_hash = operation.operation_id, operation.payload_hash
        first = self.first.setdefault(key, operation)
        replies = self.payloads.setdefault(key, {})
        replies[payload_hash] = operation.reply or replies.get(payload_hash)
        if first.payload_hash == payload_hash and first.reply != replies[payload_hash]:
            self.first[key] = first.model_copy(update={"reply": replies[payload_hash]})
        if redelivered:
            self._returned.add(key)

    def split(self) -> tuple[list[NewOperation], list[NewOperation]]:
        """Return the operations that are probably new, and those that need a look at the record.

        All operations of one job go the same way, so that their order is kept.
        """
        doubtful = {key for key, of in self.payloads.items() if len(of) > 1} | self._returned
        jobs = {self.first[key].job_id for key in doubtful} - {None}
        new: list[NewOperation] = []
        others: list[NewOperation] = []
        for key, one in self.first.items():
            (others if key in doubtful or one.job_id in jobs else new).append(one)
        return new, others


@dataclass(frozen=True, slots=True)
class IntakeStages:
    """The ways by which operations come into line."""

    first_pass: FirstPass
    """For operations that are probably new."""
    ordered: OrderedIntake
    """For those that need a look at the record first."""
    overdue: OverdueOperations
    """For recorded ones whose message has not come."""


class Intake:
    """Records the messages of `modelyard.jobs.v1` as operations."""

    def __init__(
        self,
        event_log: EventLog,
        reader: JobsReader,
        stages: IntakeStages,
        *,
        wake: Callable[[Iterable[str]], None],
        on_cancel: Callable[[], None],
    ) -> None:
        """Call `wake` with jobs that have new operations, `on_cancel` on a cancel request."""
        self._event_log = event_log
        self._reader = reader
        self._first_pass = stages.first_pass
        self._ordered = stages.ordered
        self._overdue = stages.overdue
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
                wanted.add(operation, redelivered=delivery.redelivered)
        await self._settle(subscription, read, wanted)

    async def _settle(
        self, subscription: Subscription, read: Sequence[Delivery], wanted: IntakeBatch
    ) -> None:
        if wanted.first:
            await self._record(wanted)
        self._event_log.then(partial(self._ack, subscription, read))

    async def _ack(self, subscription: Subscription, read: Sequence[Delivery]) -> None:
        crash_point("dispatcher.intake.before_ack")
        await subscription.ack(read)

    async def _record(self, batch: IntakeBatch) -> None:
        new, others = batch.split()
        if new:
            others += await self._first_pass.take(new)
        if others:
            await self._ordered.take(others, batch.payloads)
            crash_point("dispatcher.intake.after_record")
        self._wake({one.job_id for one in new if one.job_id})
