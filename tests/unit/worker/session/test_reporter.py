"""Reports out and commands told apart: nothing final is lost, nothing runs twice."""

import asyncio
import gc
import weakref

from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import (
    MAX_MESSAGE_BYTES,
    HostCommand,
    OperationReport,
    RepeatReport,
)
from modelyard.contract.states import OperationState, Phase, Verb
from tests.support.waiting import eventually
from tests.support.worker.broker import FakeBroker, report, reporter_on
from tests.support.worker.harness import VerbHarness
from worker.attempts.attempt import Attempt, Outcome
from worker.attempts.job_locks import JobLocks
from worker.attempts.registry import (
    MAX_ENDED,
    MAX_RESULT_BYTES_KEPT,
    AttemptRegistry,
    CommandDecision,
)

CREATE, LOAD, INFER = Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER


async def test_reports_that_wait_together_travel_together() -> None:
    broker = FakeBroker()
    reporter = reporter_on(broker)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await reporter.deliver([report(n) for n in range(50)])
        running.cancel()
    assert len(broker.published) == 1
    assert len(broker.reports) == 50


async def test_of_one_attempt_only_the_newest_report_waits() -> None:
    broker = FakeBroker()
    reporter = reporter_on(broker)
    for seq in (1, 2, 4, 3):
        reporter.put(report(1, seq))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        assert await reporter.drain(5)
        running.cancel()
    assert [it.seq for it in broker.reports] == [4]


async def test_nothing_is_lost_while_the_broker_is_away() -> None:
    broker = FakeBroker()
    broker.away = True
    reporter = reporter_on(broker)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        reporter.put(report(1, 1))
        reporter.put(report(2, 1))
        assert not await reporter.drain(0.05)
        reporter.put(report(1, 2, state=OperationState.SUCCEEDED))
        broker.away = False
        assert await reporter.drain(5)
        running.cancel()
    newest = {it.operation_id[-1]: it.seq for it in broker.reports}
    assert newest == {"1": 2, "2": 1}


async def test_a_way_of_the_reports_that_is_gone_is_made_anew() -> None:
    broker = FakeBroker()
    broker.routed = False
    reporter = reporter_on(broker)
    assert reporter.stuck_s == 0.0
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await reporter.deliver([report(1)])
        running.cancel()
    assert broker.hellos == 1


async def test_reports_that_nobody_takes_are_known_to_be_stuck() -> None:
    broker = FakeBroker()
    broker.away = True
    reporter = reporter_on(broker)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        reporter.put(report(1))

        async def stuck() -> bool:
            return reporter.stuck_s > 0.05

        await eventually(stuck)
        broker.away = False
        assert await reporter.drain(5)
        assert reporter.stuck_s == 0.0
        running.cancel()


async def test_messages_are_bounded_and_a_large_report_travels_alone() -> None:
    broker = FakeBroker()
    reporter = reporter_on(broker)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        large = report(99, result_json='"' + "x" * (MAX_MESSAGE_BYTES * 2) + '"')
        await reporter.deliver([report(n, result_json='"' + "y" * 100_000 + '"') for n in range(4)])
        await reporter.deliver([report(5), large, report(6)])
        running.cancel()
    sizes = [len(body) for _, body, _ in broker.published]
    assert sum(size > MAX_MESSAGE_BYTES + 1_000 for size in sizes) == 1
    assert len(broker.reports) == 7


def taken(registry: AttemptRegistry, command: HostCommand) -> CommandDecision:
    return registry.take(command).decision


def test_an_epoch_is_taken_once_and_repeats_its_latest_report() -> None:
    sent: list[OperationReport] = []
    registry, harness = AttemptRegistry(sent.append), VerbHarness()
    command = harness.command(CREATE)
    first = registry.take(command)
    assert first.decision is CommandDecision.NEW
    assert first.attempt is not None
    first.attempt.report(Phase.CREATING)
    again = registry.take(command)
    assert (again.decision, again.attempt) == (CommandDecision.REPEATED, first.attempt)
    first.attempt.end(Outcome(OperationState.SUCCEEDED))
    registry.close(first.attempt)
    again = registry.take(command)
    assert (again.decision, again.attempt) == (CommandDecision.REPEATED, None)
    assert again.report == sent[-1]
    assert (sent[-1].state, sent[-1].seq) == (OperationState.SUCCEEDED, 3)


def test_a_lower_epoch_is_dropped() -> None:
    registry, command = AttemptRegistry(lambda _: None), VerbHarness().command(CREATE, epoch=2)
    assert taken(registry, command) is CommandDecision.NEW
    assert taken(registry, command.model_copy(update={"epoch": 1})) is CommandDecision.STALE_EPOCH


def test_a_higher_epoch_takes_over_from_the_one_that_runs() -> None:
    registry, command = AttemptRegistry(lambda _: None), VerbHarness().command(CREATE)
    first = registry.take(command)
    second = registry.take(command.model_copy(update={"epoch": 2}))
    assert second.decision is CommandDecision.NEW
    assert second.superseded is first.attempt


def test_a_generation_older_than_one_seen_is_refused() -> None:
    registry, harness = AttemptRegistry(lambda _: None), VerbHarness()
    registry.record_generations([("job-1", 3)])
    assert (
        taken(registry, harness.command(CREATE, generation=2)) is CommandDecision.STALE_GENERATION
    )
    assert taken(registry, harness.command(CREATE, generation=3)) is CommandDecision.NEW
    assert taken(registry, harness.command(CREATE, job="job-2")) is CommandDecision.NEW


def end_of(
    registry: AttemptRegistry, command: HostCommand, result_json: str | None = None
) -> OperationReport:
    """Take a command, let it succeed, and return its last report, which is not confirmed."""
    attempt = registry.take(command).attempt
    assert attempt is not None
    attempt.end(Outcome(OperationState.SUCCEEDED, result_json=result_json))
    registry.close(attempt)
    return attempt.latest


async def has_room(registry: AttemptRegistry) -> bool:
    try:
        async with asyncio.timeout(0):
            await registry.room()
    except TimeoutError:
        return False
    return True


async def test_what_ended_is_forgotten_from_the_oldest_on_once_it_is_confirmed() -> None:
    registry, harness = AttemptRegistry(lambda _: None), VerbHarness()
    commands = [harness.command(CREATE) for _ in range(MAX_ENDED + 1)]
    reports = [end_of(registry, command) for command in commands]
    assert registry.running == 0
    assert taken(registry, commands[0]) is CommandDecision.REPEATED
    assert not await has_room(registry)
    registry.confirmed(reports)
    assert await has_room(registry)
    assert taken(registry, commands[1]) is CommandDecision.REPEATED
    assert taken(registry, commands[0]) is CommandDecision.NEW


def test_of_what_ended_only_the_last_report_is_kept() -> None:
    registry, command = (
        AttemptRegistry(lambda _: None),
        VerbHarness().command(INFER, input="x" * 1_000),
    )
    attempt = registry.take(command).attempt
    assert attempt is not None
    attempt.end(Outcome(OperationState.SUCCEEDED, result_json="1"))
    registry.close(attempt)
    kept = weakref.ref(attempt)
    del attempt
    gc.collect()
    assert kept() is None
    assert taken(registry, command) is CommandDecision.REPEATED


HALF = '"' + "\u20ac" * (MAX_RESULT_BYTES_KEPT // 5) + '"'
"""More than half of what is kept, in UTF-8; less in characters."""


def test_of_too_many_confirmed_results_the_oldest_is_dropped_and_does_not_run_again() -> None:
    registry, harness = AttemptRegistry(lambda _: None), VerbHarness()
    commands = [harness.command(INFER, input=1) for _ in range(2)]
    reports = [end_of(registry, command, HALF) for command in commands]
    registry.confirmed(reports)
    first, second = (registry.take(command) for command in commands)
    assert (second.decision, second.report) == (CommandDecision.REPEATED, reports[1])
    # If the queue with its confirmed report was lost, the operation must end all the same.
    asked = RepeatReport(operation_id=commands[0].operation_id, epoch=1)
    again = registry.latest(asked)
    assert again is not None
    assert (first.decision, first.report) == (CommandDecision.REPEATED, again)
    assert (again.seq, again.result_json, again.job_state) == (reports[0].seq, None, None)
    assert again.error is not None
    assert (again.state, again.error.code) == (OperationState.FAILED, ErrorCode.WORKER_ERROR)
    later = commands[0].model_copy(update={"epoch": 2})
    assert taken(registry, later) is CommandDecision.NEW


async def test_results_that_are_not_confirmed_are_kept_and_nothing_more_is_taken() -> None:
    registry, harness = AttemptRegistry(lambda _: None), VerbHarness()
    commands = [harness.command(INFER, input=1) for _ in range(2)]
    first = end_of(registry, commands[0], HALF)
    assert await has_room(registry)
    second = end_of(registry, commands[1], HALF)
    assert not await has_room(registry)
    assert [registry.take(command).report for command in commands] == [first, second]
    registry.confirmed([first.model_copy(update={"state": OperationState.RUNNING})])
    assert not await has_room(registry)
    registry.confirmed([first])
    assert await has_room(registry)
    of_first, of_second = (registry.take(command).report for command in commands)
    assert of_first is not None
    assert (of_first.result_json, of_second) == (None, second)


def test_an_attempt_says_nothing_after_its_end() -> None:
    sent: list[OperationReport] = []
    attempt = Attempt(VerbHarness().command(CREATE), sent.append)
    attempt.end(Outcome(OperationState.FAILED))
    attempt.report(Phase.LOADING)
    attempt.end(Outcome(OperationState.SUCCEEDED))
    assert [it.state for it in sent] == [OperationState.FAILED]


async def test_shared_holders_go_together_up_to_their_number_and_exclusive_ones_alone() -> None:
    locks, inside, most = JobLocks(), set[str](), dict[str, int]()

    async def hold(name: str, shared_by: int | None) -> None:
        async with locks.hold("j", shared_by=shared_by):
            inside.add(name)
            assert shared_by is not None or inside == {name}
            most["seen"] = max(most.get("seen", 0), len(inside))
            await asyncio.sleep(0)
            inside.remove(name)

    async with asyncio.TaskGroup() as tasks:
        for number in range(30):
            tasks.create_task(hold(str(number), None if number % 10 == 9 else 3))
    assert most["seen"] == 3
    assert locks._locks == {}


async def test_a_job_is_held_in_the_order_of_asking_even_if_some_give_up() -> None:
    locks, order = JobLocks(), list[int]()

    async def hold(number: int) -> None:
        async with locks.hold("j"):
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(hold(number)) for number in range(5)]
        await asyncio.sleep(0)
        asking[2].cancel()
    assert order == [0, 1, 3, 4]
    assert locks._locks == {}
