"""Relocations that are recorded while another pass goes on."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.retries import Retries
from dispatcher.reports.fencing import Fencing
from dispatcher.reports.report_writer import ReportWriter
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.offers import HostCapacity
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.messages import EngineFacts, HostOnline, OperationReport
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.contract.topology import EXCHANGES, host_queue
from modelyard.store.records import OperationRecord
from tests.support.dispatcher.parts import INCARNATION, JOB, DispatcherParts, new_operation

GIB = 1 << 30
LARGE = ModelSpec.model_validate(
    {
        "name": "large",
        "image": "large",
        "profile": Profile.OPEN_INFERENCE,
        "port": 8080,
        "resources": {"memory": "10g", "resident_memory": "9g"},
    }
)
HERE, ELSEWHERE, OTHER = "h1", "h2", "other"


@pytest.fixture
async def parts() -> AsyncIterator[DispatcherParts]:
    """Give the test two hosts, and a job on one of them whose memory another model takes."""
    made = DispatcherParts()
    for host_id in (HERE, ELSEWHERE):
        await made.broker.declare([host_queue(host_id)], exchanges=EXCHANGES)
        online = HostOnline(
            slots=10,
            engine=EngineFacts(version="20.10", api_version="1.41"),
            capacity=HostCapacity(cpus=64, memory=32 * GIB),
        )
        await made.store.hosts.come_online(host_id, INCARNATION, online)
    (here,) = await made.store.hosts.all([HERE])
    mine = Allocation(job_id=JOB, generation=1, memory=GIB)
    loaded = ResidentAllocation(version=1, memory=24 * GIB)
    others = Allocation(job_id=OTHER, generation=1, memory=GIB, resident=loaded)
    assert await made.store.hosts.reserve(here, [mine, others], token="t")
    for job_id, state in ((JOB, JobState.CREATED), (OTHER, JobState.LOADED)):
        made.load_job(job_id)
        document = made.database.collections["jobs"][job_id]
        made.database.write("jobs", document | {"state": state, "spec": LARGE.model_dump_json()})
    running = asyncio.create_task(made.event_log.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


async def line(parts: DispatcherParts) -> list[OperationRecord]:
    lines = await parts.store.jobs.lines([JOB])
    return [one for it in lines.lines for one in it.operations]


def writer_of(parts: DispatcherParts) -> ReportWriter:
    retries = Retries(parts.store, parts.event_log, parts.scheduler, max_attempts=3)
    fencing = Fencing(parts.store, parts.event_log, ControlPublisher(parts.broker))
    return ReportWriter(
        parts.store, parts.event_log, parts.scheduler, retries, fencing, parts.memory
    )


async def test_a_relocation_that_is_recorded_late_leaves_a_load_alone_that_has_started(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the job went elsewhere, and what it holds was given away while its model was loaded."""
    load = new_operation(Verb.DEPLOY_LOAD)
    await parts.put_in_line(load)
    next_positions = parts.store.operations.next_positions

    async def while_another_pass_loads_it(count: int) -> range:
        monkeypatch.undo()
        await parts.store.hosts.release({HERE: [(OTHER, 1)]})
        await parts.scheduler.schedule([JOB])
        return await next_positions(count)

    monkeypatch.setattr(parts.store.operations, "next_positions", while_another_pass_loads_it)
    await parts.scheduler.schedule([JOB])
    create, loading = await line(parts)
    assert (create.verb, loading.state) == (Verb.DEPLOY_CREATE, OperationState.DISPATCHED)
    await parts.scheduler.schedule([JOB])
    assert [one.state for one in await line(parts)] == [create.state, loading.state]

    succeeded = {
        "operation_id": load.operation_id,
        "epoch": 1,
        "job_id": JOB,
        "generation": 1,
        "state": OperationState.SUCCEEDED,
        "seq": 1,
        "job_state": JobState.LOADED,
    }
    report = OperationReport.model_validate(succeeded)
    await writer_of(parts).write([(HERE, report)], {})
    await parts.scheduler.schedule([JOB])
    assert await line(parts) == []
    job = await parts.store.jobs.get(JOB)
    assert job is not None
    assert (job.state, job.host_id, job.generation) == (JobState.LOADED, HERE, 1)
