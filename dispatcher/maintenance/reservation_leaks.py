"""Leaked reservations: capacity that a host holds for a job which is not there (any more)."""

import time
from collections.abc import Iterable

import structlog

from dispatcher.scheduling.scheduler import Scheduler
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.records import HostRecord, JobRecord, Reservation

log = structlog.get_logger(__name__)

LEAK_GRACE_S = 10.0
"""Seconds for which a reservation must look leaked: a running scheduling pass looks the same."""


class ReservationLeaks:
    """A repair of the sweep: frees reservations that a crash between two steps left behind."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler
        self._leaks_seen: dict[tuple[str, str], float] = {}

    async def free(self) -> None:
        """Free what has looked leaked for `LEAK_GRACE_S`; raises `StoreUnavailableError`."""
        hosts = await self._store.hosts.all()
        held = [(host, one) for host in hosts for one in host.reservations]
        jobs = await self._store.jobs.get_many([one.job_id for _, one in held])
        idle = await self._idle(jobs.values())
        leaks = {
            (host.host_id, one.token + one.job_id): (host, one)
            for host, one in held
            if _is_leaked(host, one, jobs.get(one.job_id), idle)
        }
        now = time.monotonic()
        self._leaks_seen = {key: self._leaks_seen.get(key, now) for key in leaks}
        for key, (host, one) in leaks.items():
            if now - self._leaks_seen[key] < LEAK_GRACE_S:
                continue
            log.warning(
                "reservation.leaked",
                host_id=host.host_id,
                job_id=one.job_id,
                generation=one.generation,
            )
            job = jobs.get(one.job_id)
            if job is not None and not await self._take_back(job, one, idle):
                continue
            crash_point("dispatcher.sweep.after_take_back")
            await self._store.hosts.release({host.host_id: [(one.job_id, one.generation)]})
            self._scheduler.wake_waiting()

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
        current = await self._store.operation_queries.get_many(
            [job.current.operation_id for job in resting if job.current]
        )
        return {
            job.job_id
            for job in resting
            if job.current is None
            or job.current.operation_id not in current
            or current[job.current.operation_id].state.terminal
        }


def _is_leaked(host: HostRecord, held: Reservation, job: JobRecord | None, idle: set[str]) -> bool:
    if job is None or job.job_id in idle:
        return True
    return not job.owns(host.host_id, held.generation)
