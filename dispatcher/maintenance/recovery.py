"""Job restoration: puts the dispatcher's own operations at the front of a job's line.

The write that records a job as down also records that it is to be restored. `JobRestoration` then
adds the operations for that. Their ids derive from the job and that write, so adding them twice
changes nothing.
"""

from collections.abc import Mapping

import structlog

from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.scheduling.system_operations import record_in_front, system_operation
from modelyard.contract.states import JobState, OperationState, SystemReason, Verb
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.jobs import HeadOfLine
from modelyard.store.operations import BEFORE_THE_FRONT, FRONT_OF_LINE
from modelyard.store.records import JobRecord, NewOperation, RestorationRecord

log = structlog.get_logger(__name__)

LIMIT = 200


class JobRestoration:
    """A repair of the sweep: adds the operations that restore jobs."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler

    async def put_in_line(self) -> None:
        """Put the operations of restorations in line; raises `StoreUnavailableError`."""
        jobs = await self._store.jobs.pending_restorations(limit=LIMIT)
        if not jobs:
            return
        heads = await self._store.jobs.heads_of_lines([one.job_id for one in jobs], limit=1)
        for job in jobs:
            if job.recovery is None or job.spec is None:
                continue
            shift = BEFORE_THE_FRONT if _waits_to_load(job, heads) else FRONT_OF_LINE
            await record_in_front(self._store, operations_for(job, job.recovery), shift=shift)
            crash_point("dispatcher.recovery.after_record")
            if await self._store.jobs.clear_restoration(job):
                log.info("job.brought_back", job_id=job.job_id, to=job.recovery.to)
                self._scheduler.wake([job.job_id])


def _waits_to_load(job: JobRecord, heads: Mapping[str, HeadOfLine]) -> bool:
    """Tell whether a job has lost its container before the LOAD of its restoration began.

    The job is restored before that LOAD, which would be rejected now.
    """
    head = heads.get(job.job_id)
    if head is None or job.state is not JobState.FAILED:
        return False
    first = head.operations[0]
    waits = first.verb is Verb.DEPLOY_LOAD and first.state is OperationState.QUEUED
    return waits and SystemReason.RECOVERY.gave(first.reason)


def operations_for(job: JobRecord, recovery: RestorationRecord) -> list[NewOperation]:
    """Return the operations that bring a job back to the state of `recovery.to`."""
    verbs = [] if job.state is JobState.CREATED else [Verb.DEPLOY_CREATE]
    if recovery.to is JobState.LOADED:
        verbs.append(Verb.DEPLOY_LOAD)
    if not verbs:
        return []
    first, *others = (
        system_operation(job, verb, f"recovery/{recovery.key}", SystemReason.RECOVERY)
        for verb in verbs
    )
    return [first.model_copy(update={"rest_s": recovery.rest_s}), *others]
