"""Bringing jobs back: operations of our own, at the front of the job's line.

That a job is to be brought back is written together with the fact that it is down; here it gets
its operations. Their ids follow from the job and that write, so that doing it twice is doing it
once.
"""

import structlog

from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import JobState, Verb
from modelyard.process.crash_points import crash_point
from modelyard.store import Store
from modelyard.store.operations import FRONT_OF_LINE
from modelyard.store.records import JobRecord, NewOperation, RestorationRecord

log = structlog.get_logger(__name__)

LIMIT = 200
SYSTEM = "~system"
"""No tenant can have this name, so that no client can take the id of a recovery beforehand."""


class JobRestoration:
    """A repair of the sweep."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler

    async def put_in_line(self) -> None:
        """Put what brings jobs back in their lines; raises `StoreUnavailableError`."""
        for job in await self._store.jobs.to_bring_back(limit=LIMIT):
            if job.recovery is None or job.spec is None:
                continue
            await record_in_front(self._store, operations_for(job, job.recovery))
            crash_point("dispatcher.recovery.after_record")
            if await self._store.jobs.in_line_again(job):
                log.info("job.brought_back", job_id=job.job_id, to=job.recovery.to)
                self._scheduler.wake([job.job_id])


def operations_for(job: JobRecord, recovery: RestorationRecord) -> list[NewOperation]:
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


async def record_in_front(store: Store, operations: list[NewOperation]) -> None:
    """Record operations before all that clients have in line; known ones stay as they are."""
    if operations:
        lines = await store.operations.next_lines(len(operations))
        await store.operations.take_in(
            [(one, line + FRONT_OF_LINE) for one, line in zip(operations, lines, strict=True)]
        )
