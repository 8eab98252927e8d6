"""The dispatcher's own operations: ordinary ones of the record, each with its reason.

Their ids derive from the job and what they are for, so recording one twice changes nothing.
"""

from collections.abc import Sequence
from datetime import datetime

from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import Verb
from modelyard.scheduling.leaving import TAKES_OUT
from modelyard.scheduling.ordering import CONTAINER_ID
from modelyard.store import Store
from modelyard.store.operations import FRONT_OF_LINE
from modelyard.store.records import JobRecord, NewOperation

SYSTEM = "~system"
"""The tenant of the dispatcher's own operations. No client's tenant can have this name, so no
client can take the id of such an operation beforehand."""


_PERIOD_S = 10.0


def period(now: datetime) -> int:
    """Return a part of a key that changes with time.

    So an operation that a client has cancelled is followed by another one, if it is still needed.
    """
    return int(now.timestamp() // _PERIOD_S)


def system_operation(job: JobRecord, verb: Verb, key: str, reason: str) -> NewOperation:
    """Return an operation of the dispatcher itself; the same job, verb and key give the same id.

    One that takes a model out of memory is meant for the container that the job has now. If the job
    has another one when its turn comes, it is rejected: it was put in line too late.
    """
    places = verb is Verb.DEPLOY_CREATE
    request = JobRequest(
        job_id=job.job_id,
        operation_type=verb,
        model=job.spec.name if job.spec and places else None,
        dataset=job.dataset_spec.name if job.dataset_spec and places else None,
        container_id=_named(job.container_id) if verb in TAKES_OUT else None,
    )
    operation_id = operation_id_for_key(f"{job.job_id}/{key}/{verb}", tenant=SYSTEM)
    made = NewOperation.of(operation_id, request, "system")
    return made.model_copy(update={"reason": reason})


def _named(container_id: str | None) -> str | None:
    """Return a container's id if an operation can name it: workers report any text as one."""
    return container_id if container_id and CONTAINER_ID.fullmatch(container_id) else None


async def record_in_front(
    store: Store, operations: Sequence[NewOperation], *, shift: int = FRONT_OF_LINE
) -> None:
    """Record operations ahead of all client operations in line; recorded ones stay unchanged.

    Among those that are recorded with the same `shift` the earlier ones go first.
    """
    if operations:
        lines = await store.operations.next_positions(len(operations))
        await store.operations.take_in(
            [(one, line + shift) for one, line in zip(operations, lines, strict=True)]
        )
