"""Jobs, hosts and lines that are written straight into a store, without a dispatcher."""

import uuid
from collections.abc import Iterable

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec, Profile, Residency
from modelyard.contract.messages import EngineFacts, HostOnline, JobRequest
from modelyard.contract.states import JobState, Verb
from modelyard.store import Store
from modelyard.store.jobs import Assignment, JobEffect
from modelyard.store.operations import FRONT_OF_LINE
from modelyard.store.records import JobRecord, NewOperation

HOST = "h-1"


def spec_of(name: str = "m", *, on_demand: bool = False, max_concurrency: int = 1) -> ModelSpec:
    """Return a model that is served over HTTP."""
    return ModelSpec(
        name=name,
        image="x/y",
        profile=Profile.OPEN_INFERENCE,
        port=8080,
        max_concurrency=max_concurrency,
        residency=Residency(on_demand=on_demand),
    )


async def host_online(store: Store, host_id: str = HOST, *, boot: str = "boot") -> None:
    """Bring a host online, as each boot of its worker does."""
    facts = EngineFacts(version="1", api_version="1")
    await store.hosts.come_online(host_id, boot, HostOnline(slots=None, engine=facts))


async def placed(
    store: Store,
    job_id: str,
    state: JobState = JobState.LOADED,
    spec: ModelSpec | None = None,
    *,
    host_id: str = HOST,
    dataset: str | None = None,
) -> JobRecord:
    """Bring a job to a state by the writes that the dispatcher makes."""
    await store.jobs.ensure([job_id])
    job = await store.jobs.get(job_id)
    assert job is not None
    generation, operation_id = job.generation + 1, uuid.uuid4().hex
    given = DatasetSpec(name=dataset, path="/srv/data") if dataset else None
    assignment = Assignment(
        job_id, job.version, operation_id, 1, generation, host_id, spec or spec_of(), given
    )
    assert await store.jobs.assign([assignment], token=operation_id) == {job_id}
    for number, next_state in enumerate(_way_to(state), start=1):
        effect = JobEffect(
            job_id, operation_id, 1, number, generation, host_id, next_state, "c" * 64, None
        )
        assert await store.jobs.apply([effect]) == 1
    made = await store.jobs.get(job_id)
    assert made is not None
    return made


def _way_to(state: JobState) -> list[JobState]:
    if state in (JobState.NONE, JobState.CREATED):
        return [] if state is JobState.NONE else [state]
    return [JobState.CREATED, state]


async def in_line(
    store: Store, job_id: str, verbs: Iterable[Verb], *, in_front: bool = False
) -> list[NewOperation]:
    """Put operations in the line of a job."""
    new = [
        NewOperation.of(
            uuid.uuid4().hex,
            JobRequest(
                job_id=job_id,
                operation_type=verb,
                model="m" if verb in (Verb.DEPLOY_CREATE, Verb.TEMP) else None,
                input=1 if verb is Verb.INFER else None,
            ),
            "http",
        )
        for verb in verbs
    ]
    lines = await store.operations.next_positions(len(new))
    shift = FRONT_OF_LINE if in_front else 0
    await store.operations.take_in(
        [(one, line + shift) for one, line in zip(new, lines, strict=True)]
    )
    return new
