"""Leaked reservations: capacity that a host holds for a job which is not there (any more).

And memory that it holds for a model whose load was cut short: it ended, and no report told what
became of the model. Half of it may be in memory, so an UNLOAD stops its container first.
"""

import time
from collections.abc import Iterable, Mapping

import structlog

from dispatcher.scheduling.lines import Lines
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.scheduling.system_operations import period, record_in_front, system_operation
from modelyard.contract.states import JobState, SystemReason, Verb
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.records import JobRecord, Reservation

log = structlog.get_logger(__name__)

LEAK_GRACE_S = 10.0
"""Seconds for which a reservation must look leaked: a running scheduling pass looks the same."""


Found = tuple[str, Reservation]
"""What is reserved, and on which host."""


class _Overdue:
    """What has looked leaked in every sweep for `LEAK_GRACE_S`."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def overdue(self, seen: Mapping[tuple[str, str], Found]) -> list[Found]:
        """Note what looks leaked now; return what has looked so for long enough."""
        now = time.monotonic()
        self._since = {key: self._since.get(key, now) for key in seen}
        return [one for key, one in seen.items() if now - self._since[key] >= LEAK_GRACE_S]


class ReservationLeaks:
    """A repair of the sweep: frees reservations that a crash between two steps left behind."""

    def __init__(self, store: Store, scheduler: Scheduler, lines: Lines) -> None:
        self._store = store
        self._scheduler = scheduler
        self._lines = lines
        self._leaks_seen = _Overdue()
        self._unused_seen = _Overdue()

    async def free(self) -> None:
        """Free what has looked leaked for `LEAK_GRACE_S`; raises `StoreUnavailableError`."""
        held = await self._store.hosts.reservations()
        jobs = await self._store.jobs.without_specs([one.job_id for _, one in held])
        await self._unload(held, jobs)
        idle = await self._idle(jobs.values())
        leaks = {
            (host_id, one.token + one.job_id): (host_id, one)
            for host_id, one in held
            if _is_leaked(host_id, one, jobs.get(one.job_id), idle)
        }
        for host_id, one in self._leaks_seen.overdue(leaks):
            log.warning(
                "reservation.leaked",
                host_id=host_id,
                job_id=one.job_id,
                generation=one.generation,
            )
            job = jobs.get(one.job_id)
            if job is not None and not await self._take_back(job, one, idle):
                continue
            crash_point("dispatcher.sweep.after_take_back")
            if job is not None and job.state.live and job.host_id == host_id:
                # It was to get another container on its host, and has the old one: that holds it.
                await self._store.hosts.bind_back(host_id, job)
                self._scheduler.wake([job.job_id])
                continue
            await self._store.hosts.release({host_id: [(one.job_id, one.generation)]})
            self._scheduler.wake_waiting()

    async def _unload(self, held: Iterable[Found], jobs: Mapping[str, JobRecord]) -> None:
        """Put an UNLOAD before jobs that hold memory for a model which is neither in it nor loaded.

        Its report frees the memory, and its assignment makes that of a dispatcher lose which was
        frozen between holding and assigning. What else waits in the job's line goes first: it may
        be the next LOAD, or end the job.
        """
        unused = {
            (host_id, one.token + one.job_id): (host_id, one)
            for host_id, one in held
            if one.resident is not None
            and (job := jobs.get(one.job_id)) is not None
            and (job.state, job.generation) == (JobState.CREATED, one.generation)
            and job.recovery is None
            and job.move is None
        }
        at_work = await self._at_work(jobs[one.job_id] for _, one in unused.values())
        resting = {key: found for key, found in unused.items() if found[1].job_id not in at_work}
        overdue = {one.job_id for _, one in self._unused_seen.overdue(resting)}
        if not overdue:
            return
        now = await self._store.time()
        lines = (await self._lines.read(overdue)).lines
        cut_short = [line.job for line in lines if not line.operations]
        await record_in_front(
            self._store,
            [
                system_operation(
                    job,
                    Verb.DEPLOY_UNLOAD,
                    f"load_cut_short/{job.version}/{period(now)}",
                    SystemReason.LOAD_CUT_SHORT,
                )
                for job in cut_short
            ],
        )
        crash_point("dispatcher.sweep.after_unload")
        for job in cut_short:
            log.warning("load.cut_short", host_id=job.host_id, job_id=job.job_id)
        self._scheduler.wake(job.job_id for job in cut_short)

    async def _at_work(self, jobs: Iterable[JobRecord]) -> set[str]:
        """Return the jobs whose current operation has not ended."""
        current = {job.current.operation_id: job.job_id for job in jobs if job.current}
        known = await self._store.operation_queries.get_many(list(current)) if current else {}
        return {current[one.operation_id] for one in known.values() if not one.state.terminal}

    async def _take_back(self, job: JobRecord, held: Reservation, idle: set[str]) -> bool:
        """Change the job's version, so that no earlier scheduling pass can use this reservation.

        A dispatcher may have been frozen between reserving and assigning: with the new version, its
        assignment loses.
        """
        if job.job_id in idle and job.generation == held.generation:
            return await self._store.jobs.observe(job, job.state, job.error)
        return await self._store.jobs.fence(job)

    async def _idle(self, jobs: Iterable[JobRecord]) -> set[str]:
        """Return the jobs that are not live and whose current operation has ended."""
        resting = [job for job in jobs if not job.state.live]
        return {job.job_id for job in resting} - await self._at_work(resting)


def _is_leaked(host_id: str, held: Reservation, job: JobRecord | None, idle: set[str]) -> bool:
    if job is None or job.job_id in idle:
        return True
    return not job.owns(host_id, held.generation)
