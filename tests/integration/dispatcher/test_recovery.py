"""A dispatcher when hosts, containers and attempts fail: tried again, brought back, given up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from modelyard.broker import Broker
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.message_types import CANCEL_TYPE
from modelyard.contract.messages import CancelNotice, InventoryItem
from modelyard.contract.states import JobState, Liveness, OperationState, Verb
from modelyard.contract.topology import JOBS, REPLAY_HEADER, SUBMIT_KEY
from modelyard.store import Store
from modelyard.store.records import JobRecord, RestorationRecord
from tests.support.dispatcher.deployed import (
    CONTAINER,
    accepted,
    created,
    fenced_off,
    item,
    loaded,
    slots_used,
)
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher
from tests.support.dispatcher.scripted_host import scripted_host
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
async def driver(store: Store, broker: Broker) -> AsyncIterator[DispatcherDriver]:
    comes_back = {"name": "m-comes-back", "on_host_lost": "recreate"}
    restarts = {"name": "m-restarts", "restart": "on_failure", "max_restarts": 1}
    for more in ({}, comes_back, restarts):
        await store.models.put(MODEL.model_copy(update=more))
    async with running_dispatcher(store, broker, dispatcher_orphan_grace_s=0.0):
        yield DispatcherDriver(store, broker)


def failure(code: ErrorCode) -> ErrorInfo:
    return ErrorInfo.of(code)


async def lose(driver: DispatcherDriver, host_id: str) -> None:
    """Let the host's last heartbeat be as old as that of a host that is gone."""
    hosts = driver.store.hosts

    async def gone() -> bool:
        await hosts._collection.update_one(
            {"_id": host_id},
            [{"$set": {"last_seen": {"$subtract": ["$$NOW", 61_000]}}}],
        )
        found = await hosts.get(host_id)
        return found is not None and found.liveness is Liveness.LOST

    await eventually(gone, what=f"{host_id} is LOST")


# --- attempts ---


async def test_a_failure_of_the_infrastructure_is_tried_again_on_another_host(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1, scripted_host(driver.broker, "h2") as h2:
        hosts = {"h1": h1, "h2": h2}
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        placed = await driver.operation(operation_id, OperationState.DISPATCHED)
        first = hosts.pop(placed.host_id or "")
        (other,) = hosts.values()
        await first.finish(
            await first.command(),
            OperationState.FAILED,
            job_state=JobState.FAILED,
            error=failure(ErrorCode.ENGINE_UNAVAILABLE),
        )
        waiting = await driver.operation(operation_id, where=lambda one: one.failures == 1)
        assert waiting.error is not None
        assert waiting.error.code is ErrorCode.ENGINE_UNAVAILABLE
        await slots_used(driver, first.host_id, 0)
        again = await other.command()
        assert (again.epoch, again.generation) == (2, 2)
        await other.finish(again)
        done = await driver.operation(operation_id, OperationState.SUCCEEDED)
        assert done.error is None
        job = await driver.job("job-1", where=lambda job: job.state is JobState.CREATED)
        assert (job.host_id, job.generation) == (other.host_id, 2)


async def test_attempts_are_bounded_and_the_last_cause_is_the_reason(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        for epoch in (1, 2, 3):
            command = await host.command()
            assert command.epoch == epoch
            await host.finish(
                command,
                OperationState.FAILED,
                job_state=JobState.FAILED,
                error=failure(ErrorCode.IMAGE_PULL_FAILED),
            )
        ended = await driver.operation(operation_id, OperationState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.IMAGE_PULL_FAILED
        assert (await driver.job("job-1")).state is JobState.FAILED
        await slots_used(driver, "h1", 0)


async def test_the_users_own_error_is_not_tried_again(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        await host.finish(
            await host.command(),
            OperationState.FAILED,
            job_state=JobState.FAILED,
            error=failure(ErrorCode.EXITED),
        )
        ended = await driver.operation(operation_id, OperationState.FAILED)
        assert ended.epoch == 1


async def test_a_job_keeps_its_container_while_a_load_is_tried_again(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await created(driver, host)
        operation_id = await driver.submit(Verb.DEPLOY_LOAD)
        behind = await driver.submit(Verb.INFER, input=1)
        await host.finish(
            await host.command(),
            OperationState.FAILED,
            error=failure(ErrorCode.ENGINE_UNAVAILABLE),
        )
        again = await host.command()
        assert (again.operation_id, again.epoch, again.generation) == (operation_id, 2, 1)
        await host.finish(again)
        assert (await host.command()).operation_id == behind


async def test_a_late_report_of_an_earlier_attempt_only_reaches_the_log(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        first = await host.command()
        await host.finish(
            first,
            OperationState.FAILED,
            job_state=JobState.FAILED,
            error=failure(ErrorCode.ENGINE_UNAVAILABLE),
        )
        again = await host.command()
        await host.report(first, OperationState.RUNNING, seq=20)
        told = await host.control(lambda one: bool(one.cancels))
        assert [(one.operation_id, one.epoch, one.reason) for one in told.cancels] == [
            (operation_id, 1, "stale")
        ]

        async def noted() -> bool:
            events = await driver.store.events.of_operation(operation_id)
            return any(event.type == "operation.stale_report" for event in events)

        await eventually(noted, what="the late report in the log")
        await fenced_off(driver, "h1", {"other_epoch": 1})
        await host.finish(again)
        assert (await driver.operation(operation_id, OperationState.SUCCEEDED)).epoch == 2


async def test_each_late_report_is_counted_once_and_a_repetition_is_none(
    driver: DispatcherDriver,
) -> None:
    async with (
        scripted_host(driver.broker, "h1") as owner,
        scripted_host(driver.broker, "h2", online=False) as thief,
    ):
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, owner)
        await thief.come_online()
        await owner.report(command, OperationState.RUNNING, seq=5)
        await driver.operation(operation_id, where=lambda one: one.seq == 5)
        await owner.report(command, OperationState.RUNNING, seq=3)
        for number, seq in enumerate((3, 1), start=1):
            await owner.report(command, OperationState.RUNNING, seq=seq)
            await thief.report(command, OperationState.RUNNING, seq=seq)
            await fenced_off(driver, "h2", {"other_host": number})
        # What the same attempt has gone on from is not late.
        await fenced_off(driver, "h1", {})


async def test_what_an_old_boot_still_says_is_counted_past_the_next_boot(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        old, host.incarnation = host.incarnation, "new"
        await host.come_online()
        host.incarnation = old
        await host.come_online()
        await fenced_off(driver, "h1", {"other_incarnation": 1})
        await host.look()
        await fenced_off(driver, "h1", {"other_incarnation": 2})
        notes = driver.store._connection.database.events.find({"type": "host.stale_report"})
        said = sorted([(one["host_id"], one["detail"]["what"]) async for one in notes])
        assert said == [("h1", "announcement"), ("h1", "inventory")]
        host.incarnation = "newest"
        await host.come_online()

        async def booted() -> bool:
            found = await driver.store.hosts.get("h1")
            return found is not None and found.incarnation == "newest"

        await eventually(booted, what="the newest boot")
        await fenced_off(driver, "h1", {"other_incarnation": 2})


async def test_a_report_that_is_overtaken_while_it_is_written_is_kept_and_counted(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await host.command()
        apply = driver.store.operations.apply

        async def somebody_is_faster(*given: Any) -> int:
            record = await driver.operation(operation_id)
            if record.epoch == 1:
                await driver.store.operations.requeue(record)
            return await apply(*given)

        monkeypatch.setattr(driver.store.operations, "apply", somebody_is_faster)
        await host.accept(command)
        await fenced_off(driver, "h1", {"overtaken": 1})
        events = await driver.store.events.of_operation(operation_id)
    (late,) = (one for one in events if one.type == "operation.stale_report")
    assert (late.epoch, late.detail) == (1, {"why": "overtaken"})


# --- lost hosts ---


async def test_what_may_run_elsewhere_does_when_its_host_is_lost(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        temp = await driver.submit(Verb.TEMP, "job-temp", input=1)
        late = await accepted(driver, h1)
        await driver.submit(Verb.DEPLOY_CREATE, "job-create")
        await h1.command()
        async with scripted_host(driver.broker, "h2", slots=2) as h2:
            await lose(driver, "h1")
            moved = {(one := await h2.command()).job_id: one for _ in range(2)}
            assert {one.generation for one in moved.values()} == {2}
            await slots_used(driver, "h1", 0)
            await h1.finish(late, result_json='"late"')
            await h2.finish(moved["job-temp"], result_json='"elsewhere"')
            await driver.operation(temp, OperationState.SUCCEEDED)
            place = await driver.store.operation_queries.result(temp)
            assert place is not None
            assert place.inline_json == '"elsewhere"'
            await h2.finish(moved["job-create"])
            job = await driver.job("job-create", where=lambda one: one.state is JobState.CREATED)
            assert job.host_id == "h2"


async def test_a_loaded_job_is_lost_with_its_host_and_what_it_ran_fails(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1, scripted_host(driver.broker, "h2"):
        await loaded(driver, h1)
        running = await driver.submit(Verb.INFER, input=1)
        command = await accepted(driver, h1)
        await lose(driver, "h1")
        ended = await driver.operation(running, OperationState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.HOST_LOST
        job = await driver.job("job-1", where=lambda one: one.state is JobState.LOST)
        assert job.host_id is None
        assert job.error is not None
        assert job.error.code is ErrorCode.HOST_LOST
        await slots_used(driver, "h1", 0)
        await h1.finish(command, result_json="1")
        refused = await driver.submit(Verb.INFER, input=1)
        assert (await driver.operation(refused, OperationState.REJECTED)).error is not None
        ending = await driver.submit(Verb.TERMINATE)
        await driver.operation(ending, OperationState.SUCCEEDED)
        assert (await driver.operation(running)).state is OperationState.FAILED


async def test_an_inference_that_a_lost_host_was_given_is_not_dispatched_elsewhere(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        await loaded(driver, h1, model="m-comes-back")
        given = await driver.submit(Verb.INFER, input=1)
        await h1.command()
        async with scripted_host(driver.broker, "h2") as h2:
            await lose(driver, "h1")
            for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
                command = await h2.command()
                assert command.verb is verb
                await h2.finish(command)
            ended = await driver.operation(given, OperationState.FAILED)
            assert ended.error is not None
            assert ended.error.code is ErrorCode.HOST_LOST


async def test_a_model_that_wants_it_is_recreated_elsewhere_before_what_waits(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        await loaded(driver, h1, model="m-comes-back")
        running = await driver.submit(Verb.INFER, input=1)
        await accepted(driver, h1)
        waiting = await driver.submit(Verb.DEPLOY_UNLOAD)
        async with scripted_host(driver.broker, "h2") as h2:
            await lose(driver, "h1")
            create = await h2.command()
            assert (create.verb, create.generation) == (Verb.DEPLOY_CREATE, 2)
            await h2.finish(create)
            load = await h2.command()
            assert load.verb is Verb.DEPLOY_LOAD
            await h2.finish(load)
            unload = await h2.command()
            assert unload.operation_id == waiting
            await driver.operation(running, OperationState.FAILED)
            ours = await driver.operation(create.operation_id)
            assert ours.source == "system"


async def test_a_load_that_takes_its_hosts_down_does_not_go_through_all_of_them(
    driver: DispatcherDriver,
) -> None:
    async with AsyncExitStack() as hosts:
        h1 = await hosts.enter_async_context(scripted_host(driver.broker, "h1"))
        await created(driver, h1, model="m-comes-back")
        load = await driver.submit(Verb.DEPLOY_LOAD)
        await accepted(driver, h1)
        for number in (2, 3):
            host = await hosts.enter_async_context(scripted_host(driver.broker, f"h{number}"))
            await lose(driver, f"h{number - 1}")
            create = await host.command()
            assert create.verb is Verb.DEPLOY_CREATE
            await host.finish(create)
            again = await accepted(driver, host)
            assert (again.operation_id, again.epoch) == (load, number)
        last = await hosts.enter_async_context(scripted_host(driver.broker, "h4"))
        await lose(driver, "h3")
        ended = await driver.operation(load, OperationState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.HOST_LOST
        await last.finish(await last.command())
        await driver.job("job-1", where=lambda one: one.state is JobState.CREATED)


async def test_a_loaded_job_that_loses_one_host_after_the_other_stays_lost(
    driver: DispatcherDriver,
) -> None:
    async with AsyncExitStack() as hosts:
        await loaded(
            driver,
            await hosts.enter_async_context(scripted_host(driver.broker, "h1")),
            model="m-comes-back",
        )
        for number in (2, 3, 4):
            host = await hosts.enter_async_context(scripted_host(driver.broker, f"h{number}"))
            await lose(driver, f"h{number - 1}")
            for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
                command = await host.command()
                assert command.verb is verb
                await host.finish(command)
            await driver.job("job-1", where=lambda one: one.state is JobState.LOADED)
        await hosts.enter_async_context(scripted_host(driver.broker, "h5"))
        await lose(driver, "h4")
        lost = await driver.job("job-1", where=lambda one: one.state is JobState.LOST)
        assert lost.recovery is None


@pytest.mark.parametrize("given", [True, False])
async def test_a_job_that_loses_its_host_while_it_is_brought_back_is_loaded_in_the_end(
    driver: DispatcherDriver,
    given: bool,  # noqa: FBT001
) -> None:
    async with AsyncExitStack() as hosts:
        h1 = await hosts.enter_async_context(scripted_host(driver.broker, "h1"))
        await loaded(driver, h1, model="m-comes-back")
        h2 = await hosts.enter_async_context(scripted_host(driver.broker, "h2"))
        await lose(driver, "h1")
        create = await h2.command()
        if given:
            await h2.finish(create)
            first = (await accepted(driver, h2)).operation_id
        else:
            await driver.store.hosts._collection.update_one(
                {"_id": "h2"}, {"$set": {"liveness": Liveness.SUSPECT}}
            )
            driver.store.changes.written(hosts=["h2"])
            await h2.finish(create)
            (load,) = await driver.store.operation_queries.waiting(after=None, limit=9)
            first = load.operation_id
        h3 = await hosts.enter_async_context(scripted_host(driver.broker, "h3"))
        await lose(driver, "h2")
        for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
            command = await h3.command()
            assert command.verb is verb
            assert command.operation_id != first
            await h3.finish(command)
        await driver.job("job-1", where=lambda one: one.state is JobState.LOADED)
        await driver.operation(first, OperationState.FAILED if given else OperationState.REJECTED)


@pytest.mark.parametrize("given", [True, False])
async def test_what_is_to_be_terminated_next_is_not_loaded_elsewhere_first(
    driver: DispatcherDriver,
    given: bool,  # noqa: FBT001
) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        await loaded(driver, h1, model="m-comes-back")
        if not given:
            await driver.submit(Verb.INFER, input=1)
            await accepted(driver, h1)
        ending = await driver.submit(Verb.TERMINATE)
        if given:
            await accepted(driver, h1)
        await driver.operation(ending)
        async with scripted_host(driver.broker, "h2") as h2:
            await lose(driver, "h1")
            await driver.operation(ending, OperationState.SUCCEEDED)
            await driver.job("job-1", where=lambda one: one.state is JobState.TERMINATED)
            assert not h2.has_command


async def test_what_somebody_else_has_taken_from_a_lost_host_goes_on_where_it_comes_back(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        await loaded(driver, h1, model="m-comes-back")
        unload = await driver.submit(Verb.DEPLOY_UNLOAD)
        await accepted(driver, h1)
        async with held_pass(driver, monkeypatch, read=1):
            job = await driver.job("job-1")
            error, recovery = (
                ErrorInfo.of(ErrorCode.HOST_LOST),
                RestorationRecord(to=job.state, key=1),
            )
            assert await driver.store.jobs.observe(job, JobState.LOST, error, recovery=recovery)
        async with scripted_host(driver.broker, "h2") as h2:
            for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
                command = await h2.command()
                assert command.verb is verb
                await h2.finish(command)
            assert (await h2.command()).operation_id == unload


async def test_a_host_that_returns_takes_part_again_and_loses_what_is_not_its_own(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        job = await loaded(driver, h1)
        await lose(driver, "h1")
        await driver.job("job-1", where=lambda one: one.state is JobState.LOST)
        await h1.beat()
        told = await h1.control(lambda one: one.renounce)
        assert told.incarnation == h1.incarnation
        host = await driver.store.hosts.get("h1")
        assert host is not None
        assert host.liveness is Liveness.LOST
        h1.incarnation = "the-next-one"
        await h1.come_online(item(job))
        told = await h1.control(lambda one: bool(one.discards))
        assert [(one.container_id, one.job_id) for one in told.discards] == [(CONTAINER, "job-1")]
        await created(driver, h1, "job-2")


@asynccontextmanager
async def held_pass(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch, *, read: int
) -> AsyncIterator[None]:
    """Lose h1, and hold the pass that takes its work away before its nth read of the jobs.

    Returns when the dispatcher has gone on to its next pass.
    """
    jobs, hosts = driver.store.jobs, driver.store.hosts
    on_host, any_silent = jobs.on_host, hosts.any_silent
    held, go_on, again = asyncio.Event(), asyncio.Event(), asyncio.Event()
    left = read

    async def held_back(host_id: str) -> list[JobRecord]:
        nonlocal left
        left -= 1
        if left == 0:
            held.set()
            await go_on.wait()
        return await on_host(host_id)

    async def next_pass(**after: float) -> bool:
        if go_on.is_set():
            again.set()
        return await any_silent(**after)

    monkeypatch.setattr(jobs, "on_host", held_back)
    monkeypatch.setattr(hosts, "any_silent", next_pass)
    await lose(driver, "h1")
    async with asyncio.timeout(20):
        await held.wait()
        yield
        go_on.set()
        await again.wait()


async def test_a_host_that_returns_before_its_work_is_read_keeps_it(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        job = await loaded(driver, h1)
        async with held_pass(driver, monkeypatch, read=1):
            h1.incarnation = "the-next-one"
            await h1.come_online(item(job))
            operation_id = await driver.submit(Verb.INFER, input=1)
            command = await accepted(driver, h1)
        now = await driver.job("job-1")
        assert (now.state, now.host_id, now.generation) == (JobState.LOADED, "h1", job.generation)
        await h1.finish(command, result_json="1")
        done = await driver.operation(operation_id, where=lambda one: one.state.terminal)
        assert (done.state, done.epoch) == (OperationState.SUCCEEDED, 1)
        assert not h1.has_control
        await slots_used(driver, "h1", 1)


async def test_a_host_that_returns_while_its_work_is_taken_away_keeps_what_is_new(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_host(driver.broker, "h1") as h1:
        await loaded(driver, h1)
        async with held_pass(driver, monkeypatch, read=2):
            assert (await driver.job("job-1")).state is JobState.LOST
            h1.incarnation = "the-next-one"
            await h1.come_online()
            operation_id = await driver.submit(Verb.DEPLOY_CREATE, "job-2")
            command = await accepted(driver, h1)
            given = await driver.job("job-2")
        now = await driver.job("job-2")
        assert (now.host_id, now.version) == ("h1", given.version)
        await h1.finish(command)
        done = await driver.operation(operation_id, where=lambda one: one.state.terminal)
        assert (done.state, done.epoch) == (OperationState.SUCCEEDED, 1)
        await driver.job("job-2", where=lambda one: one.state is JobState.CREATED)


async def test_nothing_is_sent_to_a_suspect_host_before_it_is_heard_of_again(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await created(driver, host)
        hosts = driver.store.hosts
        await hosts._collection.update_one({"_id": "h1"}, {"$set": {"liveness": Liveness.SUSPECT}})
        driver.store.changes.written(hosts=["h1"])
        operation_id = await driver.submit(Verb.DEPLOY_LOAD)
        waiting = await driver.operation(operation_id, where=lambda one: bool(one.waiting_for))
        assert waiting.waiting_for == ("host h1 is SUSPECT",)
        await host.beat()
        assert (await host.command()).operation_id == operation_id


# --- containers ---


async def test_a_loaded_model_that_dies_fails_its_job_and_frees_its_place(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        job = await loaded(driver, host)
        await host.look(item(job, running=False, exit_code=3))
        failed = await driver.job("job-1", where=lambda one: one.state is JobState.FAILED)
        assert failed.error is not None
        assert failed.error.code is ErrorCode.EXITED
        await slots_used(driver, "h1", 0)
        assert (await host.control(lambda one: bool(one.discards))).discards[0].generation == 1
        await host.look(item(job, running=False, exit_code=3))
        assert (await host.control(lambda one: bool(one.discards))).discards[0].generation == 1


async def test_a_model_that_wants_it_is_loaded_again_but_not_for_ever(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        job = await loaded(driver, host, model="m-restarts")
        waiting = await driver.submit(Verb.INFER, input=1)
        held = await host.command()
        await host.finish(held, result_json="1")
        await driver.operation(waiting, OperationState.SUCCEEDED)
        await host.look(item(job, running=False, exit_code=3))
        again = await host.command()
        assert (again.verb, again.generation) == (Verb.DEPLOY_LOAD, job.generation)
        await host.finish(again)
        await driver.job("job-1", where=lambda one: one.state is JobState.LOADED)
        await host.look(item(job, running=False, exit_code=3))
        await driver.job("job-1", where=lambda one: one.state is JobState.FAILED)


async def test_a_model_that_an_inference_found_dead_is_back_before_what_waits(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host, model="m-restarts")
        found = await driver.submit(Verb.INFER, input=1)
        waiting = await driver.submit(Verb.INFER, input=2)
        await host.finish(
            await host.command(),
            OperationState.FAILED,
            job_state=JobState.FAILED,
            error=failure(ErrorCode.OOM_KILLED),
        )
        await driver.operation(found, OperationState.FAILED)
        create = await host.command()
        assert (create.verb, create.generation) == (Verb.DEPLOY_CREATE, 2)
        await host.finish(create)
        load = await host.command()
        assert load.verb is Verb.DEPLOY_LOAD
        await host.finish(load)
        assert (await host.command()).operation_id == waiting


async def test_a_model_that_dies_while_it_is_brought_back_uses_its_restarts_up(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        job = await loaded(driver, host, model="m-restarts")
        await host.look(item(job, running=False, exit_code=3))
        await host.finish(
            await host.command(),
            OperationState.FAILED,
            job_state=JobState.FAILED,
            error=failure(ErrorCode.EXITED),
        )
        failed = await driver.job("job-1", where=lambda one: one.state is JobState.FAILED)
        assert failed.recovery is None


async def test_a_look_that_was_made_while_the_job_was_worked_on_says_nothing_of_it(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        await host.look(busy=("job-1",))
        marker = await loaded(driver, host, "job-2")
        await host.look(item(marker), busy=("job-1",))
        assert (await driver.job("job-1")).state is JobState.LOADED


UNKNOWN_CONTAINER = InventoryItem(
    container_id="cd" * 32, job_id="nobody", generation=1, operation_id="o", running=True
)


async def test_a_look_that_is_judged_late_says_nothing_of_what_was_told_since(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await created(driver, host)
        before = host.number
        await driver.submit(Verb.DEPLOY_LOAD)
        await host.finish(await host.command())
        job = await driver.job("job-1", where=lambda one: one.state is JobState.LOADED)
        down = item(job, running=False, loaded=False)
        await host.look(down, number=before)
        infer = await driver.submit(Verb.INFER, input=1)
        await host.finish(await host.command(), result_json="1")
        await driver.operation(infer, OperationState.SUCCEEDED)
        assert (await driver.job("job-1")).state is JobState.LOADED
        await host.look(down)
        await driver.job("job-1", where=lambda one: one.state is JobState.FAILED)


async def test_restarts_count_anew_after_a_steady_time_whoever_finds_the_death(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        job = await loaded(driver, host, model="m-restarts")
        await host.look(item(job, running=False, exit_code=3))
        await host.finish(await host.command())
        back = await driver.job("job-1", where=lambda one: one.state is JobState.LOADED)
        assert back.restarts == 1
        await driver.store.jobs._collection.update_one(
            {"_id": "job-1"}, [{"$set": {"loaded_at": {"$subtract": ["$$NOW", 3_600_000]}}}]
        )
        await driver.submit(Verb.INFER, input=1)
        await host.finish(
            await host.command(),
            OperationState.FAILED,
            job_state=JobState.FAILED,
            error=failure(ErrorCode.OOM_KILLED),
        )
        assert (await host.command()).verb is Verb.DEPLOY_CREATE
        assert (await driver.job("job-1")).restarts == 1


async def test_a_job_that_is_deployed_anew_has_all_of_its_restarts(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        job = await loaded(driver, host, model="m-restarts")
        for _ in range(2):
            await host.look(item(job, running=False, exit_code=3))
            now = await driver.job("job-1", where=lambda one: one.state is not JobState.LOADED)
            if now.state is JobState.CREATED:
                await host.finish(await host.command())
                await driver.job("job-1", where=lambda one: one.state is JobState.LOADED)
        assert (await driver.job("job-1")).restarts == 1
        anew = await loaded(driver, host, model="m-restarts")
        assert anew.restarts == 0


async def test_a_container_that_nobody_owns_is_removed(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await host.look(UNKNOWN_CONTAINER)
        told = await host.control(lambda one: bool(one.discards))
        assert told.discards[0].container_id == UNKNOWN_CONTAINER.container_id


async def test_a_dry_run_only_tells_of_what_nobody_owns(store: Store, broker: Broker) -> None:
    await store.models.put(MODEL)
    settings: dict[str, Any] = {
        "dispatcher_orphan_grace_s": 0.0,
        "dispatcher_orphan_dry_run": True,
    }
    async with running_dispatcher(store, broker, **settings), scripted_host(broker, "h1") as host:
        driver = DispatcherDriver(store, broker)
        job = await loaded(driver, host)
        old = item(job, generation=0, container_id="ef" * 32)
        await host.look(item(job), UNKNOWN_CONTAINER, old)
        told = await host.control(lambda one: bool(one.discards))
        assert [one.container_id for one in told.discards] == [old.container_id]


# --- cancelling ---


async def poke(driver: DispatcherDriver, operation_id: str) -> None:
    body = CancelNotice(operation_ids=(operation_id,)).model_dump_json().encode()
    await driver.broker.publish(JOBS, SUBMIT_KEY, body, message_type=CANCEL_TYPE)


async def test_what_waits_is_cancelled_in_the_record(driver: DispatcherDriver) -> None:
    operation_id = await driver.submit(Verb.DEPLOY_CREATE)
    await driver.operation(operation_id, where=lambda one: bool(one.waiting_for))
    wished = await driver.store.operations.request_cancel(operation_id)
    assert wished is not None
    assert wished.cancel_requested
    await poke(driver, operation_id)
    ended = await driver.operation(operation_id, OperationState.CANCELLED)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.CANCELLED


async def test_what_a_host_has_is_cancelled_there_until_it_says_so(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, host)
        await driver.store.operations.request_cancel(operation_id)
        for _ in range(2):
            told = await host.control(lambda one: bool(one.cancels))
            assert [(one.operation_id, one.epoch) for one in told.cancels] == [(operation_id, 1)]
        await host.finish(
            command,
            OperationState.CANCELLED,
            job_state=JobState.TERMINATED,
            error=failure(ErrorCode.CANCELLED),
        )
        await driver.operation(operation_id, OperationState.CANCELLED)
        await slots_used(driver, "h1", 0)


async def test_a_cancelled_attempt_is_not_made_again(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        await accepted(driver, host)
        await driver.store.operations.request_cancel(operation_id)
        host.incarnation = "the-next-one"
        await host.come_online()
        ended = await driver.operation(operation_id, OperationState.CANCELLED)
        assert ended.epoch == 1
        await slots_used(driver, "h1", 0)


async def test_an_interrupted_inference_that_was_to_be_cancelled_is(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        operation_id = await driver.submit(Verb.INFER, input=1)
        await accepted(driver, host)
        await driver.store.operations.request_cancel(operation_id)
        await lose(driver, "h1")
        await driver.operation(operation_id, OperationState.CANCELLED)


async def test_a_wish_that_comes_too_late_changes_nothing(driver: DispatcherDriver) -> None:
    operation_id = await driver.submit(Verb.TERMINATE)
    await driver.operation(operation_id, OperationState.SUCCEEDED)
    late = await driver.store.operations.request_cancel(operation_id)
    assert late is not None
    assert not late.cancel_requested
    assert (
        await driver.store.operations.request_cancel("0" * 8 + "-0000-0000-0000-000000000000")
        is None
    )


# --- deadlines ---


async def test_a_worker_that_goes_on_past_the_timeout_is_told_and_then_overruled(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.maintenance.deadlines.REMIND_AFTER_S", 0.1)
    monkeypatch.setattr("dispatcher.maintenance.deadlines.GIVE_UP_AFTER_S", 1.0)
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE, timeout_s=0.1)
        await accepted(driver, host)
        told = await host.control(lambda one: bool(one.cancels))
        assert told.cancels[0].reason == "timed_out"
        ended = await driver.operation(operation_id, OperationState.TIMED_OUT)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.TIMED_OUT
        assert (await driver.job("job-1")).state is JobState.FAILED
        await slots_used(driver, "h1", 0)


async def test_a_host_that_lives_and_never_accepts_loses_the_operation(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.maintenance.deadlines.NOT_ACCEPTED_S", 0.2)
    async with (
        scripted_host(driver.broker, "h1") as deaf,
        scripted_host(driver.broker, "h2") as other,
    ):
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        await deaf.command()  # as many slots are free on both, so the first by name has it
        again = await other.command()
        assert (again.operation_id, again.generation) == (operation_id, 2)
        await other.finish(again)
        await driver.operation(operation_id, OperationState.SUCCEEDED)


@pytest.mark.parametrize("accepts", [True, False])
async def test_what_was_reported_in_time_counts_though_it_is_read_late(
    store: Store, broker: Broker, *, accepts: bool
) -> None:
    """Nobody records for an hour; the sweep that follows finds everything overdue."""
    await store.models.put(MODEL)
    driver = DispatcherDriver(store, broker)
    async with scripted_host(broker, "h1") as host:
        async with running_dispatcher(store, broker):
            operation_id = await driver.submit(Verb.DEPLOY_CREATE, timeout_s=60)
            command = await host.command()
            if accepts:
                await host.accept(command)
                await driver.operation(operation_id, OperationState.RUNNING)
        await host.finish(command)
        hour = {"$subtract": ["$$NOW", 3_600_000]}
        dates = {"claimed_at": hour, **({"begun_at": hour} if accepts else {})}
        await store.operations._collection.update_one({"_id": operation_id}, [{"$set": dates}])
        async with running_dispatcher(store, broker):
            ended = await driver.operation(operation_id, where=lambda one: one.state.terminal)
            assert (ended.state, ended.epoch) == (OperationState.SUCCEEDED, 1)
            await driver.job("job-1", where=lambda job: job.state is JobState.CREATED)


# --- boots ---


async def test_a_worker_whose_announcement_was_lost_is_told_to_begin_anew(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.reports.heartbeats.STRANGER_S", 0.2)
    async with scripted_host(driver.broker, "h1") as host:
        await created(driver, host)
        known, host.incarnation = host.incarnation, "never-announced"

        async def is_told() -> bool:
            await host.beat()
            return host.has_control

        await eventually(is_told, what="a word")
        assert (await host.control()).renounce
        found = await driver.store.hosts.get("h1")
        assert found is not None
        assert found.incarnation == known


# --- dead letters ---


async def test_a_dead_letter_that_is_replayed_is_an_operation_of_its_own(
    driver: DispatcherDriver,
) -> None:
    body = {"job_id": "job-1", "operation_type": "TERMINATE", "nonsense": 1}
    await driver.publish(body, key="k")
    del body["nonsense"]
    await driver.broker.publish(
        JOBS,
        SUBMIT_KEY,
        json.dumps(body).encode(),
        message_id="k",
        headers={REPLAY_HEADER: "letter:1"},
    )

    async def two() -> bool:
        page = await driver.store.operation_queries.page({"job_id": "job-1"}, after=None, limit=10)
        return sorted(one.state for one in page.items) == ["REJECTED", "SUCCEEDED"]

    await eventually(two, what="the first is rejected, the replay succeeds")
