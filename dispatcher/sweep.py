"""The sweep: repairs what a crash left open between two steps, from the record alone.

Each repair is a guarded write that may find nothing to do, so it may run beside everything else
and in two dispatchers at once.
"""

import asyncio
import time
import uuid
from collections.abc import Iterable

import structlog

from dispatcher.commands import Commands
from dispatcher.facts import Facts, host_event, operation_event
from dispatcher.intake import Intake
from dispatcher.scheduler import Scheduler
from modelyard.contract.errors import SENTENCES, ErrorCode, ErrorInfo, StoreUnavailableError
from modelyard.contract.states import OperationState
from modelyard.contract.topology import SUSPECT_AFTER_S
from modelyard.store import Store
from modelyard.store.operations import Ending
from modelyard.store.records import HostRecord, JobRecord, Reservation

log = structlog.get_logger(__name__)

OVERDUE_S = 3.0
"""Seconds after which a recorded operation gets its place in line without its message."""
UNACCEPTED_S = 5.0
"""Seconds after which a command that no worker accepted is published again."""
LEAK_GRACE_S = 10.0
"""Seconds that a reservation may look leaked: a pass between two steps looks the same."""
LIMIT = 1_000


class Sweep:
    """Runs all repairs at an interval, for ever."""

    def __init__(
        self,
        store: Store,
        facts: Facts,
        commands: Commands,
        intake: Intake,
        scheduler: Scheduler,
    ) -> None:
        self._store = store
        self._facts = facts
        self._commands = commands
        self._intake = intake
        self._scheduler = scheduler
        self._leaks_seen: dict[tuple[str, str], float] = {}

    async def run(self, *, interval_s: float) -> None:
        """Sweep for ever; one line is logged for each streak of failures."""
        failing = False
        while True:
            try:
                await self.once()
                failing = False
            except StoreUnavailableError as error:
                if not failing:
                    log.warning("sweep.store_unavailable", error=str(error))
                failing = True
            await asyncio.sleep(interval_s)

    async def once(self) -> None:
        """Run each repair once; raises `StoreUnavailableError`."""
        await self._intake.take_overdue(older_than_s=OVERDUE_S)
        await self._expire()
        await self._suspect()
        await self._publish_again()
        await self._free_leaks()
        await self._scheduler.schedule_next_page()

    async def _expire(self) -> None:
        late = await self._store.operations.expired(limit=LIMIT)
        error = ErrorInfo(code=ErrorCode.QUEUE_TIMEOUT, message=SENTENCES[ErrorCode.QUEUE_TIMEOUT])
        ended = await self._store.operations.end_queued(
            [Ending(key, OperationState.EXPIRED, error) for key in late], token=uuid.uuid4().hex
        )
        self._scheduler.wake(one.job_id for one in ended if one.job_id)
        await self._facts.tell([operation_event(one) for one in ended])

    async def _suspect(self) -> None:
        silent = await self._store.hosts.suspect_silent(after_s=SUSPECT_AFTER_S)
        for host_id in silent:
            log.warning("host.suspect", host_id=host_id, after_s=SUSPECT_AFTER_S)
        await self._facts.tell([host_event(host_id, "suspect", None) for host_id in silent])

    async def _publish_again(self) -> None:
        """Publish commands that nobody accepted; those for a boot that is over are queued again."""
        open_ones = await self._store.operations.unaccepted(older_than_s=UNACCEPTED_S, limit=LIMIT)
        if not open_ones:
            return
        hosts = {host.host_id: host for host in await self._store.hosts.all()}
        again = []
        for operation in open_ones:
            host = hosts.get(operation.host_id or "")
            if host is not None and host.incarnation == operation.incarnation:
                again.append(operation)
            elif await self._store.operations.requeue(operation) and operation.job_id:
                self._scheduler.wake([operation.job_id])
        if again:
            log.info("commands.published_again", count=len(again))
            await self._store.operations.mark_published(again)
            jobs = await self._store.jobs.get_many([one.job_id for one in again if one.job_id])
            await self._commands.publish(again, jobs)

    async def _free_leaks(self) -> None:
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
            lets_go = job is not None and job.job_id in idle and job.generation == one.generation
            if lets_go and job and not await self._store.jobs.observe(job, job.state, job.error):
                continue
            await self._store.hosts.release({host.host_id: [(one.job_id, one.generation)]})
            self._scheduler.wake_waiting()

    async def _idle(self, jobs: Iterable[JobRecord]) -> set[str]:
        """Return the jobs that are not live and whose current operation has ended."""
        resting = [job for job in jobs if not job.state.live]
        current = await self._store.operations.get_many(
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
    return job.host_id != host.host_id or job.generation != held.generation
