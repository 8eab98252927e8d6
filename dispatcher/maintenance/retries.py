"""What becomes of an attempt that failed: another one, or the operation's end.

The order of the writes is that of the recorder: job, reservation, operation, event. A crash between
two of them leaves the operation with its host, so whoever found the failure finds it again.
"""

import structlog

from dispatcher.events import EventLog, operation_event
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.retries import is_retried, retry_delay_s
from modelyard.contract.states import OperationState
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.operations import AttemptFailure
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

MOST_RETURNS = 10
"""Times that an operation may come back unbegun and for nothing: a worker that dies of a command
before it can say that it has begun would be given it for ever."""


class Retries:
    """Ends attempts that can't end themselves, or that are made again."""

    def __init__(
        self, store: Store, event_log: EventLog, scheduler: Scheduler, *, max_attempts: int
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._max_attempts = max_attempts

    def is_made_again(self, operation: OperationRecord, error: ErrorInfo) -> bool:
        """Tell whether an attempt that failed with `error` is followed by another one."""
        return (
            not operation.cancel_requested
            and not operation.aside
            and operation.failures + 1 < self._max_attempts
            and is_retried(operation.verb, error.code)
        )

    async def failed(
        self,
        operation: OperationRecord,
        error: ErrorInfo,
        *,
        keeps_place: bool = False,
        state: OperationState = OperationState.FAILED,
    ) -> None:
        """Make the attempt again after a rest, or end the operation with `state`.

        With `keeps_place` a job that was being placed goes on where it was. Raises
        `StoreUnavailableError`.
        """
        if state is OperationState.FAILED and self.is_made_again(operation, error):
            rest_s = retry_delay_s(operation.failures + 1)
            failure = AttemptFailure(error, operation.seq, rest_s)
            await self.again(operation, failure, keeps_place=keeps_place)
        else:
            await self.end(operation, error, state)

    async def again(
        self, operation: OperationRecord, failure: AttemptFailure | None, *, keeps_place: bool
    ) -> None:
        """Send an operation back to the queue; without `failure` it counts as never begun.

        After `MOST_RETURNS` of those each one is a failure. One that prepares a move ends: whoever
        moves begins anew.
        """
        if operation.aside:
            error = failure.error if failure else ErrorInfo.of(ErrorCode.WORKER_INTERRUPTED)
            await self.end(operation, error, OperationState.FAILED)
            return
        if failure is None and operation.returns >= MOST_RETURNS:
            error = ErrorInfo.of(ErrorCode.WORKER_INTERRUPTED)
            await self.failed(operation, error, keeps_place=keeps_place)
            return
        if operation.places and not keeps_place:
            await self._store.jobs.let_go(operation, failure.error if failure else None)
            crash_point("dispatcher.again.after_let_go")
            await self._release(operation)
            crash_point("dispatcher.again.after_release")
        if await self._store.operations.requeue(operation, failure):
            crash_point("dispatcher.again.after_requeue")
            log.info(
                "operation.again",
                operation_id=operation.operation_id,
                epoch=operation.epoch,
                code=failure.error.code if failure else None,
                rest_s=round(failure.rest_s, 1) if failure else 0,
            )
        await self._tell(operation)

    async def end(
        self, operation: OperationRecord, error: ErrorInfo, state: OperationState
    ) -> None:
        """End an operation, and the placing of its job if that is what it did."""
        if operation.cancel_requested:
            state, error = OperationState.CANCELLED, ErrorInfo.of(ErrorCode.CANCELLED)
        if operation.places:
            await self._store.jobs.fail_attempt(operation, error)
            crash_point("dispatcher.end.after_job")
            await self._release(operation)
            crash_point("dispatcher.end.after_release")
        await self._store.operations.end_given(operation, state, error)
        await self._tell(operation)

    async def _release(self, operation: OperationRecord) -> None:
        """Free what was reserved for the attempt, once its job has let go of it."""
        job_id, host_id, generation = operation.job_id, operation.host_id, operation.generation
        if job_id is None or host_id is None or generation is None:
            return
        job = await self._store.jobs.get(job_id)
        if job is None or job.host_id is None or job.generation > generation:
            await self._store.hosts.release({host_id: [(job_id, generation)]})
            self._scheduler.wake_waiting()

    async def _tell(self, operation: OperationRecord) -> None:
        now = await self._store.operation_queries.get(operation.operation_id)
        if operation.job_id:
            self._scheduler.wake([operation.job_id])
        if now is not None:
            await self._event_log.publish([operation_event(now)])
