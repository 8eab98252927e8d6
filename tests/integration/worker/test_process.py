"""A worker as a real process over a real broker: signals, freezing, killing."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from modelyard.broker import Broker
from modelyard.contract.messages import HostCommand, HostCommands, OperationReport, WorkerReports
from modelyard.contract.states import Verb
from modelyard.contract.topology import HOSTS, REPORTS_QUEUE
from modelyard.process.shutdown import CUT_OFF
from tests.support.dispatcher.enrolled import enrol
from tests.support.waiting import eventually
from tests.support.worker.harness import HOST, VerbHarness
from tests.support.worker.scripted_engine import ScriptedEngine, scripted_engine
from worker.engine.labels import ContainerLabels

STRICT = "a" * 64
CREATE = Verb.DEPLOY_CREATE
LEFT_OPEN = ("Task was destroyed", "unclosed", "never retrieved", "never awaited", "Traceback")
SHORT = ("0.3", "2.0", "2.5")
"""Seconds between beats, until the fence, and until the watchdog acts."""


STRICT_LABELS = ContainerLabels(HOST, "moves", "operation", 1, "spec", strict=True).as_labels()


def strict_container() -> dict[str, Any]:
    return {
        "Id": STRICT,
        "Name": "/modelyard-moves-1",
        "State": {"Running": True, "StartedAt": "2026-01-01T00:00:00Z"},
        "Config": {"Labels": STRICT_LABELS},
    }


def listed(state: str) -> list[dict[str, Any]]:
    """Return the list of the engine that has it in this state."""
    names = ["/modelyard-moves-1"]
    return [{"Id": STRICT, "Names": names, "State": state, "Labels": STRICT_LABELS}]


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


class WorkerProcess:
    """A worker process, the engine that it drives and what it reports."""

    def __init__(self, engine: ScriptedEngine, broker: Broker, folder: Path, amqp_url: str) -> None:
        self.engine = engine
        self.broker = broker
        self.messages: list[WorkerReports] = []
        self.log = folder / "worker.log"
        self.notes = folder / "run"
        self._folder = folder
        self._environment = {
            **os.environ,
            "MODELYARD_HOST_ID": HOST,
            "MODELYARD_WORKER_ALLOWED_IMAGES": '["modelyard/*"]',
            "MODELYARD_AMQP_URL": amqp_url,
            "MODELYARD_WORKER_RUNTIME_DIR": str(folder / "run"),
            "DOCKER_HOST": f"unix://{folder / 'engine.sock'}",
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        engine.answers.update(
            {
                "GET /info": {"NCPU": 2, "MemTotal": 1 << 30, "OperatingSystem": "x"},
                "GET /networks": [],
                "POST /networks/create": {"Id": "n"},
                "GET /containers/json": [],
                "GET /events": engine.hang,
            }
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a worker; with times, one whose lease is short."""
        module = "tests.support.worker.process" if arguments else "worker"
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                (sys.executable, "-X", "dev", "-m", module, *arguments),
                env=self._environment,
                stderr=log,
            )
        self._processes.append(process)
        return process

    async def online(self, times: int = 1) -> str:
        """Return the incarnation of the boot that was announced as the `times`-th."""

        async def announced() -> str | None:
            found = [it.incarnation for it in self.messages if it.online is not None]
            return found[times - 1] if len(found) >= times else None

        return await eventually(announced, what="an announcement")

    async def send(self, command: HostCommand, incarnation: str) -> None:
        body = HostCommands(host_id=HOST, incarnation=incarnation, commands=(command,))
        await self.broker.publish(HOSTS, HOST, body.model_dump_json().encode())

    def holds_strict(self) -> None:
        """Put a container on the engine that must not outlive the lease."""
        self.engine.answers["GET /containers/json"] = listed("running")
        self.engine.answers[f"GET /containers/{STRICT}/json"] = strict_container()

        async def stop(_: web.Request) -> web.Response:
            stopped = strict_container()
            stopped["State"] |= {"Running": False, "ExitCode": 137}
            self.engine.answers[f"GET /containers/{STRICT}/json"] = stopped
            self.engine.answers["GET /containers/json"] = listed("exited")
            return web.Response(status=204)

        self.engine.answers[f"POST /containers/{STRICT}/stop"] = stop

    async def strict_is_stopped(self) -> None:
        async def stopped() -> bool:
            return f"POST /containers/{STRICT}/stop" in self.engine.asked

        await eventually(stopped, what="the end of the strict container")

    def reports_of(self, command: HostCommand) -> list[OperationReport]:
        every = [report for message in self.messages for report in message.operations]
        return [it for it in every if it.operation_id == command.operation_id]

    async def asked(self, what: str) -> None:
        async def found() -> bool:
            return what in self.engine.asked

        await eventually(found, what=what)

    async def collect(self) -> None:
        async with self.broker.subscribe(REPORTS_QUEUE, prefetch=100) as subscription:
            async for batch in subscription.batches(max_items=100):
                self.messages += [WorkerReports.model_validate_json(it.body) for it in batch]
                await subscription.ack(batch)

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                watchdogs = children_of(process)
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
                for pid in watchdogs:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def worker_on(folder: Path, broker: Broker, amqp_url: str) -> AsyncIterator[WorkerProcess]:
    await enrol(broker, HOST)
    async with scripted_engine(folder) as (engine, _), asyncio.TaskGroup() as tasks:
        made = WorkerProcess(engine, broker, folder, amqp_url)
        collecting = tasks.create_task(made.collect())
        try:
            yield made
        finally:
            made.end()
            collecting.cancel()


@pytest.fixture
async def worker(tmp_path: Path, broker: Broker, amqp_url: str) -> AsyncIterator[WorkerProcess]:
    async with asyncio.timeout(90), worker_on(tmp_path, broker, amqp_url) as made:
        yield made


async def watchdog_of(worker: WorkerProcess, process: subprocess.Popen[bytes]) -> int:
    """Return the watchdog's process id, once it has heard of the lease."""

    async def noted() -> int | None:
        return next(iter(children_of(process)), None) if [*worker.notes.glob("*.lease")] else None

    return await eventually(noted, what="the watchdog")


async def code_of(process: subprocess.Popen[bytes], within_s: float = 20.0) -> int:
    async def ended() -> str | None:
        code = process.poll()
        return None if code is None else str(code)

    return int(await eventually(ended, within_s=within_s, what="the end of the worker"))


async def ended(pid: int) -> None:
    async def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    await eventually(gone, what="the end of the watchdog")


async def test_a_worker_that_is_told_to_stop_leaves_nothing_open(worker: WorkerProcess) -> None:
    process = worker.start()
    incarnation = await worker.online()
    worker.engine.answers["GET /networks"] = worker.engine.hang
    command = VerbHarness().command(CREATE)
    worker.engine.answers["GET /images/docker.io/modelyard/probe:local/json"] = {"Id": "sha256:1"}
    await worker.send(command, incarnation)
    await worker.asked("GET /images/docker.io/modelyard/probe:local/json")
    watchdog = await watchdog_of(worker, process)
    began = time.monotonic()
    process.terminate()
    assert await code_of(process, within_s=25.0) == 0
    assert time.monotonic() - began > 10  # what ran got its time
    said = worker.log.read_text()
    assert not [words for words in LEFT_OPEN if words in said], said
    assert not any(it.state.terminal for it in worker.reports_of(command))
    await ended(watchdog)
    assert not any(it.endswith("/stop") for it in worker.engine.asked)


async def test_what_may_be_made_elsewhere_outlives_no_worker_that_stays_away(
    worker: WorkerProcess,
) -> None:
    worker.holds_strict()
    process = worker.start("0.3", "8.0", "10.0")
    await worker.online()
    watchdog = await watchdog_of(worker, process)
    process.terminate()
    assert await code_of(process) == 0
    assert not any(it.endswith("/stop") for it in worker.engine.asked)
    await worker.strict_is_stopped()
    await ended(watchdog)


async def test_a_worker_with_nothing_to_do_stops_at_once(worker: WorkerProcess) -> None:
    process = worker.start()
    await worker.online()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert await code_of(process) == 0
    assert time.monotonic() - began < 8
    said = worker.log.read_text()
    assert not [words for words in LEFT_OPEN if words in said], said


async def test_a_second_signal_ends_a_worker_without_waiting(worker: WorkerProcess) -> None:
    worker.holds_strict()
    process = worker.start(*SHORT)
    incarnation = await worker.online()
    worker.engine.answers["GET /images/docker.io/modelyard/probe:local/json"] = worker.engine.hang
    await worker.send(VerbHarness().command(CREATE), incarnation)
    await worker.asked("GET /images/docker.io/modelyard/probe:local/json")
    watchdog = await watchdog_of(worker, process)
    process.terminate()

    async def stopping() -> bool:
        return "worker.stopping" in worker.log.read_text()

    await eventually(stopping)
    began = time.monotonic()
    process.terminate()
    assert await code_of(process) == CUT_OFF
    assert time.monotonic() - began < 3
    await worker.strict_is_stopped()
    await ended(watchdog)


async def test_a_worker_that_does_not_end_in_time_is_cut_off_and_its_watchdog_is_in_charge(
    worker: WorkerProcess,
) -> None:
    worker.holds_strict()
    process = worker.start("0.3", "6.0", "8.0", "2.0")
    incarnation = await worker.online()
    worker.engine.answers["GET /images/docker.io/modelyard/probe:local/json"] = worker.engine.hang
    await worker.send(VerbHarness().command(CREATE), incarnation)
    await worker.asked("GET /images/docker.io/modelyard/probe:local/json")
    watchdog = await watchdog_of(worker, process)
    began = time.monotonic()
    process.terminate()
    assert await code_of(process) == 1
    assert 1.9 < time.monotonic() - began < 4
    assert not any(it.endswith("/stop") for it in worker.engine.asked)
    await worker.strict_is_stopped()
    await ended(watchdog)


async def test_a_worker_that_was_frozen_past_its_lease_takes_nothing_from_before(
    worker: WorkerProcess,
) -> None:
    worker.holds_strict()
    process = worker.start(*SHORT)
    first = await worker.online()
    creating, waiting = VerbHarness().command(CREATE), VerbHarness().command(CREATE, job="job-2")
    may_answer = asyncio.Event()

    async def image(_: web.Request) -> web.Response:
        await may_answer.wait()
        return web.json_response({"Id": "sha256:1"})

    worker.engine.answers["GET /images/docker.io/modelyard/probe:local/json"] = image
    await worker.send(creating, first)
    await worker.asked("GET /images/docker.io/modelyard/probe:local/json")
    process.send_signal(signal.SIGSTOP)
    may_answer.set()
    await worker.send(waiting, first)
    await worker.strict_is_stopped()  # by the watchdog, which was not frozen
    process.send_signal(signal.SIGCONT)
    second = await worker.online(times=2)
    assert second != first
    assert worker.reports_of(waiting) == []
    assert not any("/containers/create" in it for it in worker.engine.asked)
    assert not any(it.state.terminal for it in worker.reports_of(creating))
    third = VerbHarness().command(Verb.TERMINATE, job="job-3")
    await worker.send(third, second)

    async def done() -> bool:
        return any(it.state.terminal for it in worker.reports_of(third))

    await eventually(done, what="work of the new incarnation")


async def test_a_worker_that_was_frozen_for_less_keeps_its_lease(worker: WorkerProcess) -> None:
    process = worker.start("0.3", "20.0", "25.0")
    await worker.online()
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(2.0)  # the time of the freeze
    process.send_signal(signal.SIGCONT)
    command = VerbHarness().command(Verb.TERMINATE)
    await worker.send(command, await worker.online())

    async def done() -> bool:
        return any(it.state.terminal for it in worker.reports_of(command))

    await eventually(done)
    assert sum(it.online is not None for it in worker.messages) == 1


async def test_what_is_strict_outlives_neither_a_killed_worker_nor_its_lease(
    worker: WorkerProcess,
) -> None:
    worker.holds_strict()
    process = worker.start(*SHORT)
    await worker.online()
    watchdog = await watchdog_of(worker, process)
    process.kill()
    await worker.strict_is_stopped()
    await ended(watchdog)


async def test_what_a_restarted_worker_adopts_survives_the_old_watchdog(
    worker: WorkerProcess,
) -> None:
    worker.holds_strict()
    process = worker.start("0.3", "6.0", "8.0")
    await worker.online()
    watchdog = await watchdog_of(worker, process)
    process.kill()
    await code_of(process)
    worker.start("0.3", "20.0", "25.0")
    await worker.online(times=2)
    await ended(watchdog)
    assert not any(it.endswith("/stop") for it in worker.engine.asked)
