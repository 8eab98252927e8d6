"""The dispatcher on a real RabbitMQ and MongoDB, with hosts that the tests drive by hand."""

import asyncio
import json
import uuid
from typing import Any

import pytest

from modelyard.broker import Broker
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.ids import new_operation_id, operation_id_for_key
from modelyard.contract.messages import (
    InventoryItem,
    JobRequest,
    WorkerReports,
)
from modelyard.contract.states import Admission, JobState, OperationState, Verb
from modelyard.contract.topology import EVENTS, JOBS_QUEUE, REPORTS, REPORTS_QUEUE
from modelyard.contract.validation import parse_request
from modelyard.scheduling.planning import WITHDRAWN
from modelyard.store import Store
from modelyard.store.records import NewOperation
from tests.support.dispatcher.deployed import loaded
from tests.support.dispatcher.driver import (
    MODEL,
    DispatcherDriver,
    running_dispatcher,
    running_leader,
)
from tests.support.dispatcher.scripted_host import scripted_host
from tests.support.waiting import eventually


async def test_a_published_request_goes_through_its_hosts_queue_to_its_end(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE, dataset="ds-550")
        command = await host.command()
        assert (command.operation_id, command.epoch, command.generation) == (operation_id, 1, 1)
        assert (command.model.name, command.dataset and command.dataset.name) == ("m-131", "ds-550")
        await host.accept(command)
        assert (await driver.operation(operation_id, OperationState.RUNNING)).host_id == "h1"
        await host.finish(command)
        done = await driver.operation(operation_id, OperationState.SUCCEEDED)
    moments = [done.accepted_at, done.dispatched_at, done.started_at, done.finished_at]
    known = [moment for moment in moments if moment is not None]
    assert len(known) == len(moments)
    assert known == sorted(known)
    job = await driver.job("job-1")
    assert (job.state, job.host_id, job.container_id) == (JobState.CREATED, "h1", "ab" * 32)
    (h1,) = await driver.store.hosts.all()
    assert [(one.job_id, one.generation) for one in h1.reservations] == [("job-1", 1)]


async def test_operations_of_a_job_sent_at_once_run_in_their_order(
    driver: DispatcherDriver,
) -> None:
    verbs = [Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER, Verb.DEPLOY_UNLOAD, Verb.TERMINATE]
    requests = [
        {"job_id": "j", "operation_type": verb, "model": "m-131"}
        | ({"input": {"x": 1}} if verb is Verb.INFER else {})
        for verb in verbs
    ]
    async with scripted_host(driver.broker, "h1") as host:
        await driver.publish(requests, key="all")
        seen = []
        for _ in verbs:
            command = await host.command()
            assert not host.has_command
            seen.append(command.verb)
            await host.finish(command)
        last = await driver.operation(operation_id_for_key("all/4"), OperationState.SUCCEEDED)
    assert seen == verbs
    assert last.error is None
    job = await driver.job("j")
    assert (job.state, job.host_id) == (JobState.TERMINATED, None)
    (h1,) = await driver.store.hosts.all()
    assert (h1.slots_used, h1.reservations) == (0, ())


async def test_the_same_message_many_times_is_one_operation(driver: DispatcherDriver) -> None:
    request = {"job_id": "j", "operation_type": "TEMP", "model": "m-131", "dataset": "ds-550"}
    async with scripted_host(driver.broker, "h1") as host:
        for number in range(30):
            body = request | ({"priority": 5} if number == 20 else {})
            await driver.publish(body, key="once")
        command = await host.command()
        await host.finish(command)
        operation_id = operation_id_for_key("once")
        await driver.operation(operation_id, OperationState.SUCCEEDED)

        async def audited() -> list[dict[str, Any]] | None:
            return await driver.store.audit.of_operation(operation_id) or None

        (note,) = await eventually(audited)
        assert not host.has_command
    assert note["kind"] == "payload_mismatch"
    await driver.operation(operation_id, where=lambda one: one.payload_mismatch)
    page = await driver.store.operation_queries.page({"job_id": "j"}, after=None, limit=10)
    assert [one.operation_id for one in page.items] == [operation_id]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not json", ErrorCode.INVALID_JSON),
        (b'{"job_id": NaN}', ErrorCode.INVALID_JSON),
        (b'{"job_id": "a", "job_id": "b"}', ErrorCode.INVALID_JSON),
        (b"\xff\xfe", ErrorCode.INVALID_JSON),
        (b"[]", ErrorCode.INVALID_REQUEST),
        (b'"' + b"x" * (1 << 20) + b'"', ErrorCode.BODY_TOO_LARGE),
        (json.dumps([{}] * 1_001).encode(), ErrorCode.BATCH_TOO_LARGE),
    ],
)
async def test_what_cannot_be_read_becomes_a_dead_letter_and_holds_up_nobody(
    driver: DispatcherDriver, body: bytes, reason: ErrorCode
) -> None:
    await driver.publish(body)
    neighbour = await driver.submit(Verb.TERMINATE)
    await driver.operation(neighbour, OperationState.SUCCEEDED)
    letter = await driver.dead_letter()
    assert (letter.reason, letter.queue) == (reason, JOBS_QUEUE.name)
    assert letter.payload == body
    assert letter.detail
    assert await driver.broker.message_count(JOBS_QUEUE.name) == 0


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"operation_type": "EXPLODE"}, "/operation_type"),
        ({"job_id": "../images/prune"}, "/job_id"),
        ({"job_id": {"$ne": ""}}, "/job_id"),
        ({"model": "a\n"}, "/model"),
        ({"container_id": 5}, "/container_id"),
        ({"priority": 101}, "/priority"),
        ({"surprise": 1}, "/surprise"),
    ],
)
async def test_a_request_that_breaks_the_schema_is_a_rejected_operation(
    driver: DispatcherDriver, fields: dict[str, Any], pointer: str
) -> None:
    request = {"job_id": "j", "operation_type": "TERMINATE"} | fields
    await driver.publish(request, key="bad")
    rejected = await driver.operation(operation_id_for_key("bad"), OperationState.REJECTED)
    assert rejected.error is not None
    assert rejected.error.code is ErrorCode.INVALID_REQUEST
    assert [one["pointer"] for one in rejected.error.detail["errors"]] == [pointer]
    assert rejected.finished_at is not None


async def test_an_unknown_model_is_rejected(driver: DispatcherDriver) -> None:
    operation_id = await driver.submit(Verb.DEPLOY_CREATE, model="m-999")
    rejected = await driver.operation(operation_id, OperationState.REJECTED)
    assert rejected.error is not None
    assert rejected.error.code is ErrorCode.UNKNOWN_MODEL


async def test_jobs_spread_over_hosts_and_each_command_is_on_its_hosts_queue(
    driver: DispatcherDriver,
) -> None:
    async with (
        scripted_host(driver.broker, "h1") as first,
        scripted_host(driver.broker, "h2") as second,
    ):

        async def both() -> bool:
            return len(await driver.store.hosts.all()) == 2

        await eventually(both)
        for number in range(4):
            await driver.submit(Verb.DEPLOY_CREATE, f"job-{number}")
        for host in (first, second):
            for _ in range(2):
                command = await host.command()
                await host.finish(command)
                job = await driver.job(
                    command.job_id, where=lambda job: job.state is JobState.CREATED
                )
                assert job.host_id == host.host_id


async def test_what_cannot_be_placed_waits_with_its_reason_until_a_host_fits(
    driver: DispatcherDriver,
) -> None:
    await driver.store.models.put(MODEL.model_copy(update={"host_labels": {"gpu": "a100"}}))
    async with scripted_host(driver.broker, "plain"):
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)

        async def explained() -> bool:
            found = await driver.operation(operation_id)
            return found.waiting_for == ("1 host does not have the label gpu=a100",)

        await eventually(explained)
        async with scripted_host(driver.broker, "big", gpu="a100") as big:
            command = await big.command()
            assert command.operation_id == operation_id
    assert (await driver.operation(operation_id, OperationState.DISPATCHED)).waiting_for == ()


async def test_a_cordoned_host_takes_nothing_new_and_finishes_what_it_has(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await driver.submit(Verb.DEPLOY_CREATE, "before")
        await host.finish(await host.command())
        await driver.job("before", where=lambda job: job.state is JobState.CREATED)
        await driver.store.hosts.admit("h1", Admission.CORDONED)
        waiting = await driver.submit(Verb.DEPLOY_CREATE, "after")

        async def explained() -> bool:
            return (await driver.operation(waiting)).waiting_for == ("1 host is CORDONED",)

        await eventually(explained)
        await driver.submit(Verb.TERMINATE, "before")
        command = await host.command()
        assert command.verb is Verb.TERMINATE
        await host.finish(command)
        await driver.store.hosts.admit("h1", Admission.OPEN)
        assert (await host.command()).operation_id == waiting


async def test_freed_capacity_goes_to_the_most_urgent_that_waits(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1", slots=1) as host:
        await driver.submit(Verb.DEPLOY_CREATE, "first")
        running = await host.command()
        await host.finish(running)
        low = await driver.submit(Verb.TEMP, "low", input={}, priority=0)
        high = await driver.submit(Verb.TEMP, "high", input={}, priority=9)
        for one in (low, high):
            await driver.operation(one, OperationState.QUEUED)
        await driver.submit(Verb.TERMINATE, "first")
        await host.finish(await host.command())
        urgent = await host.command()
        assert urgent.operation_id == high
        assert not host.has_command
        await host.finish(urgent)
        assert (await host.command()).operation_id == low


async def test_the_priority_of_a_message_counts_where_its_request_names_none(
    driver: DispatcherDriver,
) -> None:
    temp = {"operation_type": "TEMP", "model": "m-131", "input": {}}
    async with scripted_host(driver.broker, "h1", slots=1) as host:
        await driver.submit(Verb.DEPLOY_CREATE, "first")
        await host.finish(await host.command())
        for name, body, of_the_message in (
            ("low", {}, 0),
            ("named", {"priority": 0}, 9),
            ("high", {}, 9),
            ("highest", {}, 255),
        ):
            await driver.publish(temp | body | {"job_id": name}, key=name, priority=of_the_message)
        waiting = {
            name: await driver.operation(operation_id_for_key(name), OperationState.QUEUED)
            for name in ("low", "named", "high", "highest")
        }
        assert {name: one.priority for name, one in waiting.items()} == {
            "low": 0,
            "named": 0,
            "high": 9,
            "highest": 100,
        }
        await driver.submit(Verb.TERMINATE, "first")
        await host.finish(await host.command())
        order = []
        for _ in waiting:
            command = await host.command()
            order.append(command.job_id)
            await host.finish(command)
    assert order == ["highest", "high", "low", "named"]


async def test_a_request_is_the_same_wherever_its_priority_was_named(
    driver: DispatcherDriver,
) -> None:
    body = {"job_id": "j", "operation_type": "TERMINATE"}
    await driver.publish(body, key="k", priority=5)
    await driver.publish(body | {"priority": 5}, key="k")
    await driver.publish(body, key="k", priority=6)

    async def audited() -> list[dict[str, Any]] | None:
        return await driver.store.audit.of_operation(operation_id_for_key("k")) or None

    (note,) = await eventually(audited, what="a note of the third")
    five, six = (parse_request(body | {"priority": number}) for number in (5, 6))
    assert (note["kept_hash"], note["dropped_hash"]) == (five.payload_hash(), six.payload_hash())


async def test_a_command_that_nobody_accepted_is_published_again_as_the_same_attempt(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await driver.submit(Verb.DEPLOY_CREATE)
        lost = await host.command()
        again = await host.command(within_s=20)
        assert (again.operation_id, again.epoch) == (lost.operation_id, lost.epoch)


async def test_an_operation_whose_message_never_came_is_scheduled_from_the_record(
    driver: DispatcherDriver,
) -> None:
    request = JobRequest(job_id="j", operation_type=Verb.DEPLOY_CREATE, model="m-131")
    operation_id = operation_id_for_key("recorded only")
    await driver.store.operations.record([NewOperation.of(operation_id, request, "http")])
    async with scripted_host(driver.broker, "h1") as host:
        assert (await host.command(within_s=20)).operation_id == operation_id


async def test_what_a_gateway_recorded_while_the_broker_was_away_keeps_its_turn(
    driver: DispatcherDriver,
) -> None:
    create = JobRequest(job_id="j", operation_type=Verb.DEPLOY_CREATE, model="m-131")
    load = JobRequest(job_id="j", operation_type=Verb.DEPLOY_LOAD)
    first, second = new_operation_id(), new_operation_id()
    await driver.store.operations.record([NewOperation.of(first, create, "http")])
    await driver.store.operations.mark_unpublished([first])
    async with scripted_host(driver.broker, "h1") as host:
        await driver.store.operations.record([NewOperation.of(second, load, "http")])
        await driver.submission((second, load))
        command = await host.command()
        assert command.operation_id == first
        await host.finish(command)
        assert (await host.command()).operation_id == second


async def test_what_a_gateway_recorded_before_its_message_came_does_not_jump_the_line(
    driver: DispatcherDriver,
) -> None:
    verbs = (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.TERMINATE)
    requests = [
        (new_operation_id(), JobRequest(job_id="j", operation_type=verb, model="m-131"))
        for verb in verbs
    ]
    for operation_id, request in requests:
        await driver.store.operations.record([NewOperation.of(operation_id, request, "http")])
    async with scripted_host(driver.broker, "h1") as host:
        for one in requests:
            await driver.submission(one)
        for verb in verbs:
            command = await host.command()
            assert command.verb is verb
            await host.finish(command)


async def test_a_new_boot_gives_started_operations_a_new_epoch_and_fences_the_old_one(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        old = await host.command()
        await host.accept(old)
        await driver.operation(operation_id, OperationState.RUNNING)
        host.incarnation = uuid.uuid4().hex
        await host.come_online()
        new = await host.command()
        assert (new.operation_id, new.epoch, new.generation) == (operation_id, 2, 1)
        await host.finish(old, OperationState.FAILED, job_state=JobState.FAILED)
        await host.finish(new)
        done = await driver.operation(operation_id, OperationState.SUCCEEDED)
    assert done.epoch == 2
    assert (await driver.job("job-1")).state is JobState.CREATED


async def test_an_inference_that_a_reboot_interrupted_fails_with_the_cause(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        for verb in (Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD):
            await driver.submit(verb)
            await host.finish(await host.command())
        operation_id = await driver.submit(Verb.INFER, input={"x": 1})
        command = await host.command()
        assert command.input_json == '{"x":1}'
        await host.accept(command)
        await driver.operation(operation_id, OperationState.RUNNING)
        host.incarnation = uuid.uuid4().hex
        await host.come_online(_LOADED)
        failed = await driver.operation(operation_id, OperationState.FAILED)
    assert failed.error is not None
    assert failed.error.code is ErrorCode.WORKER_INTERRUPTED
    assert (await driver.job("job-1")).state is JobState.LOADED


_LOADED = InventoryItem(
    container_id="ab" * 32,
    job_id="job-1",
    generation=1,
    operation_id="x",
    running=True,
    loaded=True,
)


async def test_an_inference_that_no_worker_has_begun_is_dispatched_again_after_a_boot(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        operation_id = await driver.submit(Verb.INFER, input=1)
        first = await host.command()
        host.incarnation = uuid.uuid4().hex
        await host.come_online(_LOADED)
        again = await host.command()
        assert (again.operation_id, again.epoch) == (operation_id, first.epoch + 1)
        await host.finish(again, result_json="1")
        assert (await driver.operation(operation_id, OperationState.SUCCEEDED)).failures == 0


@pytest.mark.parametrize("reported", [True, False])
async def test_an_inference_that_may_have_begun_before_a_boot_is_not_dispatched_again(
    driver: DispatcherDriver,
    reported: bool,  # noqa: FBT001 - pytest names it
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        operation_id = await driver.submit(Verb.INFER, input=1)
        command = await host.command()
        host.incarnation = uuid.uuid4().hex
        if reported:  # as a worker does with what the one before it had begun
            await host.accept(command)
        host.begun_known = reported
        await host.come_online(_LOADED)
        failed = await driver.operation(operation_id, OperationState.FAILED)
        assert failed.error is not None
        assert failed.error.code is ErrorCode.WORKER_INTERRUPTED
        assert not host.has_command


async def test_an_inference_that_its_worker_refused_is_dispatched_again(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        operation_id = await driver.submit(Verb.INFER, input=1)
        refused = await host.command()
        error = ErrorInfo.of(ErrorCode.NOT_ACCEPTED)
        await host.report(refused, OperationState.FAILED, seq=1, error=error)
        again = await host.command()
        assert (again.operation_id, again.epoch) == (operation_id, 2)
        await host.finish(again, result_json="1")
        await driver.operation(operation_id, OperationState.SUCCEEDED)


async def test_the_command_of_an_inference_is_repeated_until_its_worker_answers(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        monkeypatch.setattr("dispatcher.maintenance.open_operations.UNACCEPTED_S", 0.1)
        monkeypatch.setattr("dispatcher.maintenance.deadlines.NOT_ACCEPTED_S", 0.2)
        operation_id = await driver.submit(Verb.INFER, input=1)
        commands = [await host.command() for _ in range(4)]
        assert {(one.operation_id, one.epoch) for one in commands} == {(operation_id, 1)}
        await host.finish(commands[0], result_json="1")
        assert (await driver.operation(operation_id, OperationState.SUCCEEDED)).failures == 0


async def test_the_start_of_an_operation_is_reckoned_back_from_its_only_report(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        await loaded(driver, host)
        operation_id = await driver.submit(Verb.INFER, input=1)
        command = await host.command()
        await host.report(command, OperationState.SUCCEEDED, seq=2, ran_s=30.0)
        ended = await driver.operation(operation_id, OperationState.SUCCEEDED)
        assert ended.dispatched_at == ended.started_at, "it can't have begun earlier"
        operation_id = await driver.submit(Verb.INFER, input=1)
        await host.report(await host.command(), OperationState.SUCCEEDED, seq=2, ran_s=0.001)
        ended = await driver.operation(operation_id, OperationState.SUCCEEDED)
        assert ended.started_at is not None
        assert ended.finished_at is not None
        # It can't have begun before it was dispatched, which may be in the same millisecond.
        assert (ended.finished_at - ended.started_at).total_seconds() <= 0.001


async def test_a_container_that_a_boot_does_not_find_fails_its_job_and_frees_the_host(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        await host.finish(await host.command())
        await driver.operation(operation_id, OperationState.SUCCEEDED)
        host.incarnation = uuid.uuid4().hex
        await host.come_online()
        job = await driver.job("job-1", where=lambda job: job.state is JobState.FAILED)
        assert job.error is not None
        assert job.error.code is ErrorCode.CONTAINER_MISSING

        async def free() -> bool:
            return (await driver.store.hosts.all())[0].slots_used == 0

        await eventually(free)


async def test_queue_timeout_expires_what_waits_too_long(driver: DispatcherDriver) -> None:
    operation_id = await driver.submit(Verb.DEPLOY_CREATE, queue_timeout_s=0.3)
    expired = await driver.operation(operation_id, OperationState.EXPIRED)
    assert expired.error is not None
    assert expired.error.code is ErrorCode.QUEUE_TIMEOUT
    assert "It waited for: " in expired.error.message


@pytest.mark.parametrize("verb", [Verb.DEPLOY_CREATE, Verb.TEMP])
async def test_terminate_withdraws_what_no_host_could_ever_take(
    driver: DispatcherDriver, verb: Verb
) -> None:
    """Else both wait for ever: nothing of the job goes before what stands in front."""
    waits = await driver.submit(verb, input=1)
    load = await driver.submit(Verb.DEPLOY_LOAD)
    await driver.operation(waits, where=lambda one: bool(one.waiting_for))
    terminate = await driver.submit(Verb.TERMINATE)
    withdrawn = await driver.operation(waits, OperationState.CANCELLED)
    assert withdrawn.error is not None
    assert withdrawn.error.message == WITHDRAWN
    await driver.operation(load, OperationState.REJECTED)
    await driver.operation(terminate, OperationState.SUCCEEDED)
    assert (await driver.job("job-1")).state is JobState.TERMINATED
    async with scripted_host(driver.broker, "h1") as host:
        # What comes later is placed as ever, and nothing of the old one comes back.
        again = await driver.submit(Verb.DEPLOY_CREATE)
        command = await host.command()
        assert command.operation_id == again
        await host.finish(command)
        await driver.operation(again, OperationState.SUCCEEDED)


async def test_what_waits_for_room_is_withdrawn_only_if_nothing_would_use_it(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1", slots=1) as host:
        await driver.submit(Verb.DEPLOY_CREATE, "holder")
        holds = await host.command()
        waits = await driver.submit(Verb.DEPLOY_CREATE, "unused")
        await driver.operation(waits, where=lambda one: bool(one.waiting_for))
        ends = await driver.submit(Verb.TERMINATE, "unused")
        works = [await driver.submit(Verb.DEPLOY_CREATE, "used")]
        works += [await driver.submit(verb, "used") for verb in (Verb.DEPLOY_LOAD, Verb.TERMINATE)]
        await driver.operation(waits, OperationState.CANCELLED)
        await driver.operation(ends, OperationState.SUCCEEDED)
        await host.finish(holds)
        await driver.submit(Verb.TERMINATE, "holder")
        for _ in range(4):
            await host.finish(await host.command())
        for operation_id in works:
            await driver.operation(operation_id, OperationState.SUCCEEDED)


async def test_a_host_cannot_finish_another_hosts_operation(driver: DispatcherDriver) -> None:
    async with (
        scripted_host(driver.broker, "h1") as owner,
        scripted_host(driver.broker, "h2", online=False) as thief,
    ):
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await owner.command()
        await thief.finish(command, seq=5)
        forged = WorkerReports(
            host_id=owner.host_id,
            incarnation=owner.incarnation,
            operations=(owner.made(command, OperationState.FAILED, seq=6),),
        )
        await driver.broker.publish(REPORTS, "h2", forged.model_dump_json().encode())
        assert "sent it with the routing key 'h2'" in (await driver.dead_letter()).detail
        await owner.report(command, OperationState.RUNNING, seq=1)
        await driver.operation(operation_id, OperationState.RUNNING)
        await owner.finish(command, OperationState.FAILED, job_state=JobState.FAILED)
        await driver.operation(operation_id, OperationState.FAILED)


async def test_events_tell_only_what_is_recorded(driver: DispatcherDriver) -> None:
    async with (
        scripted_host(driver.broker, "h1") as host,
        driver.broker.tap(EVENTS, ["operation.#", "job.#"]) as tap,
    ):
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await host.command()
        await host.accept(command)
        await driver.operation(operation_id, OperationState.RUNNING)
        await host.finish(command)
        seen: list[str] = []
        async with asyncio.timeout(10):
            async for batch in tap.batches(max_items=1):
                event = json.loads(batch[0].body)
                seen.append(event["type"])
                assert batch[0].routing_key == event["type"]
                record = await driver.operation(operation_id)
                if event["type"] == "operation.succeeded":
                    assert record.state is OperationState.SUCCEEDED
                if {"operation.succeeded", "job.created"} <= set(seen):
                    break
    assert [one for one in seen if one.startswith("operation")] == [
        "operation.queued",
        "operation.dispatched",
        "operation.running",
        "operation.succeeded",
    ]


async def test_two_leaders_at_once_never_give_a_slot_twice(
    driver: DispatcherDriver, amqp_url: str
) -> None:
    second_broker = Broker(amqp_url, name="second")
    async with (
        running_leader(driver.store, second_broker),
        scripted_host(driver.broker, "h1", slots=1) as host,
    ):
        count = 40
        await driver.publish(
            [
                {"job_id": f"j{n}", "operation_type": "TEMP", "model": "m-131", "input": n}
                for n in range(count)
            ],
            key="many",
        )
        for _ in range(count):
            command = await host.command()
            assert not host.has_command
            (h1,) = await driver.store.hosts.all()
            assert h1.slots_used == 1
            await host.finish(command)
        for number in range(count):
            await driver.operation(operation_id_for_key(f"many/{number}"), OperationState.SUCCEEDED)
    await second_broker.close()


async def test_a_malformed_report_becomes_a_dead_letter(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1"):
        await driver.broker.publish(
            REPORTS_QUEUE.exchange, "h1", b'{"schema_version": 1, "host_id": 5}'
        )
        assert (await driver.dead_letter()).queue == REPORTS_QUEUE.name


async def test_a_look_at_a_job_in_the_middle_of_a_write_never_refuses_what_comes_next(
    store: Store, broker: Broker
) -> None:
    """The job is written before its operation ends; a pass may read between the two."""
    await store.models.put(MODEL)
    verbs = [Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER, Verb.TERMINATE]
    count = 15
    async with (
        running_dispatcher(store, broker, dispatcher_sweep_interval_s=0.001),
        scripted_host(broker, "h1", slots=count) as host,
    ):
        driver = DispatcherDriver(store, broker)
        for number in range(count):
            await driver.publish(
                [
                    {"job_id": f"j{number}", "operation_type": verb, "model": "m-131", "input": 1}
                    for verb in verbs
                ],
                key=f"j{number}",
            )

        async def work() -> None:
            while True:
                await host.finish(await host.command())

        working = asyncio.create_task(work())
        for number in range(count):
            for place in range(len(verbs)):
                done = await driver.operation(
                    operation_id_for_key(f"j{number}/{place}"),
                    OperationState.SUCCEEDED,
                    OperationState.REJECTED,
                )
                assert done.state is OperationState.SUCCEEDED, done.error
        working.cancel()
