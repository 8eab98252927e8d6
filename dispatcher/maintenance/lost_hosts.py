"""Hosts that are given up: what may run elsewhere does, the rest ends with the reason.

A host may come back meanwhile and be given new work. So it is looked at again after its jobs and
operations were read: what was read before was no new work, for none is given to a LOST host.

What can crash between two lines: everything here is done again for as long as the host is LOST and
the record still has something on it, and each write finds what is done. The jobs go first: once a
job has let go of its host, nothing that the host still reports reaches it.
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

MOST_IN_A_ROW = 3
"""Times that a loaded job is recreated without being LOADED for ten minutes in between: a model
that takes its host down would else take down one after the other."""


def recreation_of(job: JobRecord, line: Sequence[OperationRecord]) -> RestorationRecord | None:
    """Return how a job that is about to lose its host comes back, with what stands in its line.

    Null if its model does not want it, if it was recreated too often in a row, or if it is to be
    terminated next anyway.
    """
    spec = job.spec
    if spec is None or not _is_to_be_recreated(job) or _ends_next(line):
        return None
    to = job.recovery.to if job.recovery else job.state
    if any(_brings_back(one) for one in line):
        to = JobState.LOADED
    in_a_row = 0 if job.steady else job.restarts
    if to is JobState.LOADED and in_a_row >= max(MOST_IN_A_ROW, spec.max_restarts):
        return None
    return RestorationRecord(to=to, key=job.version)


def is_coming_back(line: JobLine) -> bool:
    """Tell whether a job that lost its host before is brought back, or has been."""
    return _is_to_be_recreated(line.job) and (
        line.job.state is not JobState.LOST
        or line.job.recovery is not None
        or any(one.source == "system" for one in line.operations)
    )


def _is_to_be_recreated(job: JobRecord) -> bool:
    return job.spec is not None and job.spec.on_host_lost == "recreate"


def _brings_back(operation: OperationRecord) -> bool:
    return operation.source == "system" and operation.verb is Verb.DEPLOY_LOAD


def _ends_next(line: Sequence[OperationRecord]) -> bool:
    for one in line:
        running = one.verb is Verb.INFER and one.state is OperationState.RUNNING
        if not running and not _brings_back(one):
            return one.verb is Verb.TERMINATE and not one.cancel_requested
    return False


class LostHosts:
    """A repair of the sweep."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        scheduler: Scheduler,
        control: ControlPublisher,
        attempts: Retries,
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._control = control
        self._attempts = attempts
        self.boots: frozenset[tuple[str, str]] = frozenset()
        """The hosts and boots that were LOST at the last look."""

    async def give_up(self) -> None:
        """Mark hosts LOST whose lease is over; raises `StoreUnavailableError`."""
        for host_id in await self._store.hosts.lose_silent(after_s=LOST_AFTER_S):
            log.error("host.lost", host_id=host_id, after_s=LOST_AFTER_S)
            await self._event_log.publish([host_event(host_id, "lost", None)])

    async def take_away(self) -> None:
        """Take everything from LOST hosts that the record still has on them."""
        hosts = await self._store.hosts.all()
        lost = [host for host in hosts if host.liveness is Liveness.LOST]
        self.boots = frozenset((host.host_id, host.incarnation or "") for host in lost)
        for host in lost:
            await self._take_away(host)

    async def _take_away(self, host: HostRecord) -> None:
        jobs = await self._store.jobs.on_host(host.host_id)
        given = await self._store.operation_queries.on_host(host.host_id)
        if not jobs and not given and not host.reservations:
            return
        if not await self._is_still_lost(host):
            return
        # Told first: none of it may run here when it is begun elsewhere.
        await tell_to_cancel(self._control, given, "stale")
        by_id = {job.job_id: job for job in jobs}
        concerned = by_id.keys() | {one.job_id for one in given if one.job_id}
        known = await self._store.jobs.lines(sorted(concerned))
        recoveries = {
            line.job.job_id: recreation_of(by_id[line.job.job_id], line.operations)
            for line in known.lines
            if line.job.job_id in by_id
        }
        live = [job for job in jobs if job.state.live and job.job_id in recoveries]
        await self._lose_jobs(host, live, recoveries)
        crash_point("dispatcher.lost.after_jobs")
        coming = {job_id for job_id, recovery in recoveries.items() if recovery} | {
            line.job.job_id
            for line in known.lines
            if line.job.job_id not in by_id and is_coming_back(line)
        }
        for operation in given:
            # A job that changed while it was read is looked at again.
            if operation.job_id not in known.moved:
                await self._take_operation(operation, comes_back=operation.job_id in coming)
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
        recoveries: Mapping[str, RestorationRecord | None],
    ) -> None:
        error = ErrorInfo.of(ErrorCode.HOST_LOST)
        events = []
        for job in jobs:
            recovery = recoveries[job.job_id]
            counts = recovery is not None and recovery.to is JobState.LOADED
            if await self._store.jobs.observe(
                job, JobState.LOST, error, recovery=recovery, counts=counts
            ):
                events.append(observed_event(job, JobState.LOST, error, host.host_id))
        await self._event_log.publish(events)

    async def _take_operation(self, operation: OperationRecord, *, comes_back: bool) -> None:
        error = ErrorInfo.of(ErrorCode.HOST_LOST)
        begun = operation.state is OperationState.RUNNING
        # Whoever brings the job back again loads it again.
        goes_on = operation.places or (comes_back and not _brings_back(operation))
        if operation.verb is Verb.TERMINATE or (goes_on and not begun):
            # Nothing is left to remove: a TERMINATE holds by itself.
            await self._attempts.again(operation, None, keeps_place=False)
        elif goes_on:
            await self._attempts.failed(operation, error)
        else:
            await self._attempts.end(operation, error, OperationState.FAILED)

    async def _free(self, host: HostRecord) -> None:
        """Free what is reserved on the host for jobs that are there no more."""
        left = await self._store.jobs.on_host(host.host_id)
        if not await self._is_still_lost(host):
            return
        for job in left:
            if not job.state.live:
                await self._store.jobs.observe(job, job.state, job.error)
        still = {job.job_id for job in await self._store.jobs.on_host(host.host_id)}
        gone = [
            (held.job_id, held.generation) for held in host.reservations if held.job_id not in still
        ]
        if gone:
            await self._store.hosts.release({host.host_id: gone})
