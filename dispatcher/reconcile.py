"""Reconciling: what the record expects against what a host found on itself after a boot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from dispatcher.facts import Facts, host_event, operation_event
from dispatcher.scheduler import Scheduler
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import HostOnline, InventoryItem
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store import Store
from modelyard.store.records import JobRecord, OperationRecord

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Booted:
    """A host's worker came online."""

    host_id: str
    incarnation: str
    online: HostOnline


@dataclass(slots=True)
class BootPlan:
    """What a boot means for the operations and jobs of its host."""

    requeue: list[OperationRecord] = field(default_factory=list)
    fail: list[OperationRecord] = field(default_factory=list)
    observe: list[tuple[JobRecord, JobState, ErrorInfo | None]] = field(default_factory=list)


def plan_boot(
    incarnation: str,
    inventory: Sequence[InventoryItem],
    jobs: Sequence[JobRecord],
    operations: Sequence[OperationRecord],
    *,
    max_attempts: int,
) -> BootPlan:
    """Decide over a snapshot; pure.

    Operations of an earlier boot go back to the queue: every verb but INFER may be given again,
    because the worker first looks at what holds already. A job whose container is gone FAILED; one
    whose model is not in memory any more is CREATED.
    """
    plan = BootPlan()
    for operation in operations:
        if operation.incarnation == incarnation:
            continue
        started = operation.state is OperationState.RUNNING
        if started and (operation.verb is Verb.INFER or operation.epoch >= max_attempts):
            plan.fail.append(operation)
        else:
            plan.requeue.append(operation)
    found = {(item.job_id, item.generation): item for item in inventory}
    for job in jobs:
        if job.state.live:
            state = _observed(job, found)
            if state is not job.state:
                plan.observe.append((job, state, _missing() if not state.live else None))
    return plan


def _observed(job: JobRecord, found: Mapping[tuple[str, int], InventoryItem]) -> JobState:
    item = found.get((job.job_id, job.generation))
    if item is None:
        return JobState.FAILED
    return job.state if item.loaded or job.state is JobState.CREATED else JobState.CREATED


def _missing() -> ErrorInfo:
    return ErrorInfo.of(ErrorCode.CONTAINER_MISSING)


class Reconciler:
    """Carries out what a boot means. Everything it does may be done again."""

    def __init__(
        self, store: Store, facts: Facts, scheduler: Scheduler, *, max_attempts: int
    ) -> None:
        self._store = store
        self._facts = facts
        self._scheduler = scheduler
        self._max_attempts = max_attempts

    async def boot(self, boot: Booted) -> None:
        """Record a boot and repair what it left open; raises `StoreUnavailableError`."""
        if not await self._store.hosts.come_online(boot.host_id, boot.incarnation, boot.online):
            log.info("host.old_boot", host_id=boot.host_id, incarnation=boot.incarnation)
            return
        jobs = await self._store.jobs.on_host(boot.host_id)
        plan = plan_boot(
            boot.incarnation,
            boot.online.inventory,
            jobs,
            await self._store.operations.on_host(boot.host_id),
            max_attempts=self._max_attempts,
        )
        await self._carry_out(plan, boot)
        log.info(
            "host.online",
            host_id=boot.host_id,
            incarnation=boot.incarnation,
            containers=len(boot.online.inventory),
            requeued=len(plan.requeue),
            failed=len(plan.fail),
            corrected=len(plan.observe),
        )
        self._scheduler.wake(job.job_id for job in jobs)
        self._scheduler.wake_waiting()
        await self._facts.tell([host_event(boot.host_id, "online", boot.incarnation)])

    async def _carry_out(self, plan: BootPlan, boot: Booted) -> None:
        freed: list[tuple[str, int]] = []
        for job, state, error in plan.observe:
            if await self._store.jobs.observe(job, state, error) and not state.live:
                freed.append((job.job_id, job.generation))
        for operation in plan.requeue:
            await self._store.operations.requeue(operation)
        interrupted = ErrorInfo.of(ErrorCode.WORKER_INTERRUPTED)
        for operation in plan.fail:
            if await self._store.operations.end_given(operation, OperationState.FAILED, interrupted):
                freed += await self._fail_job(operation, interrupted)
        await self._store.hosts.release({boot.host_id: freed})
        ids = [operation.operation_id for operation in (*plan.requeue, *plan.fail)]
        now = await self._store.operations.get_many(ids)
        await self._facts.tell([operation_event(operation) for operation in now.values()])

    async def _fail_job(
        self, operation: OperationRecord, error: ErrorInfo
    ) -> list[tuple[str, int]]:
        """Let a job go that was being placed by an operation which is given up."""
        job = await self._store.jobs.get(operation.job_id or "")
        if job is None or job.state.live or job.current is None:
            return []
        if job.current.operation_id != operation.operation_id:
            return []
        if not await self._store.jobs.observe(job, JobState.FAILED, error):
            return []
        return [(job.job_id, job.generation)]
