"""What a container writes to the disk, over the fake engine: measured, ended, and told why."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.errors import ErrorCode
from modelyard.contract.retries import is_retried
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from tests.fakes.programs import FakeBatch
from tests.fakes.runtime import FakeContainer
from tests.support.waiting import eventually
from tests.support.worker.harness import VerbHarness, model
from worker.attempts.attempt import Outcome
from worker.containers import disk
from worker.containers.disk import MISSES, DiskWatch
from worker.engine.protocol import ContainerFacts, EngineUnavailableError

LIMIT = 10 << 20


def writer() -> VerbHarness:
    """Return a host with a model that may write 10 MiB."""
    return VerbHarness(model(read_only=False, resources={"disk": LIMIT}))


async def loaded(harness: VerbHarness) -> None:
    for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
        assert (await harness.do(verb)).state is OperationState.SUCCEEDED


def watch_of(harness: VerbHarness) -> DiskWatch:
    return DiskWatch(harness.runtime, harness.operations.containers.health)


async def test_an_operation_whose_container_writes_too_much_ends_with_the_cause() -> None:
    harness = writer()
    await loaded(harness)
    harness.server.may_infer.clear()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(harness.do(Verb.INFER, input={}))

        async def at_it() -> bool:
            return Phase.INFERRING in harness.phases

        await eventually(at_it)
        harness.container.disk = LIMIT + 1
        await watch_of(harness).measure_all()
    ended = asking.result()
    assert ended.error is not None
    assert (ended.state, ended.job_state) == (OperationState.FAILED, JobState.FAILED)
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED
    assert (ended.error.detail["limit"], ended.error.detail["written"]) == (LIMIT, LIMIT + 1)
    assert not is_retried(Verb.INFER, ended.error.code)


@asynccontextmanager
async def batch_at_work() -> AsyncIterator[tuple[VerbHarness, asyncio.Task[Outcome]]]:
    """Have a batch run that ends only if somebody ends it."""
    spec = model(Profile.BATCH, result_file="/out/r.json", resources={"disk": LIMIT})
    harness = VerbHarness(spec, FakeBatch(exit_code=None))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(harness.do(Verb.TEMP))

        async def at_it() -> bool:
            return Phase.INFERRING in harness.phases

        await eventually(at_it)
        yield harness, running


async def test_a_batch_that_writes_too_much_ends_with_the_cause_and_is_removed() -> None:
    async with batch_at_work() as (harness, running):
        harness.container.disk = LIMIT + 1
        await watch_of(harness).measure_all()
    ended = running.result()
    assert ended.error is not None
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED
    assert harness.runtime.containers == {}


async def test_what_stays_within_its_limit_or_can_not_write_is_left_alone() -> None:
    for spec, written in (
        (model(read_only=False, resources={"disk": LIMIT}), LIMIT),
        (model(resources={"disk": LIMIT}), 2 * LIMIT),
    ):
        harness = VerbHarness(spec)
        await loaded(harness)
        harness.container.disk = written
        await watch_of(harness).measure_all()
        assert harness.container.running


async def test_a_container_that_can_not_be_inspected_any_more_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What fills the disk also keeps the engine from inspecting it."""
    monkeypatch.setattr("worker.engine.listing.INSPECT_S", 0.05)
    harness = writer()
    await loaded(harness)
    watch = watch_of(harness)
    await watch.measure_all()

    async def inspect(ref: str) -> ContainerFacts:
        del ref
        await asyncio.Event().wait()
        raise AssertionError

    really, harness.runtime.inspect = harness.runtime.inspect, inspect  # type: ignore[method-assign]
    harness.container.disk = LIMIT + 1
    await watch.measure_all()
    harness.runtime.inspect = really  # type: ignore[method-assign]
    assert not harness.container.running
    health = harness.operations.containers.health
    assert set(health.stop_causes) == {harness.container.id}


async def test_a_container_that_is_started_again_may_end_for_another_reason() -> None:
    harness = writer()
    await loaded(harness)
    harness.container.disk = LIMIT + 1
    await watch_of(harness).measure_all()
    health = harness.operations.containers.health
    assert set(health.stop_causes) == {harness.container.id}
    harness.container.disk = 0
    assert (await harness.do(Verb.DEPLOY_LOAD)).state is OperationState.SUCCEEDED
    assert health.stop_causes == {}


async def test_an_engine_that_can_not_measure_now_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disk, "MIN_PAUSE_S", 0.05)
    harness = writer()
    await loaded(harness)
    looks = 0
    really = harness.runtime.list_uninspected

    async def list_uninspected() -> object:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise EngineUnavailableError("It hiccups.")
        return await really()

    harness.runtime.list_uninspected = list_uninspected  # type: ignore[method-assign,assignment]
    harness.container.disk = LIMIT + 1
    async with asyncio.timeout(20):
        watching = asyncio.create_task(watch_of(harness).run())

        async def ended() -> bool:
            return not harness.container.running

        await eventually(ended)
        watching.cancel()
        await asyncio.wait((watching,))


async def test_more_than_the_host_gives_is_refused_before_anything_is_made() -> None:
    harness = VerbHarness(model(resources={"disk": "200g"}))
    ended = await harness.do(Verb.DEPLOY_CREATE)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.CREATE_FAILED
    assert "MODELYARD_WORKER_MAX_DISK" in ended.error.message


async def two_writers(harness: VerbHarness) -> tuple[FakeContainer, FakeContainer]:
    """Return two containers that run and may write."""
    for job in ("job-1", "job-2"):
        assert (await harness.do(Verb.DEPLOY_CREATE, job=job)).state is OperationState.SUCCEEDED
    return harness.container, harness.runtime.named("modelyard-job-2-1")


@pytest.mark.parametrize("first_hides", [True, False])
async def test_a_container_that_can_not_be_measured_hides_none_of_the_others(
    first_hides: bool,  # noqa: FBT001 - pytest names it
) -> None:
    harness = writer()
    first, second = await two_writers(harness)
    hidden, full = (first, second) if first_hides else (second, first)
    hidden.immeasurable, full.disk = True, LIMIT + 1
    await watch_of(harness).measure_all()
    assert (hidden.running, full.running) == (True, False)


async def test_volumes_that_can_not_be_measured_do_not_hide_the_root_file_system() -> None:
    async with batch_at_work() as (harness, running):
        harness.runtime.volumes_immeasurable = True
        for _ in range(2 * MISSES):
            with pytest.raises(EngineUnavailableError):
                await watch_of(harness).measure_all()
        assert harness.container.running
        harness.container.disk = LIMIT + 1
        await watch_of(harness).measure_all()
    ended = running.result()
    assert ended.error is not None
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED


async def test_what_is_in_a_volume_counts_with_the_root_file_system() -> None:
    async with batch_at_work() as (harness, running):
        [volume] = [it for it in harness.container.facts().mounts if it.on_disk]
        harness.container.disk = LIMIT // 2
        harness.runtime.volume_bytes[volume.source] = LIMIT // 2
        await watch_of(harness).measure_all()
        assert harness.container.running
        harness.runtime.volume_bytes[volume.source] += 1
        await watch_of(harness).measure_all()
    ended = running.result()
    assert ended.error is not None
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED


async def test_a_container_that_can_not_be_measured_again_and_again_is_ended() -> None:
    harness = writer()
    await loaded(harness)
    watch = watch_of(harness)
    for _ in range(MISSES - 1):
        harness.container.immeasurable = True
        await watch.measure_all()
    harness.container.immeasurable = False
    await watch.measure_all()
    harness.container.immeasurable = True
    for _ in range(MISSES):
        assert harness.container.running
        await watch.measure_all()
    assert not harness.container.running
    ended = await harness.do(Verb.INFER, input={})
    assert ended.error is not None
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED
    assert "could not be measured" in ended.error.message


async def test_of_an_engine_that_is_away_no_container_is_guilty() -> None:
    harness = writer()
    await loaded(harness)
    harness.container.immeasurable = True
    watch = watch_of(harness)

    async def no_answer() -> None:
        raise EngineUnavailableError("It is away.")

    harness.runtime.ping = no_answer  # type: ignore[method-assign]
    for _ in range(2 * MISSES):
        with pytest.raises(EngineUnavailableError):
            await watch.measure_all()
    assert harness.container.running


async def test_a_container_that_can_not_be_ended_now_is_tried_again_and_hides_no_other() -> None:
    harness = writer()
    stubborn, full = await two_writers(harness)
    stubborn.disk = full.disk = LIMIT + 1
    really, refuses = harness.runtime.stop, True

    async def stop(container_id: str, grace_s: float) -> None:
        if refuses and container_id == stubborn.id:
            raise EngineUnavailableError("It can't be stopped.")
        await really(container_id, grace_s)

    harness.runtime.stop = stop  # type: ignore[method-assign]
    await watch_of(harness).measure_all()
    assert (stubborn.running, full.running) == (True, False)
    refuses = False
    await watch_of(harness).measure_all()
    assert not stubborn.running
