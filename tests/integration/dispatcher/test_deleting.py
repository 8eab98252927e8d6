"""Jobs that never were, jobs that were deleted, and old records, with a dispatcher that leads."""

import pytest

from dispatcher.maintenance.retention import retention
from modelyard.broker import Broker
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store import Store
from modelyard.store.deleting.deletions import Fate
from tests.support.dispatcher.deployed import created
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher
from tests.support.dispatcher.scripted_host import scripted_host
from tests.support.waiting import eventually


async def is_gone(driver: DispatcherDriver, job_id: str) -> None:
    async def gone() -> bool:
        return await driver.store.jobs.get(job_id) is None

    await eventually(gone, what=f"job {job_id} gone")


@pytest.mark.parametrize(
    ("verb", "fields", "code"),
    [
        (Verb.DEPLOY_LOAD, {}, ErrorCode.INVALID_JOB_STATE),
        (Verb.DEPLOY_UNLOAD, {}, ErrorCode.INVALID_JOB_STATE),
        (Verb.INFER, {"input": 1}, ErrorCode.INVALID_JOB_STATE),
        (Verb.DEPLOY_CREATE, {"model": "nobody"}, ErrorCode.UNKNOWN_MODEL),
    ],
)
async def test_what_is_rejected_on_a_job_that_never_was_leaves_no_job(
    driver: DispatcherDriver, verb: Verb, fields: dict[str, object], code: ErrorCode
) -> None:
    operation_id = await driver.submit(verb, "never", **fields)
    ended = await driver.operation(operation_id, OperationState.REJECTED)
    assert ended.error is not None
    assert ended.error.code is code
    await is_gone(driver, "never")


async def test_what_expires_or_is_cancelled_while_it_waits_leaves_no_job(
    driver: DispatcherDriver,
) -> None:
    late = await driver.submit(Verb.DEPLOY_CREATE, "late", queue_timeout_s=0.2)
    unwanted = await driver.submit(Verb.DEPLOY_CREATE, "unwanted")
    await driver.operation(unwanted, OperationState.QUEUED)
    await driver.store.operations.request_cancel(unwanted)
    await driver.operation(late, OperationState.EXPIRED)
    await driver.operation(unwanted, OperationState.CANCELLED)
    await is_gone(driver, "late")
    await is_gone(driver, "unwanted")


async def test_a_job_stays_while_others_wait_behind_the_rejected_one(
    driver: DispatcherDriver,
) -> None:
    load = await driver.submit(Verb.DEPLOY_LOAD, "j")
    create = await driver.submit(Verb.DEPLOY_CREATE, "j")
    await driver.operation(load, OperationState.REJECTED)
    async with scripted_host(driver.broker, "h1") as host:
        command = await host.command()
        assert (command.operation_id, command.generation) == (create, 1)
        await host.finish(command)
    await driver.operation(create, OperationState.SUCCEEDED)


async def test_the_sweep_deletes_a_job_that_a_crash_left_behind(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.maintenance.retention.unborn_jobs.STALE_S", 0.0)
    await driver.store.jobs.ensure(["left"])
    await is_gone(driver, "left")


async def test_a_deleted_job_that_begins_again_has_another_generation(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await created(driver, host, "j")
        ending = await driver.submit(Verb.TERMINATE, "j")
        await host.finish(await host.command())
        await driver.operation(ending, OperationState.SUCCEEDED)
        assert (await driver.store.deletions.job("j")).fate is Fate.DELETED
        # Its dispatcher still has it in memory.
        again = await driver.submit(Verb.DEPLOY_CREATE, "j")
        command = await host.command()
        assert (command.operation_id, command.generation) == (again, 2)
        await host.finish(command)
        await driver.operation(again, OperationState.SUCCEEDED)
    assert (await driver.job("j")).state is JobState.CREATED


async def test_an_operation_whose_job_was_deleted_as_it_came_is_carried_out(
    driver: DispatcherDriver,
) -> None:
    create = await driver.submit(Verb.DEPLOY_CREATE, "j")  # no host has come online yet
    await driver.operation(create, OperationState.QUEUED)
    jobs = driver.store._connection.collection("jobs")
    await jobs.delete_one({"_id": "j"})
    async with scripted_host(driver.broker, "h1") as host:
        command = await host.command()
        assert command.operation_id == create
        await host.finish(command)
        await driver.operation(create, OperationState.SUCCEEDED)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a dispatcher that starts after this find everything old, and look all the time."""
    monkeypatch.setattr(retention, "DAY_S", 0.0)
    monkeypatch.setattr(retention, "REST_S", 0.05)


@pytest.mark.usefixtures("hasty")
async def test_the_leader_removes_what_is_old_and_nothing_that_is_open(
    store: Store, broker: Broker
) -> None:
    await store.models.put(MODEL)
    async with running_dispatcher(store, broker), scripted_host(broker, "h1") as host:
        driver = DispatcherDriver(store, broker)
        old = await driver.submit(Verb.DEPLOY_CREATE, "j")
        await host.finish(await host.command())
        job = await driver.job("j", where=lambda job: job.state is JobState.CREATED)
        open_one = await driver.submit(Verb.DEPLOY_LOAD, "j")
        await host.accept(await host.command())

        async def removed() -> bool:
            return await store.operation_queries.get(old) is None

        await eventually(removed, what="the old operation gone")
        assert (await driver.operation(open_one, OperationState.RUNNING)).job_id == "j"
        assert (await driver.job("j")).generation == job.generation
