"""The sweep: repairs what a crash left half done, from the record alone.

Each repair is a guarded write that may find nothing to do, so it may run concurrently with
everything else, also in two dispatchers at once.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from dispatcher.events import EventLog, host_event, operation_event
from dispatcher.intake.consumer import Intake
from dispatcher.maintenance.lost_hosts import LostHosts
from dispatcher.maintenance.retries import Retries
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.broker import Broker
from modelyard.contract.errors import (
    BrokerUnavailableError,
    ErrorCode,
    ErrorInfo,
    StoreUnavailableError,
)
from modelyard.contract.states import Liveness, OperationState
from modelyard.contract.topology import (
    HEARTBEATS_QUEUE,
    JOBS,
    LOST_AFTER_S,
    SUSPECT_AFTER_S,
)
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import HostRecord, JobRecord, Reservation

log = structlog.get_logger(__name__)

UNACCEPTED_S = 5.0
"""Seconds after which a command that no worker accepted is published again."""
LEAK_GRACE_S = 10.0
"""Seconds for which a reservation must look leaked: a running scheduling pass looks the same."""
HEARING_BEFORE_SUSPECT_S = SUSPECT_AFTER_S
HEARING_BEFORE_LOST_S = 30.0
"""Seconds for which this dispatcher must have received heartbeats before it marks a host LOST:
longer than workers take to reconnect to a broker that was down."""
PROBE_KEY = "dispatcher.probe"
"""A routing key to which no queue is bound: the broker confirms the message and drops it."""
PROBE_S = 3.0
LIMIT = 200


Repair = tuple[str, Callable[[], Awaitable[object]]]
"""A name for the logs and a function that may run repeatedly."""


class Sweep:
    """Runs all repairs at an interval, for ever."""

    def __init__(  # noqa: PLR0913 - the components that it calls
        self,
        store: Store,
        broker: Broker,
        *,
        event_log: EventLog,
        commands: CommandPublisher,
        intake: Intake,
        scheduler: Scheduler,
        lost: LostHosts,
        attempts: Retries,
        repairs: Sequence[Repair] = (),
    ) -> None:
        """`repairs` are those of other modules; they run between the sweep's own."""
        self._store = store
        self._broker = broker
        self._event_log = event_log
        self._commands = commands
        self._intake = intake
        self._scheduler = scheduler
        self._lost = lost
        self._attempts = attempts
        self._more = tuple(repairs)
        self._leaks_seen: dict[tuple[str, str], float] = {}
        self._hearing_since = time.monotonic()
        self._online: set[str] = set()

    async def run(self, *, interval_s: float) -> None:
        """Sweep for ever; log one line for each streak of failures of a repair."""
        failing: set[str] = set()
        while True:
            for name, repair in self._repairs():
                try:
                    await repair()
                    failing.discard(name)
                except StoreUnavailableError as error:
                    if name not in failing:
                        log.warning("sweep.store_unavailable", repair=name, error=str(error))
                    failing.add(name)
            if failing:
                # Heartbeats could not be recorded either, so no host may be marked as silent.
                self._hearing_since = time.monotonic()
            await asyncio.sleep(interval_s)

    def _repairs(self) -> Sequence[Repair]:
        """Return the repairs of one round, in order; a failed one does not stop the others."""
        return (
            ("overdue", self._intake.ask_for_overdue),
            ("expire", self._expire),
            ("hosts", self._watch_hosts),
            ("rested", self._wake_rested),
            *self._more,
            ("publish", self._publish_again),
            ("leaks", self._free_leaks),
            ("schedule", self._scheduler.schedule_next_page),
        )

    async def _expire(self) -> None:
        late = await self._store.operations.expired(limit=LIMIT)
        error = ErrorInfo.of(ErrorCode.QUEUE_TIMEOUT)
        ended = await self._store.operations.end_queued(
            [QueuedEnding(key, OperationState.EXPIRED, error) for key in late],
            token=uuid.uuid4().hex,
        )
        if ended:
            crash_point("dispatcher.sweep.after_expire")
        self._scheduler.wake(one.job_id for one in ended if one.job_id)
        await self._event_log.publish([operation_event(one) for one in ended])

    async def _wake_rested(self) -> None:
        """Schedule operations whose delay after a failed attempt is over."""
        self._scheduler.wake(await self._store.operations.wake_rested(limit=LIMIT))

    async def _watch_hosts(self) -> None:
        """Mark silent hosts SUSPECT and LOST; wake the waiting operations when a host is back."""
        hosts = self._store.hosts
        if await hosts.any_silent(suspect_s=SUSPECT_AFTER_S, lost_s=LOST_AFTER_S):
            if not await self._hears():
                self._hearing_since = time.monotonic()
            hearing_s = time.monotonic() - self._hearing_since
            if hearing_s >= HEARING_BEFORE_SUSPECT_S:
                silent = await hosts.suspect_silent(after_s=SUSPECT_AFTER_S)
                if silent:
                    crash_point("dispatcher.sweep.after_suspect")
                for host_id in silent:
                    log.warning("host.suspect", host_id=host_id, after_s=SUSPECT_AFTER_S)
                await self._event_log.publish(
                    [host_event(host_id, "suspect", None) for host_id in silent]
                )
            if hearing_s >= HEARING_BEFORE_LOST_S:
                await self._lost.give_up()
        await self._lost.take_away()
        await self._note_online()

    async def _hears(self) -> bool:
        """Tell whether heartbeats can reach the record; if not, the hosts are not to blame.

        A broker under a memory alarm accepts no messages from anyone. If heartbeats wait in their
        queue, no dispatcher consumes them.
        """
        try:
            await self._broker.publish(
                JOBS,
                PROBE_KEY,
                b"",
                mandatory=False,
                persistent=False,
                timeout_s=PROBE_S,
            )
            return await self._broker.message_count(HEARTBEATS_QUEUE.name) == 0
        except BrokerUnavailableError:
            return False

    async def _note_online(self) -> None:
        hosts = await self._store.hosts.all()
        online = {host.host_id for host in hosts if host.liveness is Liveness.ONLINE}
        if online - self._online:
            self._scheduler.wake_waiting()
        self._online = online

    async def _publish_again(self) -> None:
        """Publish commands again that no worker accepted.

        If the host has a new incarnation, the operation is queued again instead.
        """
        open_ones = await self._store.operation_queries.unaccepted(
            older_than_s=UNACCEPTED_S, limit=LIMIT
        )
        if not open_ones:
            return
        hosts = {host.host_id: host for host in await self._store.hosts.all()}
        again = []
        for operation in open_ones:
            host = hosts.get(operation.host_id or "")
            if host is not None and host.incarnation == operation.incarnation:
                again.append(operation)
            else:
                await self._attempts.again(operation, None, keeps_place=True)
        if again:
            log.info("commands.published_again", count=len(again))
            crash_point("dispatcher.sweep.after_look")
            await self._store.operations.mark_published(again)
            crash_point("dispatcher.sweep.after_mark")
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
