"""Open operations that no message moves: expired, rested, or dispatched and never accepted."""

import uuid

import structlog

from dispatcher.events import EventLog, operation_event
from dispatcher.maintenance.retries import Retries
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import OperationState
from modelyard.process.crash_points import crash_point
from modelyard.scheduling.explaining import waits_in_line
from modelyard.store import Store
from modelyard.store.jobs import HeadOfLine
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import OperationRecord

log = structlog.get_logger(__name__)

UNACCEPTED_S = 5.0
"""Seconds after which a command that no worker accepted is published again."""
LIMIT = 200
MAX_MESSAGE_CHARS = 2_000


class OpenOperations:
    """Three repairs of the sweep. Each raises `StoreUnavailableError`."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        scheduler: Scheduler,
        commands: CommandPublisher,
        retries: Retries,
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._commands = commands
        self._retries = retries

    async def expire(self) -> None:
        """End queued operations whose queue deadline has passed."""
        late = await self._store.operations.expired(limit=LIMIT)
        if not late:
            return
        heads = await self._store.jobs.heads_of_lines([one.job_id for one in late if one.job_id])
        ended = await self._store.operations.end_queued(
            [
                QueuedEnding(one, OperationState.EXPIRED, _expiry(one, heads.get(one.job_id or "")))
                for one in late
            ],
            token=uuid.uuid4().hex,
        )
        if ended:
            crash_point("dispatcher.sweep.after_expire")
        await self._store.deletions.unborn_jobs(one.job_id for one in ended if one.job_id)
        self._scheduler.wake(one.job_id for one in ended if one.job_id)
        await self._event_log.publish([operation_event(one) for one in ended])

    async def wake_after_backoff(self) -> None:
        """Schedule operations whose delay after a failed attempt is over."""
        self._scheduler.wake(await self._store.operations.wake_after_backoff(limit=LIMIT))

    async def publish_again(self) -> None:
        """Publish commands again that no worker accepted.

        If the host has a new incarnation, the operation is queued again instead, or ends.
        """
        open_ones = await self._store.operation_queries.unaccepted(
            older_than_s=UNACCEPTED_S, limit=LIMIT
        )
        if not open_ones:
            return
        given_to = sorted({one.host_id for one in open_ones if one.host_id})
        hosts = {host.host_id: host for host in await self._store.hosts.all(given_to)}
        again = []
        for operation in open_ones:
            host = hosts.get(operation.host_id or "")
            if host is not None and host.incarnation == operation.incarnation:
                again.append(operation)
            else:
                begun_known = host is not None and host.begun_known
                await self._retries.interrupted(operation, begun_known=begun_known)
        if again:
            log.info("commands.published_again", count=len(again))
            crash_point("dispatcher.sweep.after_look")
            await self._store.operations.mark_published(again)
            crash_point("dispatcher.sweep.after_mark")
            jobs = await self._store.jobs.get_many([one.job_id for one in again if one.job_id])
            await self._commands.publish(again, jobs)


def _expiry(operation: OperationRecord, head: HeadOfLine | None) -> ErrorInfo:
    """Return why an operation has EXPIRED, with what it waited for last."""
    error = ErrorInfo.of(ErrorCode.QUEUE_TIMEOUT)
    waited_for = "; ".join(waits_in_line(operation, head) or operation.waiting_for)
    if not waited_for:
        return error
    message = f"{error.message} It waited for: {waited_for}."
    return error.model_copy(update={"message": message[:MAX_MESSAGE_CHARS]})
