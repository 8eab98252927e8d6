"""The dispatcher's own operations that are put in line for a state which is over by then."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from dispatcher.control import ControlPublisher
from dispatcher.maintenance.drains import Drains
from dispatcher.maintenance.idle_unloads import IdleUnloads
from dispatcher.maintenance.retries import Retries
from dispatcher.scheduling.lines import LinesRead
from dispatcher.scheduling.system_operations import record_in_front, system_operation
from modelyard.contract.catalog.entries import Residency
from modelyard.contract.states import JobState, OperationState, SystemReason, Verb
from modelyard.store.records import JobRecord, OperationRecord
from tests.support.dispatcher.parts import HOST, JOB, MODEL, DispatcherParts, new_operation

ELSEWHERE = "h2"


class Late:
    """A loaded job on a host that is drained, and another host."""

    def __init__(self) -> None:
        self.parts = parts = DispatcherParts()
        control = ControlPublisher(parts.broker)
        retries = Retries(parts.store, parts.event_log, parts.scheduler, max_attempts=3)
        self.drains = Drains(parts.store, parts.event_log, parts.scheduler, control, retries)
        self.idle = IdleUnloads(parts.store, parts.scheduler, parts.term, parts.lines)

    async def begin(self) -> None:
        await self.parts.begin()
        await self.parts.come_online(ELSEWHERE)

    async def past_the_deadline(self) -> None:
        """Have the host drained, and the deadline over."""
        await self.parts.store.hosts.drain(HOST, move=False, deadline_s=1.0)
        self.parts.pass_time(10)

    def change_job(self, **fields: object) -> None:
        """Write the job as others leave it."""
        document = self.parts.database.collections["jobs"][JOB]
        changed = {**document, "version": document["version"] + 1, **fields}
        self.parts.database.write("jobs", changed)
        self.parts.lines.forget([JOB])

    def begin_elsewhere(self) -> None:
        """Have the job ended here, and created on the other host."""
        self.change_job(
            host_id=ELSEWHERE, generation=2, state=JobState.CREATED, container_id="d" * 64
        )

    async def job(self) -> JobRecord:
        job = await self.parts.store.jobs.get(JOB)
        assert job is not None
        return job

    async def ours(self) -> list[OperationRecord]:
        """Return the operations of the dispatcher itself, after a pass over the job."""
        await self.parts.scheduler.schedule([JOB])
        found = await self.parts.store.operation_queries.get_many(
            [one["_id"] for one in self.parts.database.documents("operations")]
        )
        return [one for one in found.values() if one.source == "system"]


@pytest.fixture
async def late() -> AsyncIterator[Late]:
    made = Late()
    await made.begin()
    running = asyncio.create_task(made.parts.event_log.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


async def test_a_drain_ends_no_job_that_has_come_elsewhere_since_it_was_read(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    await late.past_the_deadline()
    jobs = late.parts.store.jobs
    on_host, reads = jobs.on_host, 0

    async def on_host_before(host_id: str) -> list[JobRecord]:
        nonlocal reads
        found, reads = await on_host(host_id), reads + 1
        if reads == 2:
            late.begin_elsewhere()
        return found

    monkeypatch.setattr(jobs, "on_host", on_host_before)
    await late.drains.check()
    (ended,) = await late.ours()
    assert ended.verb is Verb.TERMINATE
    assert ended.state is OperationState.REJECTED
    assert (await late.job()).state is JobState.CREATED
    await late.drains.check()
    host = await late.parts.store.hosts.get(HOST)
    assert host is not None
    assert host.drain is not None
    assert host.drain.done


async def test_a_drain_ends_each_container_of_its_host(late: Late) -> None:
    await late.past_the_deadline()
    await late.drains.check()
    late.change_job(container_id="e" * 64)  # it was made anew under the same generation
    await late.drains.check()
    states = [one.state for one in await late.ours()]
    assert sorted(states) == [OperationState.DISPATCHED, OperationState.REJECTED]


async def test_an_eviction_unloads_no_other_container(late: Late) -> None:
    reason = SystemReason.EVICTED_FOR.about("another")
    unload = system_operation(await late.job(), Verb.DEPLOY_UNLOAD, "evict/1", reason)
    late.begin_elsewhere()
    late.change_job(state=JobState.LOADED)
    await record_in_front(late.parts.store, [unload])
    (ended,) = await late.ours()
    assert ended.state is OperationState.REJECTED


async def test_a_container_with_an_id_that_is_none_is_ended_all_the_same(late: Late) -> None:
    late.change_job(container_id="!" * 10_000)
    await late.past_the_deadline()
    await late.drains.check()
    assert [one.state for one in await late.ours()] == [OperationState.DISPATCHED]


@pytest.mark.parametrize("loaded", [True, False])
async def test_what_clears_up_after_a_load_leaves_the_next_load_alone(
    late: Late, *, loaded: bool
) -> None:
    late.change_job(state=JobState.CREATED)
    unload = system_operation(
        await late.job(), Verb.DEPLOY_UNLOAD, "load_cut_short/1", SystemReason.LOAD_CUT_SHORT
    )
    if loaded:
        late.change_job(state=JobState.LOADED)
    await record_in_front(late.parts.store, [unload])
    (ended,) = await late.ours()
    assert ended.state is (OperationState.REJECTED if loaded else OperationState.DISPATCHED)


@pytest.mark.parametrize("used", [True, False])
async def test_a_model_that_is_used_while_others_are_looked_at_is_not_idle(
    late: Late, monkeypatch: pytest.MonkeyPatch, *, used: bool
) -> None:
    spec = MODEL.model_copy(update={"residency": Residency(idle_unload_s=1.0)})
    loaded_at = late.parts.database.now
    late.change_job(spec=spec.model_dump_json(), idle_unload_s=1.0, loaded_at=loaded_at)
    late.parts.pass_time(60)
    late.parts.lines.usage.note(JOB, ago_s=60.0)
    read = late.parts.lines.read

    async def read_before_an_inference(job_ids: Iterable[str]) -> LinesRead:
        found = await read(job_ids)
        monkeypatch.undo()
        if used:
            await late.parts.first_pass.take([new_operation()])
        return found

    monkeypatch.setattr(late.parts.lines, "read", read_before_an_inference)
    await late.idle.unload()
    assert len(await late.ours()) == (0 if used else 1)
