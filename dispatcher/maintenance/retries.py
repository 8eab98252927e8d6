"""Retries: after a failed attempt, an operation is queued again or ends.

The writes come in the same order as the recorder's: job, reservation, operation, event. A crash
between two of them leaves the operation assigned to its host, so the failure is detected again.
"""

import structlog

from dispatcher.events import EventLog, operation_event
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.retries import is_retried, retry_delay_s
from modelyard.contract.states import OperationState, Verb
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.operations import AttemptFailure
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

MAX_UNSTARTED_DISPATCHES = 10
"""How often an operation that no worker began may be queued again without counting as a failure.
Otherwise a command that kills its worker before the worker can report would run for ever."""


class Retries:
    """Queues operations again after a failed or interrupted attempt, or ends them."""

    def __init__(
        self, store: Store, event_log: EventLog, scheduler: Scheduler, *, max_attempts: int
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._max_attempts = max_attempts

    def should_retry(self, operation: OperationRecord, error: ErrorInfo) -> bool:
        """Tell whether an operation is retried after an attempt that failed with `error`."""
        return (
            not operation.cancel_requested
            and not operation.aside
            and operation.failures + 1 < self._max_attempts
            and is_retried(operation.verb, error.code)
        )

    async def interrupted(self, operation: OperationRecord, *, begun_known: bool) -> None:
        """Retry an operation that an earlier incarnation of its host was given, or end it.

        Before its announcement a worker reports what earlier incarnations had begun. So an
        operation that is DISPATCHED after that never began, if the worker knew (`begun_known`).
        If not, an inference counts as begun; the other verbs first check what already holds, so
        they may be repeated. Raises `StoreUnavailableError`.
        """
        unknown = operation.verb is Verb.INFER and not begun_known
        if operation.state is OperationState.RUNNING or unknown:
            error = ErrorInfo.of(ErrorCode.WORKER_INTERRUPTED)
            await self.failed(operation, error, keeps_host=True)
        else:
            await self.again(operation, None, keeps_host=True)

    async def failed(
        self,
        operation: OperationRecord,
        error: ErrorInfo,
        *,
        keeps_host: bool = False,
    ) -> None:
        """Queue the operation again after a delay, or end it as FAILED.

        With `keeps_host` the job stays on its host for the next attempt. Raises
        `StoreUnavailableError`.
        """
        if self.should_retry(operation, error):
            rest_s = retry_delay_s(operation.failures + 1)
            failure = AttemptFailure(error, operation.seq, rest_s)
            await self.again(operation, failure, keeps_host=keeps_host)
        else:
            await self.end(operation, error, OperationState.FAILED)

    async def again(
        self, operation: OperationRecord, failure: AttemptFailure | None, *, keeps_host: bool
    ) -> None:
        """Queue an operation again; without `failure` the attempt counts as never begun.

        After `MAX_UNSTARTED_DISPATCHES` such attempts, each further one counts as a failure. An
        operation of a relocation is not retried but ends: `Relocations` begins another one.
        """
        if operation.aside:
            error = failure.error if failure else ErrorInfo.of(ErrorCode.WORKER_INTERRUPTED)
            await self.end(operation, error, OperationState.FAILED)
            return
        if failure is None and operation.returns >= MAX_UNSTARTED_DISPATCHES:
            error = ErrorInfo.of(ErrorCode.WORKER_INTERRUPTED)
            await self.failed(operation, error, keeps_host=keeps_host)
            return
        if operation.places and not keeps_host:
            await self._store.jobs.unassign(operation, failure.error if failure else None)
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
        await self._publish_outcome(operation)

    async def end(
        self, operation: OperationRecord, error: ErrorInfo, state: OperationState
    ) -> None:
        """End an operation; if it was placing its job, the job gives up its host too."""
        if operation.cancel_requested:
            state, error = OperationState.CANCELLED, ErrorInfo.of(ErrorCode.CANCELLED)
        if operation.places:
            await self._store.jobs.fail_attempt(operation, error)
            crash_point("dispatcher.end.after_job")
            await self._release(operation)
            crash_point("dispatcher.end.after_release")
        await self._store.operations.end_given(operation, state, error)
        await self._publish_outcome(operation)

    async def _release(self, operation: OperationRecord) -> None:
        """Free the attempt's reservation, unless its job still owns it."""
        job_id, host_id, generation = operation.job_id, operation.host_id, operation.generation
        if job_id is None or host_id is None or generation is None:
            return
        job = await self._store.jobs.get(job_id)
        if job is None or job.host_id is None or job.generation > generation:
            await self._store.hosts.release({host_id: [(job_id, generation)]})
            self._scheduler.wake_waiting()

    async def _publish_outcome(self, operation: OperationRecord) -> None:
        """Wake the scheduler for the job, and publish the operation's new state."""
        now = await self._store.operation_queries.get(operation.operation_id)
        if operation.job_id:
            self._scheduler.wake([operation.job_id])
        if now is not None:
            await self._event_log.publish([operation_event(now)])
