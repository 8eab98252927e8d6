"""Cancelling: the dispatcher ends QUEUED operations in the record, a worker those that it runs.

The gateway records a cancel request before anything else happens, so the dispatcher can process it
repeatedly: it tells the worker every few seconds until the operation has ended.
"""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Iterable

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.events import EventLog, operation_event
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.errors import ErrorCode, ErrorInfo, StoreUnavailableError
from modelyard.contract.messages import CancelOperation, CancelReason
from modelyard.contract.states import OperationState
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

LIMIT = 500


class Cancels:
    """Carries out the cancel requests that are in the record."""

    def __init__(
        self, store: Store, event_log: EventLog, scheduler: Scheduler, control: ControlPublisher
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._control = control
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Process the cancel requests now."""
        self._woken.set()

    async def run(self) -> None:
        """Process the cancel requests whenever woken; the sweep retries those that fail here."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self.carry_out()
            except StoreUnavailableError as error:
                log.warning("cancels.store_unavailable", error=str(error))

    async def carry_out(self) -> None:
        """Process every open cancel request once; raises `StoreUnavailableError`."""
        requested = self._store.operation_queries.with_cancel_requested
        # The scheduler holds back what is QUEUED, so those that workers run may not crowd it out.
        if queued := await requested(queued=True, limit=LIMIT):
            await self._end_queued(queued)
        if given := await requested(queued=False, limit=LIMIT):
            await tell_to_cancel(self._control, given)

    async def _end_queued(self, queued: Iterable[OperationRecord]) -> None:
        error = ErrorInfo.of(ErrorCode.CANCELLED)
        ended = await self._store.operations.end_queued(
            [QueuedEnding(one, OperationState.CANCELLED, error) for one in queued],
            token=uuid.uuid4().hex,
        )
        if ended:
            crash_point("dispatcher.cancel.after_end")
        for one in ended:
            # After an interrupted attempt, its job may still hold a place on a host.
            if (
                one.host_id
                and one.generation
                and one.job_id
                and one.places
                and await self._store.jobs.unassign(one, error)
            ):
                crash_point("dispatcher.cancel.after_let_go")
                await self._store.hosts.release({one.host_id: [(one.job_id, one.generation)]})
                self._scheduler.wake_waiting()
        await self._store.deletions.unborn_jobs(one.job_id for one in ended if one.job_id)
        self._scheduler.wake(one.job_id for one in ended if one.job_id)
        await self._event_log.publish([operation_event(one) for one in ended])


async def tell_to_cancel(
    control: ControlPublisher,
    operations: Iterable[OperationRecord],
    reason: CancelReason = "cancelled",
) -> None:
    """Tell the workers that run these operations to cancel them."""
    by_boot: dict[tuple[str, str], list[CancelOperation]] = defaultdict(list)
    for one in operations:
        if one.host_id and one.incarnation and one.epoch:
            by_boot[one.host_id, one.incarnation].append(
                CancelOperation(operation_id=one.operation_id, epoch=one.epoch, reason=reason)
            )
    for (host_id, incarnation), cancels in by_boot.items():
        await control.send(host_id, incarnation, cancels=cancels)
