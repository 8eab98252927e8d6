"""Commands in: accepted, settled, begun; and how a worker boots and sends heartbeats."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from structlog.testing import capture_logs

from modelyard.broker import DETAIL_HEADER, REASON_HEADER
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import (
    CancelOperation,
    Heartbeat,
    HostCommand,
    HostCommands,
    OperationReport,
    RepeatReport,
    WorkerReports,
)
from modelyard.contract.states import OperationState, Phase, Verb
from modelyard.contract.topology import HEARTBEATS, REPORTS
from modelyard.process.tasks import TaskGroup
from tests.fakes.programs import FakeServer
from tests.support.waiting import eventually
from tests.support.worker.broker import FakeBroker, FakeSubscription, delivery_of, reporter_on
from tests.support.worker.harness import HOST, IMAGE, VerbHarness, model
from tests.support.worker.host import running_host
from tests.support.worker.inventory import inventory_builder
from worker.attempts.job_locks import JobLocks
from worker.attempts.journal import AttemptJournal
from worker.attempts.registry import AttemptRegistry
from worker.devices.declared import DeclaredDevices
from worker.devices.taints import DeviceTaints
from worker.devices.watch import DeviceWatch
from worker.execution.executor import AttemptRunner
from worker.session.acceptance import Acceptance
from worker.session.boot import BootRecovery
from worker.session.command_consumer import CommandConsumer
from worker.session.heartbeat import HeartbeatSender
from worker.session.host_channel import HostChannel
from worker.session.host_offer import HostOffer
from worker.session.lease import Lease
from worker.settings import WorkerSettings

CREATE, LOAD, INFER = Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER


class Intake:
    """A consumer over a fake broker and a fake engine."""

    def __init__(
        self, tasks: TaskGroup, journal: AttemptJournal, harness: VerbHarness | None = None
    ) -> None:
        self.broker = FakeBroker()
        journal.take_over()
        journal.announced()
        self.harness = harness or VerbHarness()
        self.reporter = reporter_on(self.broker)
        self.registry = AttemptRegistry(self.reporter.put)
        self.attempts = AttemptRunner(self.harness.operations, self.registry, JobLocks(), tasks)
        self.announced = 0
        self.lease = Lease()
        acceptance = Acceptance(self.reporter, journal, self.registry)
        self.consumer = CommandConsumer(
            HostChannel(self.broker, HOST, "i-1"),
            acceptance=acceptance,
            registry=self.registry,
            attempts=self.attempts,
            announce=self._announce,
            held=self._held,
        )
        self._running = [
            tasks.create_task(self.reporter.run()),
            tasks.create_task(self.consumer.run()),
        ]

    async def _held(self) -> None:
        await self.lease.held()

    async def _announce(self) -> None:
        assert not self.consumer.attached
        self.announced += 1

    async def send(self, *commands: HostCommand, incarnation: str = "i-1") -> None:
        body = HostCommands(host_id=HOST, incarnation=incarnation, commands=commands)
        await self.deliver(body.model_dump_json().encode())

    async def subscription(self) -> FakeSubscription:
        async def there() -> FakeSubscription | None:
            return self.broker.subscription if self.consumer.attached else None

        return await eventually(there)

    async def deliver(self, body: bytes) -> None:
        subscription = await self.subscription()
        subscription.give(delivery_of(body))

    async def settled(self, count: int = 1) -> None:
        async def enough() -> bool:
            return sum(kind == "ack" for kind, _ in self.broker.log) >= count

        await eventually(enough)

    async def ended(self, command: HostCommand, epoch: int = 1) -> OperationReport:
        async def found() -> OperationReport | None:
            its = [it for it in self.broker.reports if it.operation_id == command.operation_id]
            return next((it for it in its if it.state.terminal and it.epoch == epoch), None)

        return await eventually(found)

    def stop(self) -> None:
        for task in self._running:
            task.cancel()


def declared(*devices: Device) -> DeviceWatch:
    """Return a watch over devices of which nothing is measured."""
    inventory = DeclaredDevices(devices)
    return DeviceWatch(inventory, DeviceTaints(inventory, within_s=1.0))


@asynccontextmanager
async def intake(
    harness: VerbHarness | None = None, *, path: Path | None = None
) -> AsyncIterator[Intake]:
    """Give a consumer whose journal is the file `path`, or one of its own."""
    with TemporaryDirectory() as folder, closing(_journal(path, folder)) as journal:
        async with asyncio.timeout(20), TaskGroup() as tasks:
            made = Intake(tasks, journal, harness)
            yield made
            await made.attempts.drain(0.0)
            made.stop()


def _journal(path: Path | None, folder: str) -> AttemptJournal:
    return AttemptJournal(path or Path(folder) / "attempts")


async def test_a_short_attempt_is_one_report_and_is_settled_after_its_confirm() -> None:
    async with intake() as it:
        command = it.harness.command(CREATE)
        await it.send(command)
        ended = await it.ended(command)
        await it.settled()
    kinds = [kind for kind, _ in it.broker.log]
    assert kinds == ["publish", "ack"]
    assert it.broker.reports == [ended]
    assert ended.state is OperationState.SUCCEEDED
    assert ended.ran_s is not None
    assert it.announced == 1


async def test_an_attempt_that_lasts_is_reported_as_running_and_settled_meanwhile() -> None:
    async with intake() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.may_infer.clear()
        command = it.harness.command(INFER, input=1)
        await it.send(command)
        await it.settled()
        [running] = it.broker.reports
        assert (running.state, running.phase) == (OperationState.RUNNING, Phase.INFERRING)
        it.harness.server.may_infer.set()
        await it.ended(command)
    seqs = [report.seq for report in it.broker.reports]
    assert len(seqs) == 2
    assert seqs == sorted(seqs)


async def test_work_begins_while_the_broker_is_away_and_is_settled_later() -> None:
    async with intake() as it:
        command = it.harness.command(CREATE)
        await it.subscription()
        it.broker.away = True
        await it.send(command)

        async def made() -> bool:
            return len(it.harness.runtime.containers) == 1

        await eventually(made)
        assert it.broker.log == []
        it.broker.away = False
        await it.ended(command)
        await it.settled()


async def test_while_too_much_of_what_ended_is_not_confirmed_no_command_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.attempts.registry.MAX_RESULT_BYTES_KEPT", 10)
    async with intake() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        first, second = (it.harness.command(INFER, input="x" * 100) for _ in range(2))
        await it.subscription()
        it.broker.away = True
        await it.send(first)

        async def full() -> bool:
            return it.registry.running == 0 and it.registry.latest(asked_for(first)) is not None

        await eventually(full)
        await it.send(second)
        await asyncio.sleep(0.05)  # long enough for what must not happen
        assert it.registry.latest(asked_for(second)) is None
        it.broker.away = False
        await it.ended(second)
        await it.settled(2)
        # Both come again: the results are not kept any more, and they have run.
        await it.send(first, second)
        await it.settled(3)
    assert sum("infer" in one for one in it.harness.server.requests) == 2
    done, lost = OperationState.SUCCEEDED, OperationState.FAILED
    assert [(one.operation_id, one.state) for one in it.broker.reports] == [
        (first.operation_id, done),
        (second.operation_id, done),
        (first.operation_id, lost),
        (second.operation_id, lost),
    ]


def asked_for(command: HostCommand) -> RepeatReport:
    return RepeatReport(operation_id=command.operation_id, epoch=command.epoch)


async def test_without_a_journal_nothing_begins_before_its_acceptance_is_confirmed(
    tmp_path: Path,
) -> None:
    async with intake(path=tmp_path / "missing" / "attempts") as it:
        command = it.harness.command(CREATE)
        it.broker.away = True
        await it.send(command)
        await asyncio.sleep(0.05)  # long enough for what must not happen
        assert it.broker.log == []
        assert it.harness.runtime.containers == {}
        it.broker.away = False
        await it.ended(command)
    first = it.broker.reports[0]
    assert (first.state, first.phase, first.seq) == (OperationState.RUNNING, None, 1)


async def test_what_a_dead_worker_had_begun_the_next_one_reports_before_it_announces_itself(
    tmp_path: Path,
) -> None:
    path = tmp_path / "attempts"
    async with intake(path=path) as it:
        reported = it.harness.command(CREATE)
        await it.send(reported)
        await it.ended(reported)
        await it.settled()
        it.broker.away = True
        begun = it.harness.command(CREATE, job="job-2", generation=3, epoch=2)
        await it.send(begun)

        async def made() -> bool:
            return len(it.harness.runtime.containers) == 2

        await eventually(made)
    broker = FakeBroker()
    with closing(AttemptJournal(path)) as journal:
        await _boot(broker, it.harness, journal).announce()
        first, second = broker.messages
        [report] = first.operations
        assert (report.operation_id, report.epoch, report.seq) == (begun.operation_id, 2, 1)
        assert (report.job_id, report.generation) == ("job-2", 3)
        assert report.state is OperationState.RUNNING
        assert second.online is not None
        assert second.online.begun_known
        await _boot(broker, it.harness, journal).announce()
    assert [message.operations for message in broker.messages[2:]] == [()]


async def test_a_worker_says_so_when_it_can_not_know_what_had_begun(tmp_path: Path) -> None:
    known: list[bool] = []
    for path in (tmp_path / "attempts", tmp_path / "attempts", None):
        broker = FakeBroker()
        with closing(AttemptJournal(path)) as journal:
            await _boot(broker, VerbHarness(), journal).announce()
        [message] = broker.messages
        assert message.online is not None
        known.append(message.online.begun_known)
    assert known == [False, True, False], "the first one has no journal of an earlier worker"


async def test_an_inference_for_an_old_container_is_refused_with_a_report() -> None:
    async with intake() as it:
        it.registry.record_generations([("job-1", 2)])
        command = it.harness.command(INFER, input=1)
        await it.send(command)
        refused = await it.ended(command)
        await it.settled()
    assert refused.error is not None
    assert refused.error.code is ErrorCode.NOT_ACCEPTED
    assert it.harness.server.requests == []


async def test_a_delivery_does_not_wait_for_an_attempt_that_is_told_to_be_silent() -> None:
    async with intake() as it:
        it.broker.away = True
        command = it.harness.command(CREATE)
        it.harness.runtime.images.clear()
        it.harness.runtime.registry[IMAGE] = lambda _: FakeServer()
        it.harness.runtime.pull_may_end.clear()
        await it.send(command)

        async def begun() -> bool:
            return it.registry.running == 1

        await eventually(begun)
        it.registry.cancel(
            CancelOperation(operation_id=command.operation_id, epoch=1, reason="stale")
        )
        await it.settled()


async def test_a_command_that_comes_twice_runs_once() -> None:
    async with intake() as it:
        command = it.harness.command(Verb.TEMP, input=1)
        await it.send(command, command)
        await it.ended(command)
        before = len(it.broker.reports)
        await it.send(command)

        async def repeated() -> bool:
            return len(it.broker.reports) > before

        await eventually(repeated)
    assert len(it.harness.runtime.created) == 1
    assert it.broker.reports[-1].state is OperationState.SUCCEEDED


async def test_a_later_epoch_runs_alone_and_the_earlier_one_is_silent() -> None:
    async with intake() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.may_infer.clear()
        command = it.harness.command(INFER, input=1)
        await it.send(command)

        async def under_way() -> bool:
            return it.harness.server.infers_now == 1

        await eventually(under_way)
        it.harness.server.may_infer.set()
        it.harness.server.may_infer = asyncio.Event()
        await it.send(command.model_copy(update={"epoch": 2}))
        await it.settled(2)
        it.harness.server.may_infer.set()
        assert (await it.ended(command, epoch=2)).state is OperationState.SUCCEEDED
    assert it.harness.server.most_infers == 1


async def test_commands_for_another_boot_are_settled_and_dropped() -> None:
    async with intake() as it:
        await it.send(it.harness.command(CREATE), incarnation="i-0")
        await it.settled()
    assert it.harness.runtime.containers == {}
    assert it.broker.published == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"not json", "invalid_json"), (b"\xff", "invalid_json"), (b"{}", "invalid_request")],
)
async def test_a_message_that_can_not_be_read_is_a_dead_letter_with_its_reason(
    body: bytes, reason: str
) -> None:
    async with intake() as it:
        command = it.harness.command(CREATE)
        await it.deliver(body)
        await it.send(command)
        await it.settled(2)
        assert (await it.ended(command)).state is OperationState.SUCCEEDED
    letters = returned(it)
    [(buried, headers)] = letters
    assert buried == body
    assert headers[REASON_HEADER] == reason
    assert headers[DETAIL_HEADER].startswith("Not a list of commands: ")


def returned(it: Intake) -> list[tuple[bytes, Mapping[str, str]]]:
    """Return what was handed to a dispatcher for the dead letters: bodies and headers."""
    sent = [(b, h) for exchange, b, h in it.broker.published if exchange is REPORTS]
    return [(body, headers) for body, headers in sent if REASON_HEADER in headers]


def with_field(command: HostCommand, place: str, **more: object) -> dict[str, Any]:
    """Return the command as JSON with another field in one of its parts."""
    dumped = command.model_dump(mode="json")
    dumped[place] = {**dumped[place], **more}
    return dumped


async def test_a_command_that_can_not_be_read_is_a_dead_letter_alone() -> None:
    async with intake() as it:
        good, bad = it.harness.command(CREATE), it.harness.command(CREATE, job="job-2")
        envelope = {"host_id": HOST, "incarnation": "i-1"}
        broken = with_field(bad, "model", port="eighty")
        commands = [broken, good.model_dump(mode="json")]
        await it.deliver(json.dumps({**envelope, "commands": commands}).encode())
        assert (await it.ended(good)).state is OperationState.SUCCEEDED
        await it.settled()
    letters = returned(it)
    [(_, headers)] = letters
    assert headers[REASON_HEADER] == "invalid_request"
    assert headers[DETAIL_HEADER].startswith("Not a command: /model/port: ")
    assert json.loads(letters[0][0]) == {**envelope, "schema_version": 1, "commands": [broken]}


async def test_a_field_of_the_catalog_that_is_not_known_yet_is_ignored() -> None:
    async with intake() as it:
        command = it.harness.command(CREATE)
        newer = with_field(command, "model", invented_later=1)
        body = {"host_id": HOST, "incarnation": "i-1", "commands": [newer]}
        await it.deliver(json.dumps(body).encode())
        assert (await it.ended(command)).state is OperationState.SUCCEEDED


async def test_a_command_is_begun_although_its_neighbour_could_not_be_buried_at_once() -> None:
    async with intake() as it:
        command = it.harness.command(CREATE)
        first = await it.subscription()
        it.broker.away = True
        # Both are ready before the consumer looks: one batch.
        await it.send(command)
        await it.deliver(b"not json")

        async def lost() -> bool:
            return not it.consumer.attached

        await eventually(lost)
        it.broker.away = False
        await it.send(command)
        await it.deliver(b"not json")
        assert it.broker.subscription is not first
        assert (await it.ended(command)).state is OperationState.SUCCEEDED


async def test_a_command_that_was_taken_and_not_begun_is_begun_when_it_comes_again() -> None:
    async with intake() as it:
        command = it.harness.command(CREATE)
        assert it.registry.take(command).attempt is not None
        await it.send(command)
        assert (await it.ended(command)).state is OperationState.SUCCEEDED


async def test_nothing_is_taken_once_the_lease_is_lost() -> None:
    async with intake() as it:
        it.lease.renounce()
        await it.send(it.harness.command(CREATE))
        await asyncio.sleep(0.05)  # long enough for what must not happen
        assert it.registry.running == 0
        assert it.broker.log == []


async def test_what_was_taken_at_the_very_end_of_a_term_is_not_begun() -> None:
    async with intake() as it:
        assert await it.attempts.abandon() == []
        await it.send(it.harness.command(CREATE))

        async def taken() -> bool:
            return it.registry.running == 1

        await eventually(taken)
    assert it.harness.runtime.containers == {}


async def test_a_held_queue_is_one_warning_for_all_its_tries() -> None:
    with capture_logs() as logs:
        async with intake() as it:
            first = await it.subscription()
            it.broker.held = 3
            first.on_lost("cut")

            async def back() -> bool:
                return not it.broker.held and it.consumer.attached

            await eventually(back)
    assert [entry["event"] for entry in logs].count("host.taken") == 1


async def test_operations_of_one_job_end_in_order_and_infers_run_together() -> None:
    harness = VerbHarness(model(max_concurrency=2))
    async with intake(harness) as it:
        it.harness.server.may_infer.clear()
        commands = [
            harness.command(verb, input=1)
            for verb in (CREATE, LOAD, INFER, INFER, INFER, Verb.TERMINATE)
        ]
        await it.send(*commands)

        async def two() -> bool:
            return harness.server.infers_now == 2

        await eventually(two)
        harness.server.may_infer.set()
        ends = [await it.ended(command) for command in commands]
    assert {end.state for end in ends} == {OperationState.SUCCEEDED}
    assert harness.server.most_infers == 2


async def test_a_lost_subscription_is_made_anew_and_announced_only_once() -> None:
    async with intake() as it:
        command = it.harness.command(CREATE)
        await it.send(command)
        await it.ended(command)
        first = it.broker.subscription
        assert first is not None
        first.on_lost("cut")

        async def anew() -> bool:
            return it.broker.subscription is not first and it.consumer.attached

        await eventually(anew)
        assert it.broker.hellos == 1
        assert it.announced == 1


def heart(
    broker: FakeBroker, harness: VerbHarness, *, attached: bool = True, stuck_s: float = 0.0
) -> HeartbeatSender:
    return HeartbeatSender(
        HostChannel(broker, HOST, "i-1"),
        runtime=harness.runtime,
        lease=Lease(),
        attached=lambda: attached,
        stuck_s=lambda: stuck_s,
        compose=lambda: Heartbeat(host_id=HOST, incarnation="i-1", slots=4),
    )


async def test_the_heart_beats_only_with_engine_consumer_and_broker() -> None:
    broker, harness = FakeBroker(), VerbHarness()
    assert await heart(broker, harness).beat()
    assert [exchange for exchange, _, _ in broker.published] == [HEARTBEATS]
    assert not await heart(broker, harness, attached=False).beat()
    assert not await heart(broker, harness, stuck_s=10.1).beat()
    harness.runtime.available = False
    assert not await heart(broker, harness).beat()
    harness.runtime.available = True
    broker.away = True
    assert not await heart(broker, harness).beat()
    assert len(broker.published) == 1


async def test_a_heartbeat_has_told_something_only_once_it_is_confirmed() -> None:
    broker = FakeBroker()
    sender = heart(broker, VerbHarness())
    told: list[Heartbeat] = []
    sender.on_confirmed = told.append
    broker.away = True
    assert not await sender.beat()
    assert told == []
    broker.away = False
    assert await sender.beat()
    assert told == [Heartbeat(host_id=HOST, incarnation="i-1", slots=4)]


async def test_a_worker_knows_what_its_heartbeats_have_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Heartbeat] = []
    monkeypatch.setattr(HostOffer, "record_told", lambda _, heartbeat: told.append(heartbeat))
    async with running_host() as host:
        await host.online()

        async def beats() -> bool:
            return bool(told)

        await eventually(beats)
        assert told[0].incarnation == host.incarnations[0]


async def test_a_boot_reports_what_it_found() -> None:
    harness, broker = VerbHarness(), FakeBroker()
    harness.runtime.images[IMAGE] = lambda _: FakeServer()
    await harness.do(CREATE)
    await harness.do(LOAD)
    await harness.do(CREATE, job="job-2")
    harness.runtime.named("modelyard-job-2-1").exit(1)
    harness.runtime.add_foreign("somebody-elses")
    harness.restarted()
    recovery = BootRecovery(
        HostChannel(broker, HOST, "i-2"),
        runtime=harness.runtime,
        builder=inventory_builder(harness),
        lease=Lease(),
        journal=AttemptJournal(None),
        offer=HostOffer(
            WorkerSettings(host_id=HOST, worker_slots=3, worker_labels={"zone": "a"}),
            declared(Device(uuid="GPU-a", memory=1 << 30)),
        ),
    )
    await recovery.prepare()
    containers = await recovery.announce()
    message = WorkerReports.model_validate_json(broker.published[-1][1])
    assert message.online is not None
    assert (message.incarnation, message.online.slots) == ("i-2", 3)
    assert message.online.capacity == HostCapacity(
        cpus=4.0,
        memory=8 << 30,
        reserved_memory=512 << 20,
        devices=(Device(uuid="GPU-a", memory=1 << 30),),
    )
    inventory = [(i.job_id, i.generation, i.running, i.loaded) for i in message.online.inventory]
    assert inventory == [("job-1", 1, True, True), ("job-2", 1, False, False)]
    alive, dead = (i.error for i in message.online.inventory)
    assert alive is None
    assert dead is not None
    assert dead.detail == {"exit_code": 1, "log_tail": "server starts\n"}
    assert len(containers) == 2
    assert broker.hellos == 1


async def test_a_boot_whose_engine_is_away_for_a_moment_is_announced_after_it() -> None:
    harness, broker = VerbHarness(), FakeBroker()
    recovery = _boot(broker, harness, AttemptJournal(None))
    await recovery.prepare()
    harness.runtime.available = False
    async with asyncio.timeout(10), TaskGroup() as tasks:
        announcing = tasks.create_task(recovery.announce())
        await asyncio.wait((announcing,), timeout=0.05)
        assert not announcing.done()
        harness.runtime.available = True
    assert announcing.result() == []


async def test_a_container_that_can_not_be_inspected_holds_up_no_boot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.engine.listing.INSPECT_S", 0.05)
    harness, broker = VerbHarness(), FakeBroker()
    await harness.do(CREATE)

    async def inspect(_: str) -> Any:
        await asyncio.Event().wait()

    harness.runtime.inspect = inspect  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(5):
        containers = await _boot(broker, harness, AttemptJournal(None)).announce()
    assert [(facts.name, facts.running) for facts in containers] == [("modelyard-job-1-1", True)]


def _boot(broker: FakeBroker, harness: VerbHarness, journal: AttemptJournal) -> BootRecovery:
    return BootRecovery(
        HostChannel(broker, HOST, "i-2"),
        runtime=harness.runtime,
        builder=inventory_builder(harness),
        lease=Lease(),
        journal=journal,
        offer=HostOffer(WorkerSettings(host_id=HOST), declared()),
    )
