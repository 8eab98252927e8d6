"""Draining: a host gets no new work, and its present work may finish until a deadline.

At the deadline the dispatcher fails the operations that still run (`host_drained`), and terminates
the jobs that are still live: it puts a TERMINATE at the front of each job's line.
"""

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.events import EventLog, host_event
from dispatcher.maintenance.cancels import tell_to_cancel
from dispatcher.maintenance.retries import Retries
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.scheduling.system_operations import period, record_in_front, system_operation
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import OperationState, SystemReason, Verb
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.records import HostRecord, JobRecord, NewOperation, OperationRecord

log = structlog.get_logger(__name__)


class Drains:
    """A repair of the sweep: finishes drains."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        scheduler: Scheduler,
        control: ControlPublisher,
        retries: Retries,
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._control = control
        self._retries = retries

    async def check(self) -> None:
        """Check every draining host, and end its work at the deadline.

        Raises `StoreUnavailableError`.
        """
        hosts = await self._store.hosts.draining()
        draining = [host for host in hosts if host.drain and not host.drain.done]
        if not draining:
            return
        overdue = set(await self._store.hosts.past_drain_deadline())
        for host in draining:
            if not await self._is_drained(host) and host.host_id in overdue:
                await self._end_remaining_work(host)

    async def _is_drained(self, host: HostRecord) -> bool:
        """Tell whether the host has no work left, and record the first time that this is so."""
        if await self._store.operation_queries.on_host(host.host_id):
            return False
        if await self._store.jobs.on_host(host.host_id):
            return False
        if host.reservations:
            return False  # of a job that moves here, or a leaked one, which the sweep frees
        if await self._store.hosts.drained(host.host_id):
            log.info("host.drained", host_id=host.host_id)
            await self._event_log.publish([host_event(host.host_id, "drained", host.incarnation)])
        return True

    async def _end_remaining_work(self, host: HostRecord) -> None:
        error = ErrorInfo.of(ErrorCode.HOST_DRAINED)
        active = [
            one
            for one in await self._store.operation_queries.on_host(host.host_id)
            if one.verb is not Verb.TERMINATE
        ]
        await tell_to_cancel(self._control, active, "stale")
        crash_point("dispatcher.drain.after_tell")
        for operation in active:
            await self._retries.end(operation, error, OperationState.FAILED)
        crash_point("dispatcher.drain.after_operations")
        for job in await self._store.jobs.on_host(host.host_id):
            if job.state.live:
                await record_in_front(self._store, await self._terminate(host, job))
                self._scheduler.wake([job.job_id])

    async def _terminate(self, host: HostRecord, job: JobRecord) -> list[NewOperation]:
        """Return the TERMINATE of a job's container, which the record may have already.

        If that one was cancelled or has failed, another one, unless there is one in line. It ends
        no other container: the job may have come elsewhere since it was read.
        """
        key = f"drained/{host.host_id}/{job.generation}/{job.container_id}"
        end = system_operation(job, Verb.TERMINATE, key, SystemReason.DRAIN)
        earlier = await self._store.operation_queries.get(end.operation_id)
        if earlier is None or not _came_to_nothing(earlier):
            return [end]
        for line in (await self._store.jobs.lines([job.job_id])).lines:
            if not any(_is_like(end, one) for one in line.operations):
                key = f"{key}/{period(await self._store.time())}"
                return [system_operation(job, Verb.TERMINATE, key, SystemReason.DRAIN)]
        return []


def _came_to_nothing(operation: OperationRecord) -> bool:
    return operation.state.terminal and operation.state is not OperationState.SUCCEEDED


def _is_like(wanted: NewOperation, one: OperationRecord) -> bool:
    ours = (wanted.source, wanted.verb, wanted.wanted_container_id)
    return (one.source, one.verb, one.wanted_container_id) == ours
