"""Job restoration: puts the dispatcher's own operations at the front of a job's line.

The write that records a job as down also records that it is to be restored. `JobRestoration` then
adds the operations for that. Their ids derive from the job and that write, so adding them twice
changes nothing.
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
"""The tenant of the dispatcher's own operations. No client's tenant can have this name, so no
client can take the id of such an operation beforehand."""


class JobRestoration:
    """A repair of the sweep: adds the operations that restore jobs."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler

    async def put_in_line(self) -> None:
        """Put the operations of restorations in line; raises `StoreUnavailableError`."""
        for job in await self._store.jobs.pending_restorations(limit=LIMIT):
            if job.recovery is None or job.spec is None:
                continue
            await record_in_front(self._store, operations_for(job, job.recovery))
            crash_point("dispatcher.recovery.after_record")
            if await self._store.jobs.clear_restoration(job):
                log.info("job.brought_back", job_id=job.job_id, to=job.recovery.to)
                self._scheduler.wake([job.job_id])


def operations_for(job: JobRecord, recovery: RestorationRecord) -> list[NewOperation]:
    """Return the operations that bring a job back to the state of `recovery.to`."""
    verbs = [] if job.state is JobState.CREATED else [Verb.DEPLOY_CREATE]
    if recovery.to is JobState.LOADED:
        verbs.append(Verb.DEPLOY_LOAD)
    if not verbs:
        return []
    first, *others = (system_operation(job, verb, f"recovery/{recovery.key}") for verb in verbs)
    return [first.model_copy(update={"rest_s": recovery.rest_s}), *others]


def system_operation(job: JobRecord, verb: Verb, key: str) -> NewOperation:
    """Return an operation of the dispatcher itself; the same job, verb and key give the same id."""
    places = verb is Verb.DEPLOY_CREATE
    request = JobRequest(
        job_id=job.job_id,
        operation_type=verb,
        model=job.spec.name if job.spec and places else None,
        dataset=job.dataset_spec.name if job.dataset_spec and places else None,
    )
    operation_id = operation_id_for_key(f"{job.job_id}/{key}/{verb}", tenant=SYSTEM)
    return NewOperation.of(operation_id, request, "system")


async def record_in_front(store: Store, operations: list[NewOperation]) -> None:
    """Record operations ahead of all client operations in line; recorded ones stay unchanged."""
    if operations:
        lines = await store.operations.next_positions(len(operations))
        await store.operations.take_in(
            [(one, line + FRONT_OF_LINE) for one, line in zip(operations, lines, strict=True)]
        )
