"""Reconciling: compares the containers that a worker reports with the record, and repairs.

A worker reports all of its containers when it boots, and then every few seconds. A host's messages
are handled in their order. An inventory says nothing about jobs that were worked on while it was
made, nor about jobs with a later report. So any other difference from the record means that a
container changed by itself. The plans are pure; carrying them out twice is harmless.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from dispatcher.control import ControlPublisher
from dispatcher.events import EventLog, host_event, observed_event, stale_host_event
from dispatcher.maintenance.orphans import Orphans
from dispatcher.maintenance.retries import Retries
from dispatcher.scheduling.local_content import LocalContents
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.deaths import death_of, over_memory
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import (
    DiscardContainer,
    HostOnline,
    Inventory,
    InventoryItem,
    RepeatReport,
)
from modelyard.contract.retries import retry_delay_s
from modelyard.contract.states import JobState, OperationState
from modelyard.process.crash_points import crash_point
from modelyard.process.tasks import together
from modelyard.store import Store
from modelyard.store.records import JobRecord, OperationRecord, RestorationRecord

log = structlog.get_logger(__name__)

_NEVER_RESTORED_AFTER = frozenset({ErrorCode.DISK_QUOTA_EXCEEDED})
"""Errors after which no job is restored: its container would fail the same way again."""


@dataclass(frozen=True, slots=True)
class BootReport:
    """A worker came online with a new incarnation."""

    host_id: str
    incarnation: str
    online: HostOnline
    number: int = 0


@dataclass(frozen=True, slots=True)
class InventoryReport:
    """A worker listed all of its containers."""

    host_id: str
    incarnation: str
    inventory: Inventory
    number: int = 0
    """The number of the message with the report."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A job that differs from its record, and what its record should be."""

    job: JobRecord
    state: JobState
    error: ErrorInfo | None
    recovery: RestorationRecord | None = None
    container: InventoryItem | None = None
    """Its dead or useless container, which is to be removed."""

    @property
    def is_missing(self) -> bool:
        """Tell whether the job has no container where it should have one."""
        return self.error is not None and self.error.code is ErrorCode.CONTAINER_MISSING


@dataclass(slots=True)
class InventoryPlan:
    """The repairs that follow from the containers of a host."""

    findings: list[Finding] = field(default_factory=list)
    discards: list[InventoryItem] = field(default_factory=list)
    """Containers of earlier generations, or of jobs that ended or are on another host."""
    orphans: list[InventoryItem] = field(default_factory=list)
    """Containers that are not in the record."""


def plan_inventory_repairs(
    report: InventoryReport,
    jobs: Mapping[str, JobRecord],
    active: Sequence[OperationRecord],
    *,
    booted: bool = False,
) -> InventoryPlan:
    """Compare a host's containers with the jobs that are on it or that they name; pure.

    `active` are the host's active operations. An inventory report may be handled twice or late, so
    the record may be newer: jobs with a later report are left out.
    """
    plan = InventoryPlan()
    host_id, inventory = report.host_id, report.inventory
    # A new incarnation has no work yet: all active operations belong to an earlier one.
    worked_on = set(inventory.busy)
    at_work = set[str]()
    if not booted:
        # Jobs that any active operation uses: their old containers stay. An inference may still
        # run in the old container of a job that has moved to another host.
        at_work = {one.job_id or "" for one in active}
        worked_on |= {one.job_id or "" for one in active if not one.shared}
    found = {(item.job_id, item.generation): item for item in inventory.items}
    for job in jobs.values():
        newer = job.told is not None and job.told.after(report.incarnation, report.number)
        here = job.host_id == host_id and job.state.live
        if here and not newer and job.job_id not in worked_on:
            finding = _compare_job(job, found.get((job.job_id, job.generation)), booted=booted)
            if finding is not None:
                plan.findings.append(finding)
    for item in inventory.items:
        if item.job_id in inventory.busy:
            continue
        owner = jobs.get(item.job_id)
        if owner is None or item.generation >= owner.next_generation:
            plan.orphans.append(item)
        elif not owner.owns(host_id, item.generation) and item.job_id not in at_work:
            plan.discards.append(item)
    return plan


def missing_final_reports(
    report: InventoryReport, active: Sequence[OperationRecord]
) -> list[OperationRecord]:
    """Return operations that are RUNNING in the record but not at their worker; pure.

    An inventory report is sent after the reports of all operations that had ended. So if it does
    not list an operation's job as busy, the operation's last report was lost. If the inventory
    report is handled late the result may be wrong, which costs one repeated report that changes
    nothing.
    """
    return [
        one
        for one in active
        if one.state is OperationState.RUNNING
        and one.incarnation == report.incarnation
        and one.job_id not in report.inventory.busy
    ]


def _compare_job(job: JobRecord, item: InventoryItem | None, *, booted: bool) -> Finding | None:
    """Return the finding for a live job's container; null if it is as recorded."""
    if item is None:
        return _down(job, ErrorInfo.of(ErrorCode.CONTAINER_MISSING), None, in_place=False)
    if job.state is not JobState.LOADED:
        return None
    if not item.running:
        return _down(job, _death_of(job, item), item, in_place=True)
    if item.unhealthy:
        error = item.error or ErrorInfo.of(ErrorCode.UNHEALTHY)
        return _down(job, error, item, in_place=False)
    if booted and _says_it_is_out(item):
        return Finding(job, JobState.CREATED, None)
    return None


def _says_it_is_out(item: InventoryItem) -> bool:
    """Tell whether the model server says that its model is not in memory.

    No answer does not count as a no. A worker of an earlier version sends no `answer`, and can't
    tell the two apart.
    """
    return not item.loaded if item.answer is None else item.answer == "no"


def _down(
    job: JobRecord, error: ErrorInfo, item: InventoryItem | None, *, in_place: bool
) -> Finding:
    recovery = None if error.code in _NEVER_RESTORED_AFTER else restoration_of(job, to=job.state)
    if recovery is not None and in_place:
        # The container still exists: the job stays on its host and only has to be loaded.
        return Finding(job, JobState.CREATED, error, recovery)
    return Finding(job, JobState.FAILED, error, recovery, item)


def restoration_of(job: JobRecord, *, to: JobState) -> RestorationRecord | None:
    """Return the restoration of a job whose container died.

    Null if its model does not ask for one (`restart`), or has used up its `max_restarts`.
    """
    if job.spec is None or job.spec.restart != "on_failure":
        return None
    restarts = 0 if job.steady else job.restarts
    if restarts >= job.spec.max_restarts:
        return None
    return RestorationRecord(to=to, key=job.version, rest_s=retry_delay_s(restarts + 1))


def restoration_again(job: JobRecord) -> RestorationRecord | None:
    """Return the restoration of a job that was down already, and whose container is gone now too.

    It is one death, which was counted when it was found first: so no limit applies.
    """
    if job.spec is None or job.spec.restart != "on_failure":
        return None
    rest_s = retry_delay_s(max(1, job.restarts))
    return RestorationRecord(to=JobState.LOADED, key=job.version, rest_s=rest_s)


def _death_of(job: JobRecord, item: InventoryItem) -> ErrorInfo:
    """Return why a container died: what its worker says, with the limit that only the job knows."""
    memory = job.spec.resources.memory if job.spec else None
    if item.error is None:
        return death_of(
            item.exit_code,
            oom_killed=item.oom_killed,
            disk_exceeded=item.disk_exceeded,
            memory=memory,
        )
    if item.error.code is ErrorCode.OOM_KILLED and memory is not None:
        return item.error.model_copy(update={"message": over_memory(memory)})
    return item.error


class Reconciler:
    """Handles boot and inventory reports. Handling one again is harmless."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        scheduler: Scheduler,
        control: ControlPublisher,
        retries: Retries,
        orphans: Orphans,
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._control = control
        self._retries = retries
        self._orphans = orphans
        self._local_contents = LocalContents(store)

    def forget(self, host_ids: Collection[str]) -> None:
        """Keep nothing of hosts that were deleted."""
        self._local_contents.forget(host_ids)
        self._orphans.forget(host_ids)

    async def handle_boot(self, boot: BootReport) -> None:
        """Record a new incarnation and recover the interrupted work of the one before.

        Raises `StoreUnavailableError`.
        """
        if not await self._store.hosts.come_online(boot.host_id, boot.incarnation, boot.online):
            await self._fence_off(boot, "announcement")
            return
        self._local_contents.forget([boot.host_id])
        crash_point("dispatcher.boot.after_online")
        active = await self._store.operation_queries.on_host(boot.host_id)
        interrupted = [one for one in active if one.incarnation != boot.incarnation]
        inventory = Inventory(items=boot.online.inventory)
        found = InventoryReport(boot.host_id, boot.incarnation, inventory, boot.number)
        jobs = await self._jobs([found])
        plan = plan_inventory_repairs(found, jobs, interrupted, booted=True)
        plan.discards += await self._correct(boot.host_id, plan.findings)
        crash_point("dispatcher.boot.after_jobs")
        for operation in interrupted:
            await self._retries.interrupted(operation, begun_known=boot.online.begun_known)
        crash_point("dispatcher.boot.after_operations")
        await self._remove(boot.host_id, boot.incarnation, plan)
        log.info(
            "host.online",
            host_id=boot.host_id,
            incarnation=boot.incarnation,
            containers=len(boot.online.inventory),
            interrupted=len(interrupted),
            corrected=len(plan.findings),
        )
        self._scheduler.wake(job.job_id for job in await self._store.jobs.on_host(boot.host_id))
        self._scheduler.wake_waiting()
        await self._event_log.publish([host_event(boot.host_id, "online", boot.incarnation)])

    async def handle_inventories(self, reports: Sequence[InventoryReport]) -> None:
        """Repair what the inventory reports of several hosts show; the record is read once for all.

        Raises `StoreUnavailableError`.
        """
        boots = await self._store.hosts.incarnations(one.host_id for one in reports)
        current: list[InventoryReport] = []
        for report in reports:
            if boots.get(report.host_id) == report.incarnation:
                current.append(report)
            else:
                await self._fence_off(report, "inventory")
        if not current:
            return
        await self._local_contents.record({one.host_id: one.inventory.local for one in current})
        active, jobs = await together(
            self._store.operation_queries.on_hosts([one.host_id for one in current]),
            self._jobs(current),
        )
        at_work: dict[str | None, list[OperationRecord]] = defaultdict(list)
        for operation in active:
            at_work[operation.host_id].append(operation)
        there: dict[str | None, dict[str, JobRecord]] = defaultdict(dict)
        for job in jobs.values():
            there[job.host_id][job.job_id] = job
        for report in current:
            named = {item.job_id for item in report.inventory.items} & jobs.keys()
            mine = there[report.host_id] | {job_id: jobs[job_id] for job_id in named}
            await self._repair(report, mine, at_work[report.host_id])

    async def _repair(
        self,
        report: InventoryReport,
        jobs: Mapping[str, JobRecord],
        active: Sequence[OperationRecord],
    ) -> None:
        plan = plan_inventory_repairs(report, jobs, active)
        self._orphans.listed[report.host_id] = len(report.inventory.items)
        plan.discards += await self._correct(report.host_id, plan.findings)
        await self._remove(report.host_id, report.incarnation, plan)
        await self._request_missing_reports(report, active)

    async def _request_missing_reports(
        self, report: InventoryReport, active: Sequence[OperationRecord]
    ) -> None:
        """Ask the worker to repeat reports that were lost, for example with a deleted queue."""
        silent = missing_final_reports(report, active)
        if silent:
            log.warning("reports.lost", host_id=report.host_id, count=len(silent))
            await self._control.send(
                report.host_id,
                report.incarnation,
                repeats=[
                    RepeatReport(operation_id=one.operation_id, epoch=one.epoch) for one in silent
                ],
            )

    async def _fence_off(self, late: BootReport | InventoryReport, what: str) -> None:
        """Log and count a report of an earlier incarnation, each message once."""
        log.info("host.old_boot", host_id=late.host_id, incarnation=late.incarnation, what=what)
        note = stale_host_event(late.host_id, late.incarnation, late.number, what=what)
        if await self._event_log.record([note]):
            await self._store.hosts.count_fenced_off({(late.host_id, "other_incarnation"): 1})

    async def _jobs(self, reports: Sequence[InventoryReport]) -> dict[str, JobRecord]:
        """Return the jobs that are on the reporting hosts, and those that the reports name."""
        there = await self._store.jobs.on_hosts([one.host_id for one in reports])
        jobs = {job.job_id: job for job in there}
        named = {item.job_id for one in reports for item in one.inventory.items}
        if elsewhere := named - jobs.keys():
            jobs |= await self._store.jobs.get_many(sorted(elsewhere))
        return jobs

    async def _correct(self, host_id: str, findings: Sequence[Finding]) -> list[InventoryItem]:
        """Write the findings; return the containers that are to be removed."""
        useless: list[InventoryItem] = []
        coming = await self._coming([found.job for found in findings if found.is_missing])
        for found in findings:
            job = found.job
            if found.is_missing and job.job_id in coming:
                continue
            if not await self._store.jobs.observe(
                job, found.state, found.error, recovery=found.recovery
            ):
                continue
            crash_point("dispatcher.found_down.after_job")
            log.warning(
                "job.found_down",
                job_id=job.job_id,
                host_id=host_id,
                was=job.state,
                now=found.state,
                code=found.error.code if found.error else None,
                comes_back=found.recovery is not None,
            )
            if found.container is not None:
                useless.append(found.container)
            if not found.state.live:
                await self._store.hosts.release({host_id: [(job.job_id, job.generation)]})
                self._scheduler.wake_waiting()
            self._scheduler.wake([job.job_id])
            await self._event_log.publish([observed_event(job, found.state, found.error, host_id)])
        return useless

    async def _coming(self, jobs: Sequence[JobRecord]) -> set[str]:
        """Return the jobs whose containers are still to be created, by operations that are open.

        A relocated job is assigned to its next place, and its operation is still QUEUED then.
        """
        creating = {one.current.operation_id: one.job_id for one in jobs if one.current}
        if not creating:
            return set()
        known = await self._store.operation_queries.get_many(list(creating))
        return {
            creating[one.operation_id]
            for one in known.values()
            if one.places and not one.state.terminal
        }

    async def _remove(self, host_id: str, incarnation: str, plan: InventoryPlan) -> None:
        """Tell the worker to remove stale containers and orphans.

        The next inventory report causes the same message again if they are still there.
        """
        orphans = self._orphans.due(host_id, plan.orphans)
        doomed = [
            DiscardContainer(
                container_id=item.container_id, job_id=item.job_id, generation=item.generation
            )
            for item in (*plan.discards, *orphans)
        ]
        if doomed:
            log.info("containers.discarded", host_id=host_id, count=len(doomed))
            await self._control.send(host_id, incarnation, discards=doomed)
