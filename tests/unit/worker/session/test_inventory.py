"""What a worker tells of its containers, in which order, and of which it says nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from modelyard.contract.catalog.entries import Probe, Profile
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import Inventory
from modelyard.contract.states import OperationState, Verb
from tests.support.waiting import eventually
from tests.support.worker.broker import FakeBroker, report, reporter_on
from tests.support.worker.harness import BLIND_HOOKS, HTTP_HOOKS, VerbHarness, model
from tests.support.worker.inventory import InventoryHarness, inventory_harness
from worker.attempts.attempt import Outcome
from worker.containers import disk
from worker.containers.disk import DiskWatch
from worker.containers.health import MISSES, SPACING_S, ModelHealth
from worker.containers.lifecycle import LEASE_LOST
from worker.engine.protocol import EngineUnavailableError
from worker.execution.deaths import LOG_CHARS
from worker.model_server.client import ModelServer
from worker.model_server.probes import ProbeResult, ProbeVerdict
from worker.model_server.profiles import inventory_label, probe_in_label

CREATE, LOAD, INFER, UNLOAD = (
    Verb.DEPLOY_CREATE,
    Verb.DEPLOY_LOAD,
    Verb.INFER,
    Verb.DEPLOY_UNLOAD,
)


async def test_an_inventory_says_what_is_true_of_each_own_container() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.runtime.add_foreign("somebody-elses")
        item = await it.item()
        assert (item.running, item.loaded, item.exit_code, item.ever_started) == (
            True,
            True,
            None,
            True,
        )
        it.harness.container.exit(137, oom_killed=True)
        told = await it.look()
    assert [
        (i.job_id, i.generation, i.running, i.loaded, i.exit_code, i.oom_killed) for i in told.items
    ] == [("job-1", 1, False, False, 137, True)]
    assert told.busy == ()


async def test_a_container_that_was_never_started_says_so() -> None:
    async with inventory_harness(VerbHarness(model(Profile.PROCESS))) as it:
        await it.harness.do(CREATE)
        item = await it.item()
    assert (item.running, item.ever_started, item.exit_code) == (False, False, None)


async def test_a_container_that_is_dead_is_not_told_and_removed() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        runtime = it.harness.runtime
        runtime.die_at_removing(it.harness.container.id)
        assert (await it.look()).items == ()

        async def gone() -> bool:
            return not runtime.containers

        await eventually(gone)


async def test_a_removal_that_fails_again_is_begun_again_at_a_later_look() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        runtime = it.harness.runtime
        runtime.die_at_removing(it.harness.container.id)
        really, tries = runtime.remove, 0

        async def remove(container_id: str) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise EngineUnavailableError("driver failed to remove root filesystem")
            await really(container_id)

        runtime.remove = remove  # type: ignore[method-assign]
        with capture_logs() as logs:
            await it.look()

            async def failed() -> bool:
                return any(line["event"] == "removal.not_finished" for line in logs)

            await eventually(failed)
        assert runtime.containers

        async def gone() -> bool:
            await it.look()
            return not runtime.containers

        await eventually(gone)


async def test_a_job_that_is_worked_on_is_busy_and_its_server_is_not_asked() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        command = it.harness.command(INFER, input=1)
        attempt = it.registry.take(command).attempt
        assert attempt is not None
        asked = len(it.harness.server.requests)
        told = await it.look()
        assert told.busy == ("job-1",)
        assert len(it.harness.server.requests) == asked
        attempt.end(Outcome(OperationState.SUCCEEDED))
        it.registry.close(attempt)
        assert (await it.look()).busy == ()


async def test_a_job_that_gets_an_attempt_during_the_look_is_busy_although_it_ended_in_it() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        really = it.harness.runtime.list_uninspected

        async def list_uninspected() -> Any:
            found = await really()
            attempt = it.registry.take(it.harness.command(CREATE, job="job-2")).attempt
            assert attempt is not None
            attempt.end(Outcome(OperationState.SUCCEEDED))
            it.registry.close(attempt)
            return found

        it.harness.runtime.list_uninspected = list_uninspected  # type: ignore[method-assign]
        told = await it.look()
    assert told.busy == ("job-2",)


async def test_a_container_that_can_not_be_inspected_neither_silences_others_nor_looks_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.engine.listing.INSPECT_S", 0.05)
    async with inventory_harness() as it:
        for job in ("job-1", "job-2"):
            await it.harness.do(CREATE, job=job)
            await it.harness.do(LOAD, job=job)
        stuck, really = it.harness.container.id, it.harness.runtime.inspect

        async def inspect(ref: str) -> Any:
            if ref == stuck:
                await asyncio.Event().wait()
            return await really(ref)

        it.harness.runtime.inspect = inspect  # type: ignore[method-assign]
        told = await it.look()
    assert [(one.job_id, one.running, one.answer) for one in told.items] == [
        ("job-1", True, "yes"),
        ("job-2", True, "yes"),
    ]


async def test_an_inventory_comes_after_the_reports_before_it_and_before_those_after_it() -> None:
    broker = FakeBroker()
    reporter = reporter_on(broker)
    large = '"' + "x" * 200_000 + '"'
    for number in range(3):
        reporter.put(report(number, state=OperationState.SUCCEEDED, result_json=large))
    reporter.put_inventory(Inventory(busy=("here",)))
    reporter.put(report(9, state=OperationState.SUCCEEDED))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        assert await reporter.drain(5)
        running.cancel()
    order = [
        "inventory" if it.inventory else "".join(o.operation_id[-1] for o in it.operations)
        for it in broker.messages
    ]
    assert order == ["0", "1", "2", "inventory", "9"]


async def test_an_inventory_that_could_not_be_sent_is_dropped_and_the_reports_are_not() -> None:
    broker = FakeBroker()
    reporter = reporter_on(broker)
    broker.away = True
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        reporter.put_inventory(Inventory())

        async def tried() -> bool:
            return reporter._inventory is None

        await eventually(tried)
        reporter.put(report(1))
        reporter.put_inventory(Inventory())
        await eventually(tried)
        broker.away = False
        assert await reporter.drain(5)
        running.cancel()
    assert [(len(it.operations), it.inventory) for it in broker.messages] == [(1, None)]


async def test_an_engine_that_is_away_has_no_inventory_and_is_logged_once() -> None:
    async with inventory_harness() as it:
        it.harness.runtime.available = False
        with capture_logs() as logs:
            assert not await it.relist.look()
            assert not await it.relist.look()
        assert [entry["event"] for entry in logs] == ["inventory.silent"]
        assert it.broker.messages == []
        it.harness.runtime.available = True
        assert (await it.look()).items == ()


async def test_a_loaded_model_that_does_not_answer_for_three_looks_is_unhealthy() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.loaded = False
        said = [(await it.item()).unhealthy for _ in range(MISSES + 1)]
        assert said == [False, False, True, True]
        it.harness.server.loaded = True
        assert not (await it.item()).unhealthy
        it.harness.server.loaded = False
        assert not (await it.item()).unhealthy


async def test_what_is_answered_while_an_operation_begins_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.loaded = False
        really = ModelServer.probe

        async def probe_meanwhile(server: ModelServer, *about: Any) -> ProbeResult:
            attempt = it.registry.take(it.harness.command(INFER, input=1)).attempt
            assert attempt is not None
            found = await really(server, *about)
            attempt.end(Outcome(OperationState.SUCCEEDED))
            it.registry.close(attempt)
            return found

        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(ModelServer, "probe", probe_meanwhile)
            assert [(await it.item()).unhealthy for _ in range(MISSES)] == [False] * MISSES
        assert not (await it.item()).unhealthy


async def test_a_model_that_was_seen_loaded_after_a_boot_can_be_unhealthy_too() -> None:
    harness = VerbHarness()
    await harness.do(CREATE)
    await harness.do(LOAD)
    harness.restarted()
    async with inventory_harness(harness) as it:
        assert (await it.item()).loaded
        harness.server.loaded = False
        assert [(await it.item()).unhealthy for _ in range(MISSES)] == [False, False, True]


async def test_a_model_that_was_silent_at_a_boot_and_then_says_no_is_unhealthy() -> None:
    harness = VerbHarness()
    await harness.do(CREATE)
    await harness.do(LOAD)
    harness.restarted()
    async with inventory_harness(harness) as it:
        harness.server.silent = True
        assert (await it.item()).answer == "silent"
        harness.server.silent = False
        harness.server.loaded = False
        assert [(await it.item()).unhealthy for _ in range(MISSES)] == [False, False, True]


async def test_a_model_that_is_silent_is_never_unhealthy() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.silent = True
        items = [await it.item() for _ in range(3 * MISSES)]
        assert {(item.answer, item.unhealthy) for item in items} == {("silent", False)}


async def test_a_label_that_holds_no_path_hides_no_other_container() -> None:
    async with inventory_harness() as there:
        for job in ("job-1", "job-2"):
            for verb in (CREATE, LOAD):
                assert (await there.harness.do(verb, job=job)).state is OperationState.SUCCEEDED
        plan = there.harness.container.plan
        assert plan is not None
        labels = replace(plan.labels, ready="@127.0.0.9/")
        there.harness.container.plan = replace(plan, labels=labels)
        told = {item.job_id: item.answer for item in (await there.look()).items}
    assert told == {"job-1": "not_asked", "job-2": "yes"}


async def test_a_label_keeps_the_whole_probe_for_the_next_worker() -> None:
    probe = Probe(path="/ready", headers={"X-Key": "k"}, body_contains="loaded")
    hooks = HTTP_HOOKS.model_copy(update={"ready": probe})
    label = inventory_label(model(Profile.HTTP, hooks=hooks))
    assert label is not None
    assert probe_in_label(label) == probe
    assert inventory_label(model(Profile.HTTP)) == "/ready"
    assert probe_in_label("/ready") == Probe(path="/ready")
    for broken in ("{", '{"headers": {}}'):
        with pytest.raises(ModelyardError):
            probe_in_label(broken)


async def test_a_worker_that_lags_counts_no_probe_as_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.model_server.client.PROBE_S", 0.05)
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.before_answer = lambda: time.sleep(0.2)  # the loop stands still
        items = [await it.item() for _ in range(2 * MISSES)]
        assert not any(item.unhealthy for item in items)


async def test_a_container_that_was_never_loaded_is_not_unhealthy() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        items = [await it.item() for _ in range(2 * MISSES)]
        assert {(item.answer, item.unhealthy) for item in items} == {("no", False)}


async def test_looks_at_a_busy_job_neither_count_nor_reset() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.loaded = False
        assert not (await it.item()).unhealthy
        assert not (await it.item()).unhealthy
        attempt = it.registry.take(it.harness.command(INFER, input=1)).attempt
        assert attempt is not None
        assert not (await it.item()).unhealthy
        assert not (await it.item()).unhealthy
        it.registry.close(attempt)
        assert (await it.item()).unhealthy


@pytest.mark.parametrize("end", ["unloaded", "exited"])
async def test_a_model_that_is_not_in_memory_any_more_is_not_unhealthy(end: str) -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        assert (await it.item()).loaded
        if end == "unloaded":
            await it.harness.do(UNLOAD)
        else:
            it.harness.container.exit(1)
        assert not any([(await it.item()).unhealthy for _ in range(MISSES + 1)])


async def test_a_process_that_answers_no_more_is_unhealthy() -> None:
    async with inventory_harness(VerbHarness(model(Profile.PROCESS))) as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.loaded = False
        assert [(await it.item()).unhealthy for _ in range(MISSES)] == [False, False, True]


async def test_a_server_that_can_not_be_asked_is_not_taken_for_loaded_by_a_look() -> None:
    async with inventory_harness(VerbHarness(model(Profile.HTTP, hooks=BLIND_HOOKS))) as it:
        await it.harness.do(CREATE)
        await it.item()
        await it.harness.do(LOAD)
    assert it.harness.server.loads == 1


def health_at(times: Callable[[], float]) -> ModelHealth:
    return ModelHealth(clock=times)


async def test_a_container_that_died_says_why_and_its_log_is_read_once() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        reads = count_logs(it.harness)
        assert (await it.item()).error is None
        it.harness.container.write("x" * 3_000 + "no weights\n", stderr=True)
        it.harness.container.exit(7)
        told = [(await it.item()).error for _ in range(3)]
        assert reads == [it.harness.container.id]
    assert told[0] == told[1] == told[2]
    assert told[0] is not None
    assert (told[0].code, told[0].detail["exit_code"]) == (ErrorCode.EXITED, 7)
    assert told[0].detail["log_tail"].endswith("xno weights\n")
    assert len(told[0].detail["log_tail"]) == LOG_CHARS


async def test_a_container_that_died_again_shows_the_end_of_its_log_then() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        for words in ("first\n", "second\n"):
            await it.harness.do(LOAD)
            it.harness.container.write(words, stderr=True)
            it.harness.container.exit(1)
            error = (await it.item()).error
            assert error is not None
            assert error.detail["log_tail"].endswith(words)


async def test_a_log_that_can_not_be_read_hides_no_death() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)

        async def log_tail(container_id: str, *, lines: int) -> str:
            raise EngineUnavailableError(f"{lines} lines of {container_id} are too many")

        it.harness.runtime.log_tail = log_tail  # type: ignore[method-assign]
        it.harness.container.exit(137, oom_killed=True)
        error = (await it.item()).error
    assert error is not None
    assert error.code is ErrorCode.OOM_KILLED
    assert error.detail == {"exit_code": 137, "oom_killed": True}


async def test_a_container_that_an_unload_stopped_did_not_die() -> None:
    async with inventory_harness(VerbHarness(model(Profile.PROCESS))) as it:
        for verb in (CREATE, LOAD, UNLOAD):
            await it.harness.do(verb)
        reads = count_logs(it.harness)
        item = await it.item()
    assert (item.running, item.error, reads) == (False, None, [])


async def test_a_container_of_a_busy_job_is_not_judged() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        reads = count_logs(it.harness)
        assert it.registry.take(it.harness.command(INFER, input=1)).attempt is not None
        it.harness.container.exit(1)
        assert (await it.item()).error is None
    assert reads == []


@pytest.mark.parametrize("measurable", [True, False])
async def test_a_container_that_was_stopped_for_its_disk_says_what_was_measured(
    measurable: bool,  # noqa: FBT001 - pytest names it
) -> None:
    harness = VerbHarness(model(read_only=False, resources={"disk": 10 << 20}))
    async with inventory_harness(harness) as it:
        await harness.do(CREATE)
        await harness.do(LOAD)
        harness.container.disk = 11 << 20
        harness.container.immeasurable = not measurable
        watch = DiskWatch(harness.runtime, harness.operations.containers.health)
        for _ in range(disk.MISSES):
            await watch.measure_all()
        item = await it.item()
    assert item.error is not None
    assert (item.disk_exceeded, item.error.code) == (True, ErrorCode.DISK_QUOTA_EXCEEDED)
    facts = {"written": 11 << 20} if measurable else {"failed_measurements": disk.MISSES}
    assert (facts | {"limit": 10 << 20}).items() <= item.error.detail.items()
    assert item.error.detail["log_tail"] == "server starts\n"
    says = "wrote 11 MiB" if measurable else "could not be measured 3 times"
    assert says in item.error.message


async def test_a_container_that_was_stopped_with_the_lease_says_so() -> None:
    async with inventory_harness(VerbHarness(model(on_host_lost="recreate"))) as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        await it.harness.operations.containers.halt_strict()
        error = (await it.item()).error
    assert error is not None
    assert (error.code, error.message) == (ErrorCode.EXITED, LEASE_LOST)


async def test_an_unhealthy_model_says_what_was_asked_and_what_it_said_to_that() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        it.harness.server.loaded = False
        it.harness.server.unready_text = '{"error":"CUDA OOM"}'
        assert [(await it.item()).error for _ in range(MISSES - 1)] == [None, None]
        error = (await it.item()).error
        it.harness.server.silent = True
        assert (await it.item()).error == error, "silence is no answer"
        it.harness.server.silent = False
        it.harness.server.moves_away = True
        refused = (await it.item()).error
    asked = "GET /v2/models/m-1/ready on the container's port 8080"
    assert error is not None
    assert error.code is ErrorCode.UNHEALTHY
    assert asked in error.message
    assert "CUDA OOM" in error.message
    assert error.detail == {"asked": asked, "last_answer": "503", "body": '{"error":"CUDA OOM"}'}
    assert refused is not None
    assert "0.0.0.0" in refused.message


async def test_many_deaths_at_once_fit_into_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.session.inventory.MAX_ERRORS_BYTES", 30_000)
    jobs = [f"job-{number}" for number in range(1, 6)]
    async with inventory_harness() as it:
        for job in jobs:
            await it.harness.do(CREATE, job=job)
            await it.harness.do(LOAD, job=job)
        for job in jobs:
            container = it.harness.runtime.named(f"modelyard-{job}-1")
            container.write("\x01" * LOG_CHARS, stderr=True)  # six bytes each as JSON
            container.exit(3)
            await it.look()
        told = await it.look()
    errors = {item.job_id: item.error for item in told.items}
    whole = {job for job, error in errors.items() if error and "log_tail" in error.detail}
    assert whole == {"job-4", "job-5"}, "those that died last"
    assert {error and error.detail["exit_code"] for error in errors.values()} == {3}


def count_logs(harness: VerbHarness) -> list[str]:
    """Return a list that gets the id of each container whose log is read from now on."""
    really, reads = harness.runtime.log_tail, list[str]()

    async def log_tail(container_id: str, *, lines: int) -> str:
        reads.append(container_id)
        return await really(container_id, lines=lines)

    harness.runtime.log_tail = log_tail  # type: ignore[method-assign]
    return reads


def test_a_burst_of_looks_counts_as_one() -> None:
    now = 0.0
    health = health_at(lambda: now)
    health.record_loaded("c")
    no = ProbeResult(ProbeVerdict.NO, "503")
    assert not any(health.record_answer("c", running=True, probed=no) for _ in range(10))
    said = []
    for _ in range(MISSES - 1):
        now += SPACING_S
        said.append(health.record_answer("c", running=True, probed=no) is not None)
    assert said == [False, True]


async def test_what_is_gone_is_forgotten() -> None:
    async with inventory_harness() as it:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        await it.harness.runtime.remove(it.harness.container.id)
        await it.look()
    assert it.harness.operations.containers.health.known == frozenset()


def inventories(broker: FakeBroker) -> list[Inventory]:
    return [it.inventory for it in broker.messages if it.inventory is not None]


@asynccontextmanager
async def looking_around(interval_s: float) -> AsyncIterator[InventoryHarness]:
    """Run a relist; its job is loaded and has been seen running."""
    async with inventory_harness() as it, asyncio.TaskGroup() as tasks:
        await it.harness.do(CREATE)
        await it.harness.do(LOAD)
        looking = tasks.create_task(it.relist.run(interval_s=interval_s))

        async def seen() -> bool:
            return bool(inventories(it.broker)) and it.harness.runtime.watches == 1

        await eventually(seen)
        yield it
        looking.cancel()


async def seen_dead(it: InventoryHarness) -> float:
    """Return after how many seconds the death of the container was told."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    it.harness.container.exit(1)

    async def told() -> bool:
        return not inventories(it.broker)[-1].items[0].running

    await eventually(told)
    return loop.time() - began


async def test_a_death_that_the_engine_tells_is_looked_at_at_once() -> None:
    async with looking_around(interval_s=60) as it:
        assert await seen_dead(it) < 2.0


async def test_a_death_that_the_engine_does_not_tell_is_seen_by_the_next_look() -> None:
    async with looking_around(interval_s=1.5) as it:
        it.harness.runtime.tells_changes = False
        await seen_dead(it)


async def test_a_watch_that_ended_is_made_anew() -> None:
    async with looking_around(interval_s=60) as it:
        it.harness.runtime.end_watches()

        async def ended() -> bool:
            return it.harness.runtime.watches == 0

        async def anew() -> bool:
            return it.harness.runtime.watches == 1

        await eventually(ended)
        it.harness.runtime.available = False
        await asyncio.sleep(0.3)  # long enough to fail at it once
        it.harness.runtime.available = True
        await eventually(anew)
        assert await seen_dead(it) < 2.0


async def test_however_much_changes_there_is_about_one_look_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.session.relist.HASTE_S", 0.3)
    monkeypatch.setattr("worker.session.relist.REST_S", 0.1)
    async with looking_around(interval_s=60) as it:
        before, began = len(inventories(it.broker)), time.monotonic()
        async with asyncio.timeout(30):
            while len(inventories(it.broker)) - before < 3:
                it.harness.runtime.tell()
                await asyncio.sleep(0)
        assert time.monotonic() - began > 0.6
