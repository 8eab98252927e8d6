"""Bringing jobs back: operations of our own, at the front of the job's line.

That a job is to be brought back is written together with the fact that it is down; here it gets
its operations. Their ids follow from the job and that write, and their places in line from a number
that is written before, so that doing it twice is doing it once. A later recovery goes before what
an earlier one has left in line: there may be a load that waits for this creation.
"""

import structlog

from dispatcher.scheduler import Scheduler
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import JobState, Verb
from modelyard.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.operations import FRONT_OF_LINE
from modelyard.store.records import JobRecord, NewOperation, Recovery

log = structlog.get_logger(__name__)

LIMIT = 200
SYSTEM = "system"
_MOST_VERBS = 2
"""A recovery creates and loads; each has its own places in line."""


class BringBack:
    """A repair of the sweep."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler

    async def put_in_line(self) -> None:
        """Put what brings jobs back in their lines; raises `StoreUnavailableError`."""
        waiting = await self._store.jobs.to_bring_back(limit=LIMIT)
        new = [job for job in waiting if job.recovery and job.recovery.place is None]
        if new:
            places = await self._store.operations.next_lines(len(new))
            for job, place in zip(new, places, strict=True):
                await self._store.jobs.place_recovery(job, place)
            crash_point("dispatcher.recovery.after_place")
            waiting = await self._store.jobs.to_bring_back(limit=LIMIT)
        for job in waiting:
            if job.recovery is None or job.recovery.place is None or job.spec is None:
                continue
            first = FRONT_OF_LINE - job.recovery.place * _MOST_VERBS
            made = operations_for(job, job.recovery)
            await self._store.operations.take_in(
                [(one, first + number) for number, one in enumerate(made)]
            )
            crash_point("dispatcher.recovery.after_record")
            if await self._store.jobs.in_line_again(job):
                log.info("job.brought_back", job_id=job.job_id, to=job.recovery.to)
                self._scheduler.wake([job.job_id])


def operations_for(job: JobRecord, recovery: Recovery) -> list[NewOperation]:
    """Return what leads a job from where it is to where it was."""
    verbs = [] if job.state is JobState.CREATED else [Verb.DEPLOY_CREATE]
    if recovery.to is JobState.LOADED:
        verbs.append(Verb.DEPLOY_LOAD)
    made = [system_operation(job, verb, f"recovery/{recovery.key}") for verb in verbs]
    return [made[0].model_copy(update={"rest_s": recovery.rest_s}), *made[1:]] if made else []


def system_operation(job: JobRecord, verb: Verb, why: str) -> NewOperation:
    """Return an operation of ours on a job; the same `why` gives the same operation."""
    places = verb is Verb.DEPLOY_CREATE
    request = JobRequest(
        job_id=job.job_id,
        operation_type=verb,
        model=job.spec.name if job.spec and places else None,
        dataset=job.dataset_spec.name if job.dataset_spec and places else None,
    )
    key = operation_id_for_key(f"{job.job_id}/{why}/{verb}", tenant=SYSTEM)
    return NewOperation.of(key, request, "system")


async def record_in_front(store: Store, operation: NewOperation) -> None:
    """Record an operation before all that clients have in line, unless it is there already."""
    (line,) = await store.operations.next_lines(1)
    await store.operations.take_in([(operation, line + FRONT_OF_LINE)])
