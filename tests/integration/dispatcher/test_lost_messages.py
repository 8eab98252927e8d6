"""A dispatcher when what a worker said or was to hear is lost: in a deleted queue, as a letter."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aio_pika
import pytest

from modelyard.broker import Broker
from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import HostCommand, HostCommands, WorkerReports
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.contract.topology import DEAD, HOSTS, REPORTS, REPORTS_QUEUE, host_queue
from modelyard.process.tasks import TaskGroup
from modelyard.store import Store
from modelyard.store.records import OperationRecord
from tests.support.dispatcher.deployed import accepted, created, slots_used
from tests.support.dispatcher.driver import MODEL, Yard, running_dispatcher
from tests.support.dispatcher.scripted_host import ScriptedHost, scripted_host
from tests.support.worker.bench import HOST, Bench
from tests.support.worker.broker import reporter_on
from worker.attempts.job_locks import JobLocks
from worker.attempts.registry import AttemptRegistry
from worker.execution.executor import AttemptRunner
from worker.session.command_consumer import CommandConsumer
from worker.session.enrolment import EnrolmentClient

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
async def yard(store: Store, broker: Broker) -> AsyncIterator[Yard]:
    await store.models.put(MODEL)
    async with running_dispatcher(store, broker):
        yield Yard(store, broker)


async def test_an_end_that_was_lost_is_asked_for_again(yard: Yard) -> None:
    async with scripted_host(yard.broker, "h1") as host:
        command = await _accepted_twice(yard, host)
        await host.look(busy=(command.job_id,))
        await host.look()
        word = await host.control(lambda one: bool(one.repeats))
        assert [(one.operation_id, one.epoch) for one in word.repeats] == [
            (command.operation_id, command.epoch)
        ]
        assert not host.has_control, "the look at a busy job says nothing"
        await host.finish(command)
        await yard.operation(command.operation_id, OperationState.SUCCEEDED)


async def _accepted_twice(yard: Yard, host: ScriptedHost) -> HostCommand:
    """Return a command that runs by the record, on a job whose container was told of before."""
    await created(yard, host)
    await yard.submit(Verb.DEPLOY_LOAD)
    return await accepted(yard, host)


@pytest.mark.parametrize("verb", [Verb.DEPLOY_CREATE, Verb.TEMP])
async def test_an_end_that_is_a_dead_letter_is_a_failure(yard: Yard, verb: Verb) -> None:
    async with scripted_host(yard.broker, "h1") as host:
        operation_id = await yard.submit(verb, input=1)
        command = await accepted(yard, host)
        report = host.made(command, OperationState.SUCCEEDED, seq=5, job_state=JobState.CREATED)
        message = WorkerReports(host_id="h1", incarnation=host.incarnation, operations=(report,))
        await _given_up(yard, REPORTS_QUEUE.name, message.model_dump_json())
        ended = await yard.operation(operation_id, OperationState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.DELIVERY_LIMIT
        assert (await yard.job("job-1")).state is JobState.FAILED
        await slots_used(yard, "h1", 0)
        told = await host.control(lambda one: bool(one.cancels))
        assert told.cancels[0].reason == "stale"
        assert (await yard.dead_letter()).queue == REPORTS_QUEUE.name


async def test_an_end_that_can_not_be_read_is_a_failure_and_progress_is_none(yard: Yard) -> None:
    async with scripted_host(yard.broker, "h1") as host:
        operation_id = await yard.submit(Verb.DEPLOY_CREATE)
        command = await accepted(yard, host)
        await _unreadable(yard, host, command, state="RUNNING", phase="of the future")
        assert (await yard.dead_letter()).reason == ErrorCode.INVALID_REQUEST
        assert (await yard.operation(operation_id)).state is OperationState.RUNNING
        await _unreadable(yard, host, command, state="FAILED", job_state="of the future")
        ended = await yard.operation(operation_id, OperationState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.INVALID_REQUEST


async def test_the_neighbours_of_a_report_that_can_not_be_read_are_recorded(yard: Yard) -> None:
    async with scripted_host(yard.broker, "h1") as host:
        ids = [await yard.submit(Verb.DEPLOY_CREATE, f"job-{n}") for n in range(2)]
        commands = [await accepted(yard, host) for _ in ids]
        ends = [
            host.made(
                one, OperationState.SUCCEEDED, seq=5, job_state=JobState.CREATED, container_id="ab"
            ).model_dump(mode="json")
            for one in commands
        ]
        ends[0]["job_state"] = "of the future"
        body = {"host_id": "h1", "incarnation": host.incarnation, "operations": ends}
        await yard.broker.publish(REPORTS, "h1", json.dumps(body).encode())
        letter = await yard.dead_letter()
        assert [one["job_id"] for one in json.loads(letter.payload)["operations"]] == ["job-0"]
        await yard.operation(commands[0].operation_id, OperationState.FAILED)
        await yard.operation(commands[1].operation_id, OperationState.SUCCEEDED)


async def test_nobody_ends_the_operations_of_another_host_by_what_can_not_be_read(
    yard: Yard,
) -> None:
    async with scripted_host(yard.broker, "h1") as host:
        operation_id = await yard.submit(Verb.DEPLOY_CREATE)
        command = await accepted(yard, host)
        async with scripted_host(yard.broker, "h2") as other:
            await _unreadable(yard, other, command, state="FAILED", job_state="of the future")
            assert (await yard.dead_letter()).routing_key == "h2"
        await host.finish(command)
        await yard.operation(operation_id, OperationState.SUCCEEDED)


async def test_a_command_that_its_worker_could_not_read_is_a_letter_that_says_what_and_where(
    yard: Yard,
) -> None:
    body = {"host_id": HOST, "incarnation": "i-1", "commands": [{"verb": "of the future"}]}
    await yard.broker.declare([host_queue(HOST)])
    await yard.broker.publish(HOSTS, HOST, json.dumps(body).encode(), message_id="the-command")
    async with asyncio.timeout(20), TaskGroup() as tasks:
        consuming = tasks.create_task(_consumer(yard.broker, tasks).run())
        letter = await yard.dead_letter()
        consuming.cancel()
    assert letter.queue == host_queue(HOST).name
    assert letter.reason == ErrorCode.INVALID_REQUEST
    assert letter.detail.startswith("Not a command: /")
    assert letter.message_id == "the-command"
    assert json.loads(letter.payload)["commands"] == body["commands"]


def _consumer(broker: Broker, tasks: TaskGroup) -> CommandConsumer:
    """Return what a worker reads its commands with, over an engine that is faked."""

    async def at_once() -> None:
        return

    reporter = reporter_on(broker)
    registry = AttemptRegistry(reporter.put)
    return CommandConsumer(
        broker=broker,
        enrolment=EnrolmentClient(broker, HOST, "i-1"),
        reporter=reporter,
        registry=registry,
        attempts=AttemptRunner(Bench().operations, registry, JobLocks(), tasks),
        announce=at_once,
        held=at_once,
        host_id=HOST,
        incarnation="i-1",
    )


async def _unreadable(yard: Yard, host: ScriptedHost, command: HostCommand, **fields: Any) -> None:
    """Publish a report as a newer worker might."""
    report = host.made(command, OperationState.RUNNING, seq=7).model_dump(mode="json")
    body = {
        "host_id": host.host_id,
        "incarnation": host.incarnation,
        "operations": [report | fields],
    }
    await yard.broker.publish(REPORTS, host.host_id, json.dumps(body).encode())


async def test_a_command_that_the_broker_gave_up_counts_as_an_attempt(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.maintenance.deadlines.NOT_ACCEPTED_S", 0.5)
    async with scripted_host(yard.broker, "h1") as host:
        operation_id = await yard.submit(Verb.DEPLOY_CREATE)
        command = await host.command()
        body = HostCommands(host_id="h1", incarnation=host.incarnation, commands=(command,))
        await _given_up(yard, host_queue("h1").name, body.model_dump_json())
        again = await host.command()
        assert (again.operation_id, again.epoch) == (operation_id, 2)
        await host.finish(again)
        ended = await yard.operation(operation_id, OperationState.SUCCEEDED)
        assert ended.failures == 1
        page = await yard.store.dead_letters.page({}, after=None, limit=9)
        assert not page.items, "the record has it all"


async def test_a_letter_of_what_runs_or_goes_on_changes_nothing(yard: Yard) -> None:
    async with scripted_host(yard.broker, "h1") as host:
        operation_id = await yard.submit(Verb.DEPLOY_CREATE)
        command = await accepted(yard, host)
        body = HostCommands(host_id="h1", incarnation=host.incarnation, commands=(command,))
        await _given_up(yard, host_queue("h1").name, body.model_dump_json())
        earlier = host.made(command, OperationState.FAILED, seq=2, epoch=command.epoch + 1)
        message = WorkerReports(host_id="h1", incarnation=host.incarnation, operations=(earlier,))
        await _given_up(yard, REPORTS_QUEUE.name, message.model_dump_json())
        assert (await yard.dead_letter()).queue == REPORTS_QUEUE.name
        await host.finish(command)
        assert (await yard.operation(operation_id, OperationState.SUCCEEDED)).failures == 0


async def _given_up(yard: Yard, queue: str, body: str) -> None:
    """Publish what the broker makes of a message that reached its delivery limit."""
    death: Mapping[str, Any] = {"queue": queue, "reason": "delivery_limit", "count": 1}
    connection = await aio_pika.connect(yard.broker._url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(DEAD.name)
        headers: dict[str, Any] = {"x-death": [death]}
        await exchange.publish(
            aio_pika.Message(body.encode(), headers=headers, user_id=yard.broker.user), "h1"
        )


async def test_a_command_that_ends_its_worker_unheard_has_an_end(yard: Yard) -> None:
    async with scripted_host(yard.broker, "h1") as host:
        operation_id = await yard.submit(Verb.DEPLOY_CREATE)
        boots = 0
        while not (await yard.operation(operation_id)).state.terminal:
            command = await host.command()
            assert command.epoch == boots + 1
            boots += 1
            host.incarnation = f"boot-{boots}"
            await host.come_online()
            await _is_over(yard, command)
        ended = await yard.operation(operation_id)
        assert ended.error is not None
        assert (ended.state, ended.error.code) == (
            OperationState.FAILED,
            ErrorCode.WORKER_INTERRUPTED,
        )
        assert boots == 13
        await slots_used(yard, "h1", 0)


async def _is_over(yard: Yard, command: HostCommand) -> None:
    """Return once an attempt is over, and the next one under way if there is one."""

    def over(one: OperationRecord) -> bool:
        return one.epoch > command.epoch or one.state.terminal

    await yard.operation(command.operation_id, where=over)


async def test_what_no_worker_accepted_keeps_its_deadline_in_the_queue(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.maintenance.deadlines.NOT_ACCEPTED_S", 0.2)
    monkeypatch.setattr("modelyard.contract.retries.BASE_S", 60.0)
    async with scripted_host(yard.broker, "h1") as host:
        operation_id = await yard.submit(Verb.DEPLOY_CREATE, queue_timeout_s=1)
        await host.command()
        waits = await yard.operation(operation_id, where=lambda one: one.failures == 1)
        assert waits.state in (OperationState.QUEUED, OperationState.EXPIRED)
        await yard.operation(operation_id, OperationState.EXPIRED)
        await slots_used(yard, "h1", 0)
