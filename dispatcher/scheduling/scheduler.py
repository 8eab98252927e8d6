"""Scheduling: dispatches the operations that may start now; what finds no host gets reasons.

One pass over some jobs: take their lines and the hosts from memory, decide, end the operations that
can't run, reserve, assign, claim, publish the commands, note the events. Inferences that need no
more than a claim are claimed in memory as they are decided, before anything is awaited, so that no
other pass decides about them too; if a write fails, their jobs are dropped from memory. Most of
them never come here: `FirstPass` dispatches them with the write that takes them in. What a crash
leaves behind in the record, the only thing that outlives this process:

- after an operation that started nothing has ended: its job may be left; the sweep deletes it;
- after reserve: the reservation names a job that is not assigned to the host; the sweep frees it;
- after hold: the host holds memory for a model that is not being loaded; the next pass uses it, or
  the sweep frees it;
- after assign: the job names its host and next generation while the operation is still QUEUED;
  the next pass finds the job placed and continues from there; the reservation on the host that it
  has left, if it was relocated, is not its own any more, and the sweep frees it;
- after claim: the operation is DISPATCHED and no command is published; the sweep publishes it;
- after publish: the event is missing, as it was only noted.

What is in memory may be outdated, and a dispatcher whose term is over may be in the middle of a
pass over the same jobs. Neither does harm: reservations are guarded by the host document,
assignments by the job's version, claims by the operation's state and epoch. A guard that finds
nothing drops what is in memory, and the job has another pass.
"""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import structlog

from dispatcher.events import EventLog, operation_event
from dispatcher.leadership import Term
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.memory import Memory
from dispatcher.scheduling.residency import Residents
from modelyard.contract.errors import StoreUnavailableError
from modelyard.contract.states import JobState, OperationState
from modelyard.process.crash_points import crash_point
from modelyard.scheduling.placement import FreeCapacity, LearnedOf
from modelyard.scheduling.planning import (
    PlannedDispatch,
    SchedulingPlan,
    catalog_names,
    make_plan,
    may_take_capacity,
)
from modelyard.scheduling.reading import entries_of, urgent_jobs
from modelyard.store import Store
from modelyard.store.jobs import Assignment
from modelyard.store.records import HostRecord, JobLine, OperationRecord, reservations_of

log = structlog.get_logger(__name__)

JOBS_IN_A_PASS = 200
"""Most jobs that one pass looks at."""
WAITING_PAGE = 500
"""Most queued operations that are read at once when capacity has become free."""
PAGES_AT_ONCE = 4
"""Pages of queued operations that are scheduled before woken jobs have their turn."""
RETRY_AFTER_S = 0.5


class Scheduler:
    """Runs passes over the jobs for which it is woken.

    The sweep may run passes at the same time: every write is guarded.
    """

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        commands: CommandPublisher,
        term: Term,
        *,
        memory: Memory,
        residency: Residents,
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._commands = commands
        self._lines = memory.lines
        self._fleet = memory.fleet
        self._footprints = memory.footprints
        self._residency = residency
        self._term = term
        self._jobs: dict[str, None] = {}
        self._waiting_woken = False
        self._swept_up_to: OperationRecord | None = None
        self._woken = asyncio.Event()

    def wake(self, job_ids: Iterable[str]) -> None:
        """Schedule these jobs soon: something has changed in their lines."""
        self._jobs.update(dict.fromkeys(job_ids))
        self._woken.set()

    def wake_waiting(self) -> None:
        """Schedule the waiting operations soon: capacity has become free."""
        self._waiting_woken = True
        self._woken.set()

    def free_capacity(self, hosts: Mapping[str, HostRecord], learned: LearnedOf) -> FreeCapacity:
        """Return what is left of some hosts, for jobs that are placed one after the other."""
        return self._fleet.capacity_of(hosts, self._residency.kept, learned)

    async def learned(self) -> LearnedOf:
        """Return what tells what was learned of a model; raises `StoreUnavailableError`."""
        return await self._footprints.learned()

    async def run(self) -> None:
        """Run passes for ever. While MongoDB is unavailable, woken jobs are kept and retried."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            jobs = list(self._jobs)[:JOBS_IN_A_PASS]
            for job_id in jobs:
                del self._jobs[job_id]
            waiting, self._waiting_woken = self._waiting_woken, False
            try:
                if waiting:
                    await self._schedule_waiting()
                if jobs:
                    await self.schedule(jobs)
            except StoreUnavailableError as error:
                log.warning("scheduler.store_unavailable", error=str(error))
                self.wake(jobs)
                self._waiting_woken |= waiting
                await asyncio.sleep(RETRY_AFTER_S)
            if self._jobs or self._waiting_woken:
                self._woken.set()

    async def schedule(self, job_ids: Sequence[str]) -> None:
        """Run one pass over some jobs; raises `StoreUnavailableError` and `NotLeadingError`."""
        self._term.check()
        read = await self._lines.read(job_ids)
        lines, moved = [*read.lines], read.moved
        if any(may_take_capacity(line) for line in lines):
            # Capacity goes to the most urgent operations, not only to those of this pass.
            urgent = await self._lines.read(await urgent_jobs(self._store, besides=job_ids))
            lines += urgent.lines
            moved |= urgent.moved
        self.wake(moved)
        if contending := self._residency.waiting_on(_with_idle_models(lines)):
            self.wake(contending)
        if not any(one.state is OperationState.QUEUED for line in lines for one in line.operations):
            return  # whoever puts another one in line wakes the scheduler
        catalog = await entries_of(self._store, lines)
        learned = await self.learned()
        hosts = await self._fleet.hosts()
        # From here to the claims in memory nothing is awaited: these lines are those of now.
        plan = make_plan(self._still(lines), catalog, self.free_capacity(hosts, learned))
        self._residency.give_up(plan.beyond_help)
        shared = [one for one in plan.dispatches if one.operation.shared]
        for one in shared:
            self._lines.replace(one.claim.dispatched)
        try:
            await self._end(plan)
            if await self._store.operations.explain_waiting(plan.waiting):
                for operation in plan.explained:
                    self._lines.replace(operation)
            else:
                # Intake may be writing one of them down at this moment; the sweep explains it then.
                self._lines.forget(one.job_id or "" for one in plan.explained)
            await self._dispatch(plan.dispatches)
            self.wake(await self._residency.make_room(plan.crowded))
        except BaseException:
            self._lines.forget(one.job.job_id for one in plan.dispatches)
            raise

    def _still(self, lines: Sequence[JobLine]) -> list[JobLine]:
        """Return the lines as they are in memory now.

        Those that were dropped meanwhile, or now name other catalog entries, have another pass.
        """
        now: list[JobLine] = []
        for line in lines:
            held = self._lines.certain(line.job.job_id)
            if held is not None and catalog_names(held) <= catalog_names(line):
                now.append(held)
            else:
                self.wake([line.job.job_id])
        return now

    async def schedule_next_page(self) -> None:
        """Schedule the next page of waiting operations; after the last page start again.

        The sweep calls it, so that every operation is scheduled in time, even if the dispatcher
        that was woken for it has crashed. Raises `StoreUnavailableError`.
        """
        await self._fleet.refresh()
        page = await self._schedule_page(self._swept_up_to, from_record=True)
        self._swept_up_to = page[-1] if len(page) == WAITING_PAGE else None

    async def _schedule_waiting(self) -> None:
        """Schedule the waiting operations page by page, as long as there is free capacity.

        At most `PAGES_AT_ONCE`: capacity that none of them can use must not delay everything else.
        The sweep schedules the rest (`schedule_next_page`).
        """
        page = await self._schedule_page(None)
        for _ in range(PAGES_AT_ONCE - 1):
            if len(page) < WAITING_PAGE:
                return
            if not self.free_capacity(await self._fleet.hosts(), await self.learned()).any_left:
                return
            page = await self._schedule_page(page[-1])

    async def _schedule_page(
        self, after: OperationRecord | None, *, from_record: bool = False
    ) -> list[OperationRecord]:
        """Schedule a page of waiting operations.

        With `from_record`, jobs that are not in memory as in the record are read again.
        """
        page = await self._store.operation_queries.waiting(after=after, limit=WAITING_PAGE)
        jobs = list(dict.fromkeys(one.job_id for one in page if one.job_id))
        if from_record:
            self._lines.forget({one.job_id or "" for one in page if not self._lines.agree(one)})
        for start in range(0, len(jobs), JOBS_IN_A_PASS):
            part = jobs[start : start + JOBS_IN_A_PASS]
            if from_record:
                await self._record_missing(part)
            await self.schedule(part)
        return page

    async def _record_missing(self, job_ids: Sequence[str]) -> None:
        """Record jobs again that were deleted while operations on them entered their lines."""
        read = await self._lines.read(job_ids)
        found = {line.job.job_id for line in read.lines} | read.moved
        missing = [job_id for job_id in job_ids if job_id not in found]
        if missing:
            await self._lines.ensure(missing)

    async def _end(self, plan: SchedulingPlan) -> None:
        if plan.loads:
            plan.endings += await self._residency.load_first(plan.loads)
            self.wake(one.job.job_id for one in plan.loads)
        if not plan.endings:
            return
        await self._store.jobs.terminated_without_container(plan.terminated_jobs)
        if plan.terminated_jobs:
            crash_point("dispatcher.hold.after_jobs")
        ended = await self._store.operations.end_queued(plan.endings, token=_token())
        await self._store.deletions.unborn_jobs(one.job_id for one in ended if one.job_id)
        self.wake(one.job_id for one in ended if one.job_id)
        await self._event_log.publish([operation_event(one) for one in ended])

    async def _dispatch(self, dispatches: Sequence[PlannedDispatch]) -> None:
        if not dispatches:
            return
        token = _token()
        reserved = await self._reserve(dispatches, token)
        crash_point("dispatcher.after_reserve")
        held = await self._hold(reserved)
        crash_point("dispatcher.after_hold")
        assigned = await self._assign(held, token)
        crash_point("dispatcher.after_assign")
        now_assigned = {one.job.job_id for one in assigned}
        await self._leave([one for one in held if one.job.job_id in now_assigned])
        claimed = await self._store.operations.claim([one.claim for one in assigned], token=token)
        crash_point("dispatcher.after_claim")
        for one in claimed:
            self._lines.replace(one)
        await self._commands.publish(claimed, {one.job.job_id: one.job for one in assigned})
        crash_point("dispatcher.after_publish")
        await self._event_log.room()
        self._event_log.note(operation_event(one) for one in claimed)

    async def _reserve(
        self, wanted: Sequence[PlannedDispatch], token: str
    ) -> list[PlannedDispatch]:
        """Reserve capacity, with one update for each host; return the dispatches that may go on."""
        ready = [one for one in wanted if one.placement is None]
        by_host: dict[str, list[PlannedDispatch]] = defaultdict(list)
        for one in wanted:
            if one.rebinds and one.allocation is not None:
                if await self._store.hosts.rebind(one.host, one.allocation):
                    ready.append(one)
                else:
                    self.wake([one.job.job_id])
            elif one.placement is not None:
                by_host[one.host.host_id].append(one)
        for shares in by_host.values():
            if await self._reserve_together(shares, token):
                ready += shares
                continue
            # The snapshot was stale. Reserve one by one, so that the most urgent come first.
            for one in shares:
                if await self._reserve_together([one], token):
                    ready.append(one)
                else:
                    self.wake([one.job.job_id])
        return ready

    async def _reserve_together(self, shares: Sequence[PlannedDispatch], token: str) -> bool:
        host, wanted = shares[0].host, [one.allocation for one in shares if one.allocation]
        if not await self._store.hosts.reserve(host, wanted, token=token):
            return False
        self._fleet.replace(host, host.with_reserved(reservations_of(wanted, token)))
        return True

    async def _hold(self, ready: Sequence[PlannedDispatch]) -> list[PlannedDispatch]:
        """Hold what models need in memory; return the dispatches that may go on."""
        held: list[PlannedDispatch] = []
        for one in ready:
            if one.resident is None or await self._store.hosts.hold(
                one.host, one.job.job_id, one.generation, one.resident
            ):
                held.append(one)
            else:
                # The sweep schedules it: what was read may be right, and the host too small now.
                self._lines.forget([one.job.job_id])
        return held

    async def _assign(self, ready: Sequence[PlannedDispatch], token: str) -> list[PlannedDispatch]:
        """Make each operation its job's current one; inferences share the job unchanged.

        The dispatches that may go on are returned with their jobs as they are now.
        """
        exclusive = [one for one in ready if not one.operation.shared]
        assignments = {one.job.job_id: _assignment(one) for one in exclusive}
        won = await self._store.jobs.assign(list(assignments.values()), token=token)
        lost = [one for one in exclusive if one.job.job_id not in won]
        # One that was deleted after it was read is recorded again.
        await self._store.jobs.ensure(one.job.job_id for one in lost)
        self.wake(one.job.job_id for one in lost)
        assigned = [one for one in ready if one.operation.shared]
        for one in exclusive:
            if one.job.job_id in won:
                job = assignments[one.job.job_id].applied_to(one.job)
                self._lines.replace_job(job.job_id, before=one.job, after=job)
                assigned.append(replace(one, job=job))
        # What was bound anew within a host is the job's in any case: the sweep binds it back.
        placed = [one for one in lost if one.placement is not None and not one.rebinds]
        await self._release_unused(placed, token)
        return assigned

    async def _leave(self, relocated: Sequence[PlannedDispatch]) -> None:
        """Free what jobs held on the hosts from which they were relocated.

        The dispatches have the jobs as they were before they were assigned. Their old containers
        hold nothing in memory; the next inventory has them removed.
        """
        left: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for one in relocated:
            if one.relocates:
                log.info(
                    "job.relocated",
                    job_id=one.job.job_id,
                    from_host=one.job.host_id,
                    to=one.host.host_id,
                    devices=one.allocation.devices if one.allocation else (),
                    reason=one.operation.reason,
                )
            if one.relocates and not one.rebinds and one.job.host_id is not None:
                left[one.job.host_id].append((one.job.job_id, one.job.generation))
        if left:
            await self._store.hosts.release(left)
            self.wake_waiting()

    async def _release_unused(self, lost: Sequence[PlannedDispatch], token: str) -> None:
        """Free the reservations of jobs that another writer has assigned meanwhile.

        If that assignment uses this very reservation (same host and generation), it is kept.
        """
        if not lost:
            return
        jobs = await self._store.jobs.get_many([one.job.job_id for one in lost])
        unused: dict[str, list[str]] = defaultdict(list)
        for one in lost:
            job = jobs.get(one.job.job_id)
            if job is None or not job.owns(one.host.host_id, one.generation):
                unused[one.host.host_id].append(one.job.job_id)
        for host_id, job_ids in unused.items():
            await self._store.hosts.release_token(host_id, job_ids, token=token)


def _with_idle_models(lines: Sequence[JobLine]) -> set[str]:
    """Return the hosts of models in memory that nothing in line needs."""
    return {
        line.job.host_id
        for line in lines
        if line.job.host_id and line.job.state is JobState.LOADED and not line.operations
    }


def _assignment(one: PlannedDispatch) -> Assignment:
    return Assignment(
        job_id=one.job.job_id,
        seen_version=one.job.version,
        operation_id=one.operation.operation_id,
        epoch=one.operation.epoch + 1,
        generation=one.generation,
        host_id=one.host.host_id,
        spec=one.placement.spec if one.placement else None,
        dataset_spec=one.placement.dataset if one.placement else None,
        devices=one.allocation.devices if one.allocation else (),
        anew=one.placement is not None and one.operation.source != "system",
    )


def _token() -> str:
    """Return a mark for the writes of one pass, so that it can read back which of them won."""
    return uuid.uuid4().hex
