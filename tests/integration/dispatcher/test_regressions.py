"""What once brought a dispatcher down, or a job out of step; found in reviews, kept as tests."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import aio_pika
import pytest

from dispatcher.intake import overdue
from modelyard.broker import Broker
from modelyard.contract.capacity.ledger import Allocation
from modelyard.contract.catalog.entries import Hook, Hooks, ModelSpec
from modelyard.contract.errors import ErrorCode, ErrorInfo, StoreUnavailableError
from modelyard.contract.ids import new_operation_id, operation_id_for_key
from modelyard.contract.messages import EngineFacts, HostOnline, JobRequest
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.contract.topology import DEAD, HEARTBEATS, JOBS, JOBS_QUEUE, REPORTS, SUBMIT_KEY
from modelyard.store import Store
from modelyard.store.jobs import Assignment, JobEffect
from modelyard.store.records import JobRecord, NewOperation
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher
from tests.support.dispatcher.scripted_host import scripted_host
from tests.support.waiting import eventually

ONLINE = HostOnline(slots=1, engine=EngineFacts(version="1", api_version="1"))


async def a_job(store: Store) -> JobRecord:
    await store.jobs.ensure(["j"])
    job = await store.jobs.get("j")
    assert job is not None
    return job


def assignment(job: JobRecord, operation_id: str, *, spec: ModelSpec = MODEL) -> Assignment:
    return Assignment("j", job.version, operation_id, 1, 1, "h1", spec)


async def test_a_job_that_changed_while_its_line_was_read_is_left_for_the_next_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await a_job(store)
    get_many = store.jobs.get_many

    async def somebody_is_faster(job_ids: Any) -> dict[str, JobRecord]:
        await store.jobs.assign([assignment(job, "somebody's")], token="t")
        return await get_many(job_ids)

    monkeypatch.setattr(store.jobs, "get_many", somebody_is_faster)
    read = await store.jobs.lines(["j"])
    assert not read.lines
    assert read.moved == {"j"}


async def test_a_reservation_that_was_taken_back_makes_a_late_assignment_lose(
    store: Store,
) -> None:
    job = await a_job(store)
    assert await store.jobs.fence(job)
    assert await store.jobs.assign([assignment(job, "frozen")], token="t") == set()


async def test_a_report_that_comes_twice_does_not_revive_a_job_without_its_container(
    store: Store,
) -> None:
    await store.jobs.assign([assignment(await a_job(store), "o")], token="t")
    created = JobEffect("j", "o", 1, 5, 1, "h1", JobState.CREATED, "c" * 64, None)
    assert await store.jobs.apply([created]) == 1
    job = await store.jobs.get("j")
    assert job is not None
    assert await store.jobs.observe(job, JobState.FAILED, None)
    assert await store.jobs.apply([created]) == 0
    job = await store.jobs.get("j")
    assert job is not None
    assert (job.state, job.host_id) == (JobState.FAILED, None)


@pytest.mark.parametrize(
    "body",
    [
        {"seed": 2**64 - 1},
        {"nul\x00key": 1},
        {"$ref": "a", "$id": 1, "$db": "x"},
        {"$set": {"a.b": "$$ROOT"}},
    ],
)
async def test_a_hooks_body_may_be_any_json(driver: DispatcherDriver, body: Any) -> None:
    hooks = Hooks(load=Hook(path="/load", body=body))
    await driver.store.models.put(MODEL.model_copy(update={"hooks": hooks}))
    async with scripted_host(driver.broker, "h1") as host:
        await driver.submit(Verb.DEPLOY_CREATE)
        await host.finish(await host.command())
        await driver.submit(Verb.DEPLOY_LOAD)
        load = (await host.command()).model.hooks.load
        assert load is not None
        assert load.body == body


async def test_an_errors_detail_may_be_any_json(driver: DispatcherDriver) -> None:
    detail = {"exit_code": 2**64, "$ref": "a", "$id": 1, "nul\x00key": [1, {"a.b": None}]}
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        error = ErrorInfo(code=ErrorCode.EXITED, message="It exited.", detail=detail)
        await host.finish(
            await host.command(), OperationState.FAILED, job_state=JobState.FAILED, error=error
        )
        failed = await driver.operation(operation_id, OperationState.FAILED)
        assert failed.error == error
        job = await driver.job("job-1", where=lambda job: job.state is JobState.FAILED)
        assert job.error == error

        async def told() -> bool:
            events = await driver.store.events.of_operation(operation_id)
            return any(event.error == error for event in events)

        await eventually(told)


async def test_reports_and_heartbeats_that_make_no_sense_harm_nobody(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await host.command()
        good = host.made(command, OperationState.RUNNING, seq=1).model_dump(mode="json")
        envelope = {"host_id": "h1", "incarnation": host.incarnation}
        for operations in ([good | {"seq": 2**70}, good], [5], [good | {"state": "DANCING"}]):
            body = json.dumps(envelope | {"operations": operations}).encode()
            await driver.broker.publish(REPORTS, "h1", body)
        for beat in ({"slots": 2**70}, {"slots": 1, "labels": {"nul\x00": "x"}}):
            await driver.broker.publish(HEARTBEATS, "", json.dumps(envelope | beat).encode())
        await driver.operation(operation_id, OperationState.RUNNING)
        newer = host.made(command, OperationState.FAILED, seq=3).model_dump(mode="json")
        newer["error"] = {"code": "a_code_of_tomorrow", "message": "It is new."}
        body = json.dumps(envelope | {"operations": [newer]}).encode()
        await driver.broker.publish(REPORTS, "h1", body)
        failed = await driver.operation(operation_id, where=lambda one: one.failures == 1)
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == (ErrorCode.WORKER_ERROR, "It is new.")


async def test_a_message_without_a_key_is_one_operation_however_often_recording_fails(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = driver.store.events.append
    failures = iter([True, True])

    async def fails_twice(events: Any) -> None:
        if next(failures, False):
            raise StoreUnavailableError
        await append(events)

    monkeypatch.setattr(driver.store.events, "append", fails_twice)
    connection = await aio_pika.connect(driver.broker._url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("modelyard.jobs")
        body = {"job_id": "j", "operation_type": "TEMP", "model": "m-131", "input": 1}
        await exchange.publish(aio_pika.Message(json.dumps(body).encode()), "job.submit")
    neighbour = await driver.submit(Verb.TERMINATE, "other")
    await driver.operation(neighbour, OperationState.SUCCEEDED)
    page = await driver.store.operation_queries.page({"job_id": "j"}, after=None, limit=10)
    assert len(page.items) == 1


async def test_a_flood_of_full_lists_gets_through_although_recording_fails_in_between(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in = driver.store.operations.take_in
    calls = 0

    async def fails_now_and_then(new: Any) -> list[bool]:
        nonlocal calls
        calls += 1
        assert len(new) <= 1_000
        if calls % 3 == 2:
            raise StoreUnavailableError
        return await take_in(new)

    monkeypatch.setattr(driver.store.operations, "take_in", fails_now_and_then)
    lists = 3
    for number in range(lists):
        requests = [{"job_id": f"j{number}-{n}", "operation_type": "TERMINATE"} for n in range(700)]
        await driver.publish(requests, key=f"flood-{number}")
    for number in range(lists):
        for place in (0, 699):
            operation_id = operation_id_for_key(f"flood-{number}/{place}")
            await driver.operation(operation_id, OperationState.SUCCEEDED)


async def test_a_backlog_in_the_broker_keeps_its_order_when_a_dispatcher_comes_late(
    store: Store, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "OVERDUE_S", 0.0)
    await store.models.put(MODEL)
    await broker.declare([JOBS_QUEUE])
    driver = DispatcherDriver(store, broker)
    load = JobRequest(job_id="job-1", operation_type=Verb.DEPLOY_LOAD)
    create_id, load_id = await driver.submit(Verb.DEPLOY_CREATE), new_operation_id()
    await store.operations.record([NewOperation.of(load_id, load, "http")])
    await driver.submission((load_id, load))
    async with (
        running_dispatcher(store, broker, dispatcher_sweep_interval_s=0.01),
        scripted_host(broker, "h1") as host,
    ):
        for operation_id in (create_id, load_id):
            command = await host.command()
            assert command.operation_id == operation_id
            await host.finish(command)


async def test_what_a_frozen_dispatcher_has_in_hand_is_not_overtaken(
    store: Store, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "OVERDUE_S", 0.0)
    await store.models.put(MODEL)
    await broker.declare([JOBS_QUEUE])
    driver = DispatcherDriver(store, broker)
    async with AsyncExitStack() as stack:
        async with broker.subscribe(JOBS_QUEUE, prefetch=50) as frozen:
            create_id = await driver.submit(Verb.DEPLOY_CREATE)
            in_hand = await anext(frozen.batches(max_items=1))
            assert len(in_hand) == 1
            load = JobRequest(job_id="job-1", operation_type=Verb.DEPLOY_LOAD)
            load_id = new_operation_id()
            await store.operations.record([NewOperation.of(load_id, load, "http")])
            await stack.enter_async_context(
                running_dispatcher(store, broker, dispatcher_sweep_interval_s=0.01)
            )
            host = await stack.enter_async_context(scripted_host(broker, "h1"))

            async def there() -> bool:
                return await store.hosts.get("h1") is not None

            await eventually(there, what="some rounds of the sweep")
            waiting = await driver.operation(load_id)
            assert (waiting.state, waiting.line) == (OperationState.QUEUED, None)
        for operation_id in (create_id, load_id):
            command = await host.command()
            assert command.operation_id == operation_id
            await host.finish(command)


async def test_a_freed_slot_goes_to_the_most_urgent_not_to_who_comes_now(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1", slots=1) as host:
        holder = await driver.submit(Verb.TEMP, "holder", input=1)
        held = await host.command()
        assert held.operation_id == holder
        urgent = {
            await driver.submit(Verb.TEMP, f"urgent-{n}", input=1, priority=9) for n in range(3)
        }
        for operation_id in urgent:

            async def waits(key: str = operation_id) -> bool:
                return bool((await driver.operation(key)).waiting_for)

            await eventually(waits)
        for turn in range(3):
            low = [
                asyncio.create_task(driver.submit(Verb.TEMP, f"low-{turn}-{n}", input=1))
                for n in range(10)
            ]
            await host.finish(held)
            await asyncio.gather(*low)
            held = await host.command()
            assert held.operation_id in urgent


@pytest.fixture
def stone(driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a job whose messages make the dispatcher stumble."""
    enter, take_in = driver.store.operations.enter, driver.store.operations.take_in

    async def trips(entries: Any) -> Any:
        if any(one.new.job_id == "stone" for one in entries):
            raise OverflowError("nobody foresaw this")
        return await enter(entries)

    async def trips_again(new: Any) -> list[bool]:
        if any(one.job_id == "stone" for one, _ in new):
            raise OverflowError("nobody foresaw this")
        return await take_in(new)

    monkeypatch.setattr(driver.store.operations, "enter", trips)
    monkeypatch.setattr(driver.store.operations, "take_in", trips_again)
    return "stone"


async def test_a_message_that_nobody_foresaw_is_buried_and_its_neighbours_get_through(
    driver: DispatcherDriver, stone: str
) -> None:
    ids = [await driver.submit(Verb.TERMINATE, job) for job in ("before", stone, "after")]
    for operation_id in (ids[0], ids[2]):
        await driver.operation(operation_id, OperationState.SUCCEEDED)
    letter = await driver.dead_letter()
    assert (letter.reason, letter.queue) == (ErrorCode.INTERNAL, JOBS_QUEUE.name)
    ended = await driver.operation(ids[1], OperationState.REJECTED)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.INTERNAL


async def test_a_letter_with_odd_headers_is_one_letter(driver: DispatcherDriver) -> None:
    said = {"a\0b": "1", "$c.d": "2", "": "3", "Cc-Team": "4", "big": "x" * 70_000}
    await driver.broker.publish(JOBS, SUBMIT_KEY, b"{", headers=said)
    letter = await driver.dead_letter()
    kept = {name: text for name, text in letter.headers.items() if not name.startswith("x-")}
    assert kept == {"a\ufffdb": "1", "$c.d": "2", "": "3", "Cc-Team": "4"}
    assert (letter.reason, letter.queue) == (ErrorCode.INVALID_JSON, JOBS_QUEUE.name)


async def test_a_buried_message_keeps_what_its_publisher_said(
    driver: DispatcherDriver, stone: str
) -> None:
    body = json.dumps({"job_id": stone, "operation_type": Verb.TERMINATE}).encode()
    said = {"Idempotency-Key": "night-run-9", "team": "vision", "big": "x" * 70_000}
    await driver.broker.publish(JOBS, SUBMIT_KEY, body, headers=said, priority=7)
    ended = await driver.operation(operation_id_for_key("night-run-9"), OperationState.REJECTED)
    letter = await driver.dead_letter()
    assert ended.priority == letter.message_priority == 7
    kept = letter.headers
    assert {name: kept.get(name) for name in said} == said | {"big": None}


async def test_what_is_recorded_goes_on_without_its_message_that_was_buried(
    driver: DispatcherDriver, stone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "OVERDUE_S", 0.5)
    request = JobRequest(job_id=stone, operation_type=Verb.TERMINATE)
    operation_id = new_operation_id()
    await driver.store.operations.record([NewOperation.of(operation_id, request, "http")])
    await driver.submission((operation_id, request))
    await driver.operation(operation_id, OperationState.SUCCEEDED)
    # A replay of it would run it twice. The letter of the next one is behind where it would be.
    rejected = await driver.submit(Verb.TERMINATE, stone)
    await driver.operation(rejected, OperationState.REJECTED)
    page = await driver.store.dead_letters.page({}, after=None, limit=9)
    assert len(page.items) == 1


async def given_up(driver: DispatcherDriver, key: str, body: bytes) -> None:
    """Publish what the broker makes of a request that reached its delivery limit."""
    connection = await aio_pika.connect(driver.broker._url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(DEAD.name)
        death = {"queue": JOBS_QUEUE.name, "reason": "delivery_limit", "count": 1}
        await exchange.publish(
            aio_pika.Message(
                body,
                message_id=key,
                headers={"x-death": [death]},  # type: ignore[list-item]
            ),
            "job.submit",
        )


async def test_a_request_that_the_broker_gave_up_is_a_rejected_operation(
    driver: DispatcherDriver,
) -> None:
    await given_up(driver, "given-up", b'{"job_id": "j", "operation_type": "TERMINATE"}')
    rejected = await driver.operation(operation_id_for_key("given-up"), OperationState.REJECTED)
    assert rejected.error is not None
    assert rejected.error.code is ErrorCode.DELIVERY_LIMIT
    assert (await driver.dead_letter()).reason == ErrorCode.DELIVERY_LIMIT


async def test_a_request_that_was_recorded_before_the_broker_gave_it_up_goes_on(
    driver: DispatcherDriver,
) -> None:
    request = JobRequest(job_id="j", operation_type=Verb.TERMINATE)
    key = operation_id_for_key("given-up")
    await driver.store.operations.record([NewOperation.of(key, request, "amqp")])
    body = b'{"job_id": "j", "operation_type": "TERMINATE"}'
    await given_up(driver, "given-up", body)
    await given_up(driver, "another", body)
    await driver.operation(operation_id_for_key("another"), OperationState.REJECTED)
    page = await driver.store.dead_letters.page({}, after=None, limit=9)
    assert [letter.message_id for letter in page.items] == ["another"]
    found = await driver.operation(key)
    assert found.state is not OperationState.REJECTED


async def test_a_host_that_still_holds_a_reservation_of_the_job_is_passed_over(
    driver: DispatcherDriver,
) -> None:
    async with (
        scripted_host(driver.broker, "h1", slots=8),
        scripted_host(driver.broker, "h2", slots=2) as second,
    ):
        await eventually(lambda: _two(driver.store))
        roomy = await driver.store.hosts.get("h1")
        assert roomy is not None
        taken = Allocation(job_id="job-1", generation=7)
        assert await driver.store.hosts.reserve(roomy, [taken], token="left behind")
        await driver.submit(Verb.DEPLOY_CREATE)
        assert (await second.command(within_s=5)).job_id == "job-1"


async def _two(store: Store) -> bool:
    return len(await store.hosts.all()) == 2
