"""Reads what an explanation needs: all of it at about the same moment."""

from collections import defaultdict
from statistics import median

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.views import Explanation
from modelyard.process.tasks import together
from modelyard.scheduling.explaining import MOST_HOSTS, Facts, explain
from modelyard.store import Store
from modelyard.store.capacity.footprints import learned_of
from modelyard.store.records import HostRecord, JobLine, OperationRecord

MOST_RESIDENTS = 200
LATELY = 20
"""Operations of the job from which it is known how long they take."""


async def explanation_of(store: Store, operation_id: str) -> Explanation | None:
    """Return why an operation has not started; None if it is unknown.

    Raises `StoreUnavailableError`.
    """
    operation = await store.operation_queries.get(operation_id)
    if operation is None:
        return None
    now = await store.time()
    in_line = operation.state is OperationState.QUEUED and operation.line is not None
    if operation.job_id is None or not in_line:
        return explain(Facts(operation, now))
    read, hosts, spec = await together(
        store.jobs.lines([operation.job_id]), store.hosts.all(), _spec(store, operation)
    )
    more_urgent, took_s = await together(
        store.operation_queries.more_urgent(operation), _took_s(store, operation.job_id)
    )
    line = read.lines[0] if read.lines else None
    model = spec or (line.job.spec if line else None)
    here = [one for one in line.operations if one.operation_id == operation_id] if line else []
    facts = Facts(
        operation=operation.model_copy(update={"resting": here[0].resting}) if here else operation,
        now=now,
        line=line,
        spec=spec,
        hosts=hosts,
        more_urgent=more_urgent,
        residents=await _residents(store, hosts, line),
        learned=await _learned(store, model),
        took_s=took_s,
    )
    return explain(facts)


async def _spec(store: Store, operation: OperationRecord) -> ModelSpec | None:
    if not operation.places or operation.model is None:
        return None
    return (await store.models.get_many([operation.model])).get(operation.model)


async def _learned(store: Store, model: ModelSpec | None) -> Learned:
    if model is None:
        return NOTHING_LEARNED
    known = learned_of(await store.footprints.of_model(model.name))
    return known.get((model.name, model.image), NOTHING_LEARNED)


async def _residents(
    store: Store, hosts: list[HostRecord], line: JobLine | None
) -> dict[str, JobLine]:
    """Return the jobs that hold memory on the hosts that are looked at."""
    here = line.job.host_id if line else None
    looked_at = [one for one in hosts if here is None or one.host_id == here][:MOST_HOSTS]
    held = [it.job_id for host in looked_at for it in host.reservations if it.resident]
    read = await store.jobs.lines(held[:MOST_RESIDENTS])
    return {one.job.job_id: one for one in read.lines}


async def _took_s(store: Store, job_id: str) -> dict[Verb, float]:
    page = await store.operation_queries.page({"job_id": job_id}, after=None, limit=LATELY)
    found: dict[Verb, list[float]] = defaultdict(list)
    for one in page.items:
        done = one.state is OperationState.SUCCEEDED and one.verb is not None
        if done and one.verb and one.started_at and one.finished_at:
            found[one.verb].append((one.finished_at - one.started_at).total_seconds())
    return {verb: median(seconds) for verb, seconds in found.items()}
