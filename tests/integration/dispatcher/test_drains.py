"""Hosts that are drained: what they finish, what is moved, what is ended at the deadline."""

from collections.abc import AsyncIterator

import pytest

from dispatcher.maintenance.moves import MOST_FAILURES
from modelyard.broker import Broker
from modelyard.contract.capacity.ledger import Allocation
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import HostCommand, InventoryItem
from modelyard.contract.states import Admission, JobState, OperationState, Verb
from modelyard.store import Store
from modelyard.store.records import JobRecord
from tests.support.dispatcher.deployed import accepted, created, item, loaded, slots_used
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher
from tests.support.dispatcher.scripted_host import ScriptedHost, scripted_host
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
async def driver(store: Store, broker: Broker) -> AsyncIterator[DispatcherDriver]:
    await store.models.put(MODEL)
    async with running_dispatcher(store, broker, dispatcher_orphan_grace_s=0.0):
        yield DispatcherDriver(store, broker)


async def drained(driver: DispatcherDriver, host_id: str) -> None:
    async def done() -> bool:
        found = await driver.store.hosts.get(host_id)
        return found is not None and found.drain is not None and found.drain.done

    await eventually(done, what=f"the drain of {host_id} is done")


async def first_leg(
    driver: DispatcherDriver, here: ScriptedHost, there: ScriptedHost
) -> HostCommand:
    """Begin to move a loaded job; return the first command that the other host is given."""
    await driver.store.hosts.admit(there.host_id, Admission.CORDONED)
    await loaded(driver, here)
    await driver.store.hosts.admit(there.host_id, Admission.OPEN)
    await driver.store.hosts.drain(here.host_id, move=True, deadline_s=None)
    return await there.command()


async def test_a_drained_host_takes_nothing_new_and_is_done_when_it_is_empty(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await created(driver, host)
        await driver.store.hosts.drain("h1", move=False, deadline_s=None)
        waiting = await driver.submit(Verb.DEPLOY_CREATE, "job-2")
        refused = await driver.operation(waiting, where=lambda one: bool(one.waiting_for))
        assert refused.waiting_for == ("1 host is DRAINING",)
        await driver.submit(Verb.TERMINATE)
        await host.finish(await host.command())
        await drained(driver, "h1")
        await driver.store.hosts.admit("h1", Admission.OPEN)
        assert (await host.command()).operation_id == waiting


async def test_past_its_deadline_a_drain_ends_what_is_left(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        running = await driver.submit(Verb.INFER, input=1)
        await accepted(driver, host)
        await driver.store.hosts.drain("h1", move=False, deadline_s=0.1)
        ended = await driver.operation(running, OperationState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.HOST_DRAINED
        assert (await host.control(lambda one: bool(one.cancels))).cancels[0].reason == "stale"
        command = await host.command()
        assert command.verb is Verb.TERMINATE
        await host.finish(command)
        await driver.job("job-1", where=lambda one: one.state is JobState.TERMINATED)


async def test_a_drain_that_moves_loads_elsewhere_first_and_loses_no_inference(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        job = await loaded(driver, h1)
        running = await driver.submit(Verb.INFER, input=1)
        command = await accepted(driver, h1)
        async with scripted_host(driver.broker, "h2") as h2:
            await driver.store.hosts.drain("h1", move=True, deadline_s=None)
            create = await h2.command()
            assert (create.verb, create.generation) == (Verb.DEPLOY_CREATE, 2)
            assert (await driver.job("job-1")).host_id == "h1"
            await h2.finish(create, container_id="cd" * 32)
            load = await h2.command()
            await h2.finish(load, container_id="cd" * 32)
            moved = await driver.job("job-1", where=lambda one: one.host_id == "h2")
            assert (moved.state, moved.generation) == (JobState.LOADED, 2)
            assert moved.container_id == "cd" * 32
            await h1.look(item(job), busy=("job-1",))
            await h1.finish(command, result_json="1")
            await driver.operation(running, OperationState.SUCCEEDED)
            await h1.look(item(job))
            told = await h1.control(lambda one: bool(one.discards))
            assert told.discards[0].generation == 1
            await driver.submit(Verb.INFER, input=1)
            infer = await h2.command()
            assert (infer.verb, infer.generation) == (Verb.INFER, 2)
            await h2.finish(infer, result_json="2")
            await slots_used(driver, "h1", 0)
            await slots_used(driver, "h2", 1)
            await drained(driver, "h1")


async def test_a_move_that_fails_leaves_the_job_where_it_is_and_tries_a_new_container(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1, scripted_host(driver.broker, "h2") as h2:
        leg = await first_leg(driver, h1, h2)
        await h2.finish(
            leg,
            OperationState.FAILED,
            job_state=JobState.FAILED,
            error=ErrorInfo.of(ErrorCode.ENGINE_UNAVAILABLE),
        )
        again = await h2.command()
        assert (again.verb, again.generation) == (Verb.DEPLOY_CREATE, 3)
        job = await driver.job("job-1")
        assert (job.state, job.host_id, job.generation) == (JobState.LOADED, "h1", 1)


async def test_a_move_that_fails_for_good_is_not_begun_again(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as h1, scripted_host(driver.broker, "h2") as h2:
        leg = await first_leg(driver, h1, h2)
        await h2.finish(
            leg,
            OperationState.FAILED,
            job_state=JobState.FAILED,
            error=ErrorInfo.of(ErrorCode.SPEC_REFUSED),
        )

        async def given_up() -> JobRecord | None:
            job = await driver.job("job-1")
            return job if job.move_failures else None

        job = await eventually(given_up)
        assert (job.move_failures, job.move) == (MOST_FAILURES, None)
        assert (job.state, job.host_id, job.generation) == (JobState.LOADED, "h1", 1)


async def test_a_move_whose_target_boots_before_it_accepts_begins_anew(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1, scripted_host(driver.broker, "h2") as h2:
        leg = await first_leg(driver, h1, h2)
        # As the sweep finds it that looks between the boot's record and the repair of its work.
        await driver.store.operations._collection.update_one(
            {"_id": leg.operation_id},
            [
                {
                    "$set": {
                        "incarnation": "former",
                        "published_at": {"$subtract": ["$$NOW", 60_000]},
                    }
                }
            ],
        )
        again = await h2.command()
        assert (again.verb, again.generation) == (Verb.DEPLOY_CREATE, 3)
        await driver.operation(leg.operation_id, OperationState.FAILED)


async def test_a_host_to_which_a_job_is_on_its_way_is_not_drained_yet(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await created(driver, host)
        at = await driver.store.hosts.get("h1")
        assert at is not None
        taken = Allocation(job_id="another", generation=1)
        assert await driver.store.hosts.reserve(at, [taken], token="t")
        await driver.submit(Verb.TERMINATE)
        await host.finish(await host.command())
        await driver.store.hosts.drain("h1", move=False, deadline_s=None)
        await slots_used(driver, "h1", 1)
        assert not await driver.store.hosts.drained("h1")
        await driver.store.hosts.release({"h1": [("another", 1)]})
        await drained(driver, "h1")


async def test_a_client_who_ends_a_job_ends_its_move(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as h1, scripted_host(driver.broker, "h2") as h2:
        leg = await first_leg(driver, h1, h2)
        await h2.accept(leg)
        await driver.operation(leg.operation_id, OperationState.RUNNING)
        await driver.submit(Verb.TERMINATE)
        await h1.finish(await h1.command())
        await driver.job("job-1", where=lambda one: one.state is JobState.TERMINATED)
        told = await h2.control(lambda one: bool(one.cancels))
        assert told.cancels[0].operation_id == leg.operation_id
        await driver.operation(leg.operation_id, OperationState.CANCELLED)
        await slots_used(driver, "h2", 0)
        await h2.look(
            InventoryItem(
                container_id="cd" * 32,
                job_id="job-1",
                generation=2,
                operation_id=leg.operation_id,
                running=True,
            )
        )
        assert (await h2.control(lambda one: bool(one.discards))).discards[0].generation == 2


async def test_an_inventory_of_the_new_host_from_before_the_move_says_nothing_of_the_job(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1, scripted_host(driver.broker, "h2") as h2:
        await h2.finish(await first_leg(driver, h1, h2))
        before = h2.number
        await h2.finish(await h2.command())
        job = await driver.job("job-1", where=lambda one: one.host_id == "h2")
        down = item(job, running=False, loaded=False)
        await h2.look(down, number=before)
        await created(driver, h2, "job-2")
        assert (await driver.job("job-1")).state is JobState.LOADED
        await h2.look(down)
        await driver.job("job-1", where=lambda one: one.state is JobState.FAILED)
