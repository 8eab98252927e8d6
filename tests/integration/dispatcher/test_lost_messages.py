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
from tests.support.dispatcher.deployed import CONTAINER, accepted, created, slots_used
from tests.support.dispatcher.driver import MODEL, DispatcherDriver, running_dispatcher
from tests.support.dispatcher.scripted_host import ScriptedHost, scripted_host
from tests.support.worker.broker import reporter_on
from tests.support.worker.harness import HOST, VerbHarness
from worker.attempts.job_locks import JobLocks
from worker.attempts.journal import AttemptJournal
from worker.attempts.registry import AttemptRegistry
from worker.execution.executor import AttemptRunner
from worker.session.acceptance import Acceptance
from worker.session.command_consumer import CommandConsumer
from worker.session.host_channel import HostChannel

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
async def driver(store: Store, broker: Broker) -> AsyncIterator[DispatcherDriver]:
    await store.models.put(MODEL)
    async with running_dispatcher(store, broker):
        yield DispatcherDriver(store, broker)


async def test_an_end_that_was_lost_is_asked_for_again(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        command = await _accepted_twice(driver, host)
        await host.look(busy=(command.job_id,))
        await host.look()
        word = await host.control(lambda one: bool(one.repeats))
        assert [(one.operation_id, one.epoch) for one in word.repeats] == [
            (command.operation_id, command.epoch)
        ]
        assert not host.has_control, "the look at a busy job says nothing"
        await host.finish(command)
        await driver.operation(command.operation_id, OperationState.SUCCEEDED)


async def _accepted_twice(driver: DispatcherDriver, host: ScriptedHost) -> HostCommand:
    """Return a command that runs by the record, on a job whose container was told of before."""
    await created(driver, host)
    await driver.submit(Verb.DEPLOY_LOAD)
    return await accepted(driver, host)


@pytest.mark.parametrize("verb", [Verb.DEPLOY_CREATE, Verb.TEMP])
async def test_an_end_that_is_a_dead_letter_is_a_failure(
    driver: DispatcherDriver, verb: Verb
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(verb, input=1)
        command = await accepted(driver, host)
        report = host.made(command, OperationState.SUCCEEDED, seq=5, job_state=JobState.CREATED)
        message = WorkerReports(host_id="h1", incarnation=host.incarnation, operations=(report,))
        await _given_up(driver, REPORTS_QUEUE.name, message.model_dump_json())
        ended = await driver.operation(operation_id, OperationState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.DELIVERY_LIMIT
        assert (await driver.job("job-1")).state is JobState.FAILED
        await slots_used(driver, "h1", 0)
        told = await host.control(lambda one: bool(one.cancels))
        assert told.cancels[0].reason == "stale"
        assert (await driver.dead_letter()).queue == REPORTS_QUEUE.name


async def test_an_end_that_can_not_be_read_is_a_failure_and_progress_is_none(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, host)
        await _unreadable(driver, host, command, state="RUNNING", phase="of the future")
        assert (await driver.dead_letter()).reason == ErrorCode.INVALID_REQUEST
        assert (await driver.operation(operation_id)).state is OperationState.RUNNING
        await _unreadable(driver, host, command, state="FAILED", job_state="of the future")
        ended = await driver.operation(operation_id, OperationState.FAILED)
        assert ended.error is not None
        assert ended.error.code is ErrorCode.INVALID_REQUEST


async def test_the_neighbours_of_a_report_that_can_not_be_read_are_recorded(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        ids = [await driver.submit(Verb.DEPLOY_CREATE, f"job-{n}") for n in range(2)]
        commands = [await accepted(driver, host) for _ in ids]
        ends = [
            host.made(
                one,
                OperationState.SUCCEEDED,
                seq=5,
                job_state=JobState.CREATED,
                container_id=CONTAINER,
            ).model_dump(mode="json")
            for one in commands
        ]
        ends[0]["job_state"] = "of the future"
        body = {"host_id": "h1", "incarnation": host.incarnation, "operations": ends}
        await driver.broker.publish(REPORTS, "h1", json.dumps(body).encode())
        letter = await driver.dead_letter()
        assert [one["job_id"] for one in json.loads(letter.payload)["operations"]] == ["job-0"]
        await driver.operation(commands[0].operation_id, OperationState.FAILED)
        await driver.operation(commands[1].operation_id, OperationState.SUCCEEDED)


async def test_nobody_ends_the_operations_of_another_host_by_what_can_not_be_read(
    driver: DispatcherDriver,
) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, host)
        async with scripted_host(driver.broker, "h2") as other:
            await _unreadable(driver, other, command, state="FAILED", job_state="of the future")
            assert (await driver.dead_letter()).routing_key == "h2"
        await host.finish(command)
        await driver.operation(operation_id, OperationState.SUCCEEDED)


async def test_a_command_that_its_worker_could_not_read_is_a_letter_that_says_what_and_where(
    driver: DispatcherDriver,
) -> None:
    body = {"host_id": HOST, "incarnation": "i-1", "commands": [{"verb": "of the future"}]}
    await driver.broker.declare([host_queue(HOST)])
    await driver.broker.publish(HOSTS, HOST, json.dumps(body).encode(), message_id="the-command")
    async with asyncio.timeout(20), TaskGroup() as tasks:
        consuming = tasks.create_task(_consumer(driver.broker, tasks).run())
        letter = await driver.dead_letter()
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
        HostChannel(broker, HOST, "i-1"),
        acceptance=Acceptance(reporter, AttemptJournal(None), registry),
        registry=registry,
        attempts=AttemptRunner(VerbHarness().operations, registry, JobLocks(), tasks),
        announce=at_once,
        held=at_once,
    )


async def _unreadable(
    driver: DispatcherDriver, host: ScriptedHost, command: HostCommand, **fields: Any
) -> None:
    """Publish a report as a newer worker might."""
    report = host.made(command, OperationState.RUNNING, seq=7).model_dump(mode="json")
    body = {
        "host_id": host.host_id,
        "incarnation": host.incarnation,
        "operations": [report | fields],
    }
    await driver.broker.publish(REPORTS, host.host_id, json.dumps(body).encode())


async def test_a_command_that_the_broker_gave_up_counts_as_an_attempt(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.maintenance.deadlines.NOT_ACCEPTED_S", 0.5)
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await host.command()
        body = HostCommands(host_id="h1", incarnation=host.incarnation, commands=(command,))
        await _given_up(driver, host_queue("h1").name, body.model_dump_json())
        again = await host.command()
        assert (again.operation_id, again.epoch) == (operation_id, 2)
        await host.finish(again)
        ended = await driver.operation(operation_id, OperationState.SUCCEEDED)
        assert ended.failures == 1
        page = await driver.store.dead_letters.page({}, after=None, limit=9)
        assert not page.items, "the record has it all"


async def test_a_letter_of_what_runs_or_goes_on_changes_nothing(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        command = await accepted(driver, host)
        body = HostCommands(host_id="h1", incarnation=host.incarnation, commands=(command,))
        await _given_up(driver, host_queue("h1").name, body.model_dump_json())
        earlier = host.made(command, OperationState.FAILED, seq=2, epoch=command.epoch + 1)
        message = WorkerReports(host_id="h1", incarnation=host.incarnation, operations=(earlier,))
        await _given_up(driver, REPORTS_QUEUE.name, message.model_dump_json())
        assert (await driver.dead_letter()).queue == REPORTS_QUEUE.name
        await host.finish(command)
        assert (await driver.operation(operation_id, OperationState.SUCCEEDED)).failures == 0


async def _given_up(driver: DispatcherDriver, queue: str, body: str) -> None:
    """Publish what the broker makes of a message that reached its delivery limit."""
    death: Mapping[str, Any] = {"queue": queue, "reason": "delivery_limit", "count": 1}
    connection = await aio_pika.connect(driver.broker._url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(DEAD.name)
        headers: dict[str, Any] = {"x-death": [death]}
        await exchange.publish(
            aio_pika.Message(body.encode(), headers=headers, user_id=driver.broker.user), "h1"
        )


async def test_a_command_that_ends_its_worker_unheard_has_an_end(driver: DispatcherDriver) -> None:
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE)
        boots = 0
        while not (await driver.operation(operation_id)).state.terminal:
            command = await host.command()
            assert command.epoch == boots + 1
            boots += 1
            host.incarnation = f"boot-{boots}"
            await host.come_online()
            await _is_over(driver, command)
        ended = await driver.operation(operation_id)
        assert ended.error is not None
        assert (ended.state, ended.error.code) == (
            OperationState.FAILED,
            ErrorCode.WORKER_INTERRUPTED,
        )
        assert boots == 13
        await slots_used(driver, "h1", 0)


async def _is_over(driver: DispatcherDriver, command: HostCommand) -> None:
    """Return once an attempt is over, and the next one under way if there is one."""

    def over(one: OperationRecord) -> bool:
        return one.epoch > command.epoch or one.state.terminal

    await driver.operation(command.operation_id, where=over)


async def test_what_no_worker_accepted_keeps_its_deadline_in_the_queue(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.maintenance.deadlines.NOT_ACCEPTED_S", 0.2)
    monkeypatch.setattr("modelyard.contract.retries.BASE_S", 60.0)
    async with scripted_host(driver.broker, "h1") as host:
        operation_id = await driver.submit(Verb.DEPLOY_CREATE, queue_timeout_s=1)
        await host.command()
        waits = await driver.operation(operation_id, where=lambda one: one.failures == 1)
        assert waits.state in (OperationState.QUEUED, OperationState.EXPIRED)
        await driver.operation(operation_id, OperationState.EXPIRED)
        await slots_used(driver, "h1", 0)
