"""Containers that are known to run: inferences ask the engine nothing, and notice every end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.process.tasks import TaskGroup
from tests.fakes.runtime import FakeRuntime
from tests.support.waiting import eventually
from tests.support.worker.harness import HOST, VerbHarness, model
from worker.containers import readiness
from worker.containers.running import RunningContainers
from worker.engine.protocol import (
    Address,
    ContainerExit,
    ContainerFacts,
    DiskFullError,
    EngineRefusedError,
    EngineUnavailableError,
    NoSuchContainerError,
    RuntimeFaultError,
)
from worker.model_server.http_exchange import Answer, Request

CREATE, LOAD, INFER, UNLOAD = Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER, Verb.DEPLOY_UNLOAD


class Asked:
    """Counts the calls that an engine gets."""

    def __init__(self, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inspects = self.waits = 0
        inspect, wait_exit = runtime.inspect, runtime.wait_exit

        async def counted_inspect(ref: str) -> ContainerFacts:
            self.inspects += 1
            return await inspect(ref)

        async def counted_wait(container_id: str) -> ContainerExit:
            self.waits += 1
            return await wait_exit(container_id)

        monkeypatch.setattr(runtime, "inspect", counted_inspect)
        monkeypatch.setattr(runtime, "wait_exit", counted_wait)


@asynccontextmanager
async def loaded(profile: Profile = Profile.HTTP) -> AsyncIterator[VerbHarness]:
    """Give a host with one loaded model, whose running containers are kept."""
    harness = VerbHarness(model(profile, max_concurrency=4))
    async with asyncio.timeout(20), TaskGroup() as tasks:
        keeping = tasks.create_task(running(harness).run())
        assert (await harness.do(CREATE)).job_state is JobState.CREATED
        assert (await harness.do(LOAD)).job_state is JobState.LOADED
        yield harness
        keeping.cancel()


def running(harness: VerbHarness) -> RunningContainers:
    return harness.operations.containers.running


async def infers(harness: VerbHarness) -> None:
    assert (await harness.do(INFER, input=1)).state is OperationState.SUCCEEDED


def is_kept(harness: VerbHarness) -> bool:
    return running(harness).get("modelyard-job-1-1") is not None


async def forgotten(harness: VerbHarness) -> None:
    async def gone() -> bool:
        return not is_kept(harness)

    await eventually(gone)


async def test_only_the_first_inference_asks_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with loaded() as harness:
        asked = Asked(harness.runtime, monkeypatch)
        for _ in range(5):
            await infers(harness)
        await asyncio.gather(*(infers(harness) for _ in range(4)))
        assert (asked.inspects, asked.waits) == (1, 1)


@pytest.mark.parametrize("profile", [Profile.HTTP, Profile.PROCESS])
async def test_a_container_that_was_started_again_is_used_at_its_new_address(
    profile: Profile,
) -> None:
    async with loaded(profile) as harness:
        await infers(harness)
        assert (await harness.do(UNLOAD)).job_state is JobState.CREATED
        assert (await harness.do(LOAD)).job_state is JobState.LOADED
        await infers(harness)


async def test_an_exit_interrupts_all_work_in_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.containers.running.EXIT_GRACE_S", 0.01)
    async with loaded() as harness:
        await infers(harness)
        facts = await harness.runtime.inspect(harness.container.id)
        never = asyncio.Event()
        working = [
            asyncio.create_task(running(harness).work_in(facts, never.wait())) for _ in range(3)
        ]
        await asyncio.sleep(0)
        harness.container.exit(137, oom_killed=True)
        await asyncio.wait(working)
        ends = [one.exception() for one in working]
        assert {getattr(end, "code", None) for end in ends} == {ErrorCode.OOM_KILLED}
        assert not is_kept(harness)


async def test_a_container_that_ends_while_the_connection_is_made_is_sent_nothing() -> None:
    async with loaded() as harness:
        await infers(harness)
        before = len(harness.server.requests)
        transport = harness.runtime.model_servers
        really = transport.exchange

        @asynccontextmanager
        async def exchange(address: Address, request: Request) -> AsyncIterator[Answer]:
            harness.container.exit(1)
            await forgotten(harness)
            harness.container.running = True  # in the place of another one with its address
            async with really(address, request) as answer:
                yield answer

        transport.exchange = exchange  # type: ignore[method-assign]
        ended = await harness.do(INFER, input=1)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.EXITED
        assert len(harness.server.requests) == before


async def test_an_inference_whose_container_exits_fails_the_job() -> None:
    async with loaded() as harness:
        await infers(harness)
        harness.server.may_infer.clear()
        asking = asyncio.create_task(harness.do(INFER, input=1))

        async def under_way() -> bool:
            return harness.server.infers_now == 1

        await eventually(under_way)
        harness.container.exit(3)
        ended = await asking
        assert (ended.state, ended.job_state) == (OperationState.FAILED, JobState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.EXITED


async def test_a_timeout_of_the_work_itself_stays_one() -> None:
    async with loaded() as harness:
        await infers(harness)
        facts = await harness.runtime.inspect(harness.container.id)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await running(harness).work_in(facts, asyncio.Event().wait())
        assert is_kept(harness)


CAN_NOT_TELL = (EngineUnavailableError, EngineRefusedError, DiskFullError)
"""What an engine may answer to a wait without a word on the container."""


@pytest.mark.parametrize("answer", CAN_NOT_TELL)
async def test_nothing_is_kept_while_the_engine_can_not_tell(
    monkeypatch: pytest.MonkeyPatch, answer: type[RuntimeFaultError]
) -> None:
    async with loaded() as harness:

        async def away(_: str) -> ContainerExit:
            raise answer

        monkeypatch.setattr(harness.runtime, "wait_exit", away)
        await infers(harness)
        await forgotten(harness)
        monkeypatch.undo()
        await infers(harness)
        assert is_kept(harness)


@pytest.mark.parametrize("answer", CAN_NOT_TELL)
async def test_work_goes_on_while_the_engine_can_not_tell(
    monkeypatch: pytest.MonkeyPatch, answer: type[RuntimeFaultError]
) -> None:
    monkeypatch.setattr("worker.containers.running.EXIT_GRACE_S", 0.0)
    monkeypatch.setattr("worker.containers.running._ENGINE_RETRY_S", 0.0)
    async with loaded() as harness:
        asked = 0
        asked_again = asyncio.Event()

        async def away(_: str) -> ContainerExit:
            nonlocal asked
            asked += 1
            if asked > 2:
                asked_again.set()
            raise answer

        monkeypatch.setattr(harness.runtime, "wait_exit", away)
        facts = await harness.runtime.inspect(harness.container.id)
        running(harness).forget(facts.id)
        running(harness).keep(facts)
        assert await running(harness).work_in(facts, asked_again.wait())
        monkeypatch.undo()


@pytest.mark.parametrize("answer", CAN_NOT_TELL)
async def test_what_the_engine_can_not_tell_is_not_taken_for_an_exit(
    monkeypatch: pytest.MonkeyPatch, answer: type[RuntimeFaultError]
) -> None:
    monkeypatch.setattr(readiness, "_ENGINE_RETRY_S", 0.0)
    runtime, asked_again = FakeRuntime(host_id=HOST), asyncio.Event()
    asked, gone = 0, False

    async def wait(_: str) -> ContainerExit:
        nonlocal asked
        asked += 1
        if asked > 1:
            asked_again.set()
        raise NoSuchContainerError if gone else answer

    async def work() -> str:
        await asked_again.wait()
        return "done"

    monkeypatch.setattr(runtime, "wait_exit", wait)
    assert await readiness.while_running(runtime, "c", work()) == "done"
    gone = True
    with pytest.raises(NoSuchContainerError):
        await readiness.while_running(runtime, "c", asyncio.Event().wait())


async def test_what_an_inventory_shows_otherwise_is_forgotten() -> None:
    async with loaded() as harness:
        await infers(harness)
        facts = await harness.runtime.inspect(harness.container.id)
        running(harness).compare([facts])
        assert is_kept(harness)
        running(harness).compare([replace(facts, address=Address("127.0.0.1", 1))])
        assert not is_kept(harness)
        await infers(harness)
        running(harness).compare([])
        assert not is_kept(harness)


async def test_a_container_is_forgotten_before_it_is_removed() -> None:
    async with loaded() as harness:
        await infers(harness)
        assert (await harness.do(Verb.TERMINATE)).job_state is JobState.TERMINATED
        assert not is_kept(harness)
        error = (await harness.do(INFER, input=1)).error
        assert error is not None
        assert error.code is ErrorCode.CONTAINER_MISSING
