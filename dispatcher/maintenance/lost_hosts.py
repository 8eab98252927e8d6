"""Lost hosts: work that may run elsewhere is retried there, the rest fails with `host_lost`.

A host may come online again meanwhile and get new work. So its record is read again after its jobs
and operations: if the host is still LOST, none of them is new work, because a LOST host gets none.

After a crash at any point, the next sweep repeats the work, for as long as the host is LOST and has
jobs, operations or reservations in the record; each write finds what is done. The jobs are written
first: once a job has given up its host, the host's reports do not affect it any more.
"""

from collections.abc import Iterable, Mapping, Sequence

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.events import EventLog, host_event, observed_event
from dispatcher.maintenance.cancels import tell_to_cancel
from dispatcher.maintenance.retries import Retries
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import JobState, Liveness, OperationState, Verb
from modelyard.contract.topology import LOST_AFTER_S
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.records import (
    HostRecord,
    JobLine,
    JobRecord,
    OperationRecord,
    RestorationRecord,
)

log = structlog.get_logger(__name__)

MAX_RECREATIONS = 3
"""How often a loaded job is recreated without staying LOADED for ten minutes in between. Otherwise
a model that takes its host down would take down one host after the other."""


def recreation_of(job: JobRecord, line: Sequence[OperationRecord]) -> RestorationRecord | None:
    """Return the restoration of a job whose host is lost; `line` is the job's line.

    Null if the job's model does not ask for one (`on_host_lost`), if the job was recreated too
    often in a row, or if its next operation is a TERMINATE.
    """
    spec = job.spec
    if spec is None or not _wants_recreation(job) or _terminates_next(line):
        return None
    to = job.recovery.to if job.recovery else job.state
    if any(_is_restoring_load(one) for one in line):
        to = JobState.LOADED
    in_a_row = 0 if job.steady else job.restarts
    if to is JobState.LOADED and in_a_row >= max(MAX_RECREATIONS, spec.max_restarts):
        return None
    return RestorationRecord(to=to, key=job.version)


def is_restored(line: JobLine) -> bool:
    """Tell whether a job that lost its host earlier is being restored, or has been."""
    return _wants_recreation(line.job) and (
        line.job.state is not JobState.LOST
        or line.job.recovery is not None
        or any(one.source == "system" for one in line.operations)
    )


def _wants_recreation(job: JobRecord) -> bool:
    return job.spec is not None and job.spec.on_host_lost == "recreate"


def _is_restoring_load(operation: OperationRecord) -> bool:
    """Tell whether this is the DEPLOY_LOAD of a restoration."""
    return operation.source == "system" and operation.verb is Verb.DEPLOY_LOAD


def _terminates_next(line: Sequence[OperationRecord]) -> bool:
    """Tell whether a TERMINATE comes next, behind a restoring load and inferences that were given.

    Inferences that the host was given end with it.
    """
    for one in line:
        given = one.verb is Verb.INFER and one.state is not OperationState.QUEUED
        if not given and not _is_restoring_load(one):
            return one.verb is Verb.TERMINATE and not one.cancel_requested
    return False


class LostHosts:
    """A repair of the sweep: marks hosts LOST and takes their work away."""

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
        self.boots: frozenset[tuple[str, str]] = frozenset()
        """The host ids and incarnations that were LOST in the last round."""

    async def give_up(self) -> None:
        """Mark hosts LOST whose lease has expired; raises `StoreUnavailableError`."""
        for host_id in await self._store.hosts.lose_silent(after_s=LOST_AFTER_S):
            log.error("host.lost", host_id=host_id, after_s=LOST_AFTER_S)
            await self._event_log.publish([host_event(host_id, "lost", None)])

    async def take_away(self) -> None:
        """Take away all jobs, operations and reservations that LOST hosts still have."""
        lost = await self._store.hosts.lost()
        self.boots = frozenset((host.host_id, host.incarnation or "") for host in lost)
        for host in lost:
            await self._take_away(host)

    async def _take_away(self, host: HostRecord) -> None:
        jobs = await self._store.jobs.on_host(host.host_id)
        active = await self._store.operation_queries.on_host(host.host_id)
        if not jobs and not active and not host.reservations:
            return
        if not await self._is_still_lost(host):
            return
        # Tell the worker first: nothing may still run here when it starts elsewhere.
        await tell_to_cancel(self._control, active, "stale")
        by_id = {job.job_id: job for job in jobs}
        concerned = by_id.keys() | {one.job_id for one in active if one.job_id}
        known = await self._store.jobs.lines(sorted(concerned))
        restorations = {
            line.job.job_id: recreation_of(by_id[line.job.job_id], line.operations)
            for line in known.lines
            if line.job.job_id in by_id
        }
        live = [job for job in jobs if job.state.live and job.job_id in restorations]
        await self._lose_jobs(host, live, restorations)
        crash_point("dispatcher.lost.after_jobs")
        restored = {job_id for job_id, restoration in restorations.items() if restoration} | {
            line.job.job_id
            for line in known.lines
            if line.job.job_id not in by_id and is_restored(line)
        }
        for operation in active:
            # The next round handles a job that changed while it was read.
            if operation.job_id not in known.moved:
                await self._take_operation(operation, job_restored=operation.job_id in restored)
        crash_point("dispatcher.lost.after_operations")
        await self._free(host)
        self._scheduler.wake(by_id)

    async def _is_still_lost(self, host: HostRecord) -> bool:
        now = await self._store.hosts.get(host.host_id)
        if now is None or now.liveness is not Liveness.LOST:
            return False
        return now.incarnation == host.incarnation

    async def _lose_jobs(
        self,
        host: HostRecord,
        jobs: Iterable[JobRecord],
        restorations: Mapping[str, RestorationRecord | None],
    ) -> None:
        error = ErrorInfo.of(ErrorCode.HOST_LOST)
        events = []
        for job in jobs:
            restoration = restorations[job.job_id]
            counts = restoration is not None and restoration.to is JobState.LOADED
            if await self._store.jobs.observe(
                job, JobState.LOST, error, recovery=restoration, counts=counts
            ):
                events.append(observed_event(job, JobState.LOST, error, host.host_id))
        await self._event_log.publish(events)

    async def _take_operation(self, operation: OperationRecord, *, job_restored: bool) -> None:
        error = ErrorInfo.of(ErrorCode.HOST_LOST)
        # Nobody knows whether an inference that the host was given has begun.
        begun = operation.state is OperationState.RUNNING or operation.verb is Verb.INFER
        # A new restoration brings a load of its own, so the load of an earlier one just fails.
        retried = operation.places or (job_restored and not _is_restoring_load(operation))
        if operation.verb is Verb.TERMINATE or (retried and not begun):
            # A requeued TERMINATE succeeds by itself: the job has no container any more.
            await self._retries.again(operation, None, keeps_host=False)
        elif retried:
            await self._retries.failed(operation, error)
        else:
            await self._retries.end(operation, error, OperationState.FAILED)

    async def _free(self, host: HostRecord) -> None:
        """Free the host's reservations for jobs that are not on it any more."""
        remaining = await self._store.jobs.on_host(host.host_id)
        if not await self._is_still_lost(host):
            return
        for job in remaining:
            if not job.state.live:
                await self._store.jobs.observe(job, job.state, job.error)
        still = {job.job_id for job in await self._store.jobs.on_host(host.host_id)}
        gone = [
            (held.job_id, held.generation) for held in host.reservations if held.job_id not in still
        ]
        if gone:
            await self._store.hosts.release({host.host_id: gone})
