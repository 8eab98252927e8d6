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
from tests.support.worker.bench import Bench, model
from worker.attempts.attempt import Outcome
from worker.containers import disk
from worker.containers.disk import MISSES, DiskWatch
from worker.engine.protocol import EngineUnavailableError

LIMIT = 10 << 20


def writer() -> Bench:
    """Return a host with a model that may write 10 MiB."""
    return Bench(model(read_only=False, resources={"disk": LIMIT}))


async def loaded(bench: Bench) -> None:
    for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
        assert (await bench.do(verb)).state is OperationState.SUCCEEDED


def watch_of(bench: Bench) -> DiskWatch:
    return DiskWatch(bench.runtime, bench.operations.containers.health)


async def test_an_operation_whose_container_writes_too_much_ends_with_the_cause() -> None:
    bench = writer()
    await loaded(bench)
    bench.server.may_infer.clear()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(bench.do(Verb.INFER, input={}))

        async def at_it() -> bool:
            return Phase.INFERRING in bench.phases

        await eventually(at_it)
        bench.container.disk = LIMIT + 1
        await watch_of(bench).look()
    ended = asking.result()
    assert ended.error is not None
    assert (ended.state, ended.job_state) == (OperationState.FAILED, JobState.FAILED)
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED
    assert ended.error.detail["limit"] == LIMIT
    assert not is_retried(Verb.INFER, ended.error.code)


@asynccontextmanager
async def batch_at_work() -> AsyncIterator[tuple[Bench, asyncio.Task[Outcome]]]:
    """Have a batch run that ends only if somebody ends it."""
    spec = model(Profile.BATCH, result_file="/out/r.json", resources={"disk": LIMIT})
    bench = Bench(spec, FakeBatch(exit_code=None))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bench.do(Verb.TEMP))

        async def at_it() -> bool:
            return Phase.INFERRING in bench.phases

        await eventually(at_it)
        yield bench, running


async def test_a_batch_that_writes_too_much_ends_with_the_cause_and_is_removed() -> None:
    async with batch_at_work() as (bench, running):
        bench.container.disk = LIMIT + 1
        await watch_of(bench).look()
    ended = running.result()
    assert ended.error is not None
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED
    assert bench.runtime.containers == {}


async def test_what_stays_within_its_limit_or_can_not_write_is_left_alone() -> None:
    for spec, written in (
        (model(read_only=False, resources={"disk": LIMIT}), LIMIT),
        (model(resources={"disk": LIMIT}), 2 * LIMIT),
    ):
        bench = Bench(spec)
        await loaded(bench)
        bench.container.disk = written
        await watch_of(bench).look()
        assert bench.container.running


async def test_a_container_that_is_started_again_may_end_for_another_reason() -> None:
    bench = writer()
    await loaded(bench)
    bench.container.disk = LIMIT + 1
    await watch_of(bench).look()
    health = bench.operations.containers.health
    assert set(health.over_disk) == {bench.container.id}
    bench.container.disk = 0
    assert (await bench.do(Verb.DEPLOY_LOAD)).state is OperationState.SUCCEEDED
    assert health.over_disk == {}


async def test_an_engine_that_can_not_measure_now_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disk, "LOOK_S", 0.05)
    bench = writer()
    await loaded(bench)
    looks = 0
    really = bench.runtime.list_own

    async def list_own(job_id: str | None = None) -> object:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise EngineUnavailableError("It hiccups.")
        return await really(job_id)

    bench.runtime.list_own = list_own  # type: ignore[method-assign,assignment]
    bench.container.disk = LIMIT + 1
    async with asyncio.timeout(20):
        watching = asyncio.create_task(watch_of(bench).run())

        async def ended() -> bool:
            return not bench.container.running

        await eventually(ended)
        watching.cancel()
        await asyncio.wait((watching,))


async def test_more_than_the_host_gives_is_refused_before_anything_is_made() -> None:
    bench = Bench(model(resources={"disk": "200g"}))
    ended = await bench.do(Verb.DEPLOY_CREATE)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.CREATE_FAILED
    assert "MODELYARD_WORKER_MAX_DISK" in ended.error.message


async def two_writers(bench: Bench) -> tuple[FakeContainer, FakeContainer]:
    """Return two containers that run and may write."""
    for job in ("job-1", "job-2"):
        assert (await bench.do(Verb.DEPLOY_CREATE, job=job)).state is OperationState.SUCCEEDED
    return bench.container, bench.runtime.named("modelyard-job-2-1")


@pytest.mark.parametrize("first_hides", [True, False])
async def test_a_container_that_can_not_be_measured_hides_none_of_the_others(
    first_hides: bool,  # noqa: FBT001 - pytest names it
) -> None:
    bench = writer()
    first, second = await two_writers(bench)
    hidden, full = (first, second) if first_hides else (second, first)
    hidden.immeasurable, full.disk = True, LIMIT + 1
    await watch_of(bench).look()
    assert (hidden.running, full.running) == (True, False)


async def test_volumes_that_can_not_be_measured_do_not_hide_the_root_file_system() -> None:
    async with batch_at_work() as (bench, running):
        bench.runtime.volumes_immeasurable = True
        for _ in range(2 * MISSES):
            with pytest.raises(EngineUnavailableError):
                await watch_of(bench).look()
        assert bench.container.running
        bench.container.disk = LIMIT + 1
        await watch_of(bench).look()
    ended = running.result()
    assert ended.error is not None
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED


async def test_what_is_in_a_volume_counts_with_the_root_file_system() -> None:
    async with batch_at_work() as (bench, running):
        [volume] = [it for it in bench.container.facts().mounts if it.on_disk]
        bench.container.disk = LIMIT // 2
        bench.runtime.volume_bytes[volume.source] = LIMIT // 2
        await watch_of(bench).look()
        assert bench.container.running
        bench.runtime.volume_bytes[volume.source] += 1
        await watch_of(bench).look()
    ended = running.result()
    assert ended.error is not None
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED


async def test_a_container_that_can_not_be_measured_again_and_again_is_ended() -> None:
    bench = writer()
    await loaded(bench)
    watch = watch_of(bench)
    for _ in range(MISSES - 1):
        bench.container.immeasurable = True
        await watch.look()
    bench.container.immeasurable = False
    await watch.look()
    bench.container.immeasurable = True
    for _ in range(MISSES):
        assert bench.container.running
        await watch.look()
    assert not bench.container.running
    ended = await bench.do(Verb.INFER, input={})
    assert ended.error is not None
    assert ended.error.code is ErrorCode.DISK_QUOTA_EXCEEDED
    assert "could not be measured" in ended.error.message


async def test_of_an_engine_that_is_away_no_container_is_guilty() -> None:
    bench = writer()
    await loaded(bench)
    bench.container.immeasurable = True
    watch = watch_of(bench)

    async def no_answer() -> None:
        raise EngineUnavailableError("It is away.")

    bench.runtime.ping = no_answer  # type: ignore[method-assign]
    for _ in range(2 * MISSES):
        with pytest.raises(EngineUnavailableError):
            await watch.look()
    assert bench.container.running


async def test_a_container_that_can_not_be_ended_now_is_tried_again_and_hides_no_other() -> None:
    bench = writer()
    stubborn, full = await two_writers(bench)
    stubborn.disk = full.disk = LIMIT + 1
    really, refuses = bench.runtime.stop, True

    async def stop(container_id: str, grace_s: float) -> None:
        if refuses and container_id == stubborn.id:
            raise EngineUnavailableError("It can't be stopped.")
        await really(container_id, grace_s)

    bench.runtime.stop = stop  # type: ignore[method-assign]
    await watch_of(bench).look()
    assert (stubborn.running, full.running) == (True, False)
    refuses = False
    await watch_of(bench).look()
    assert not stubborn.running
