"""The watchdog beside a worker's container: it knows the lease from the shared file alone."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelyard.process.clock import uptime_s
from modelyard.process.health.check import file_fault
from tests.support.waiting import eventually
from tests.support.worker.scripted_engine import scripted_engine
from tests.support.worker.watched_host import OTHER, STOPPED, STRICT, WatchedHost
from worker.engine.docker.runtime import DockerRuntime
from worker.watchdog.client import WATCHDOG_LEASE_S, shared_lease_file
from worker.watchdog.standing import POLL_S, ROUND_S, StandingWatchdog

LEASE_S = 50.0


class Standing:
    """A watchdog whose rounds a test makes, at times that it chooses."""

    def __init__(self, host: WatchedHost, runtime: DockerRuntime) -> None:
        self.host = host
        self.now = 1_000.0
        self.rounds = 0
        self.watchdog = StandingWatchdog(
            runtime,
            lease_s=LEASE_S,
            lease_file=host.note,
            on_round=self._count,
            clock=lambda: self.now,
        )

    def _count(self) -> None:
        self.rounds += 1

    def renew(self, at: float) -> None:
        self.host.note.write_text(f"{at}\n")


@pytest.fixture
async def standing(tmp_path: Path) -> AsyncIterator[Standing]:
    async with asyncio.timeout(20), scripted_engine(tmp_path) as (engine, runtime):
        yield Standing(WatchedHost(engine, tmp_path), runtime)


async def test_nothing_is_stopped_while_a_worker_has_the_lease(standing: Standing) -> None:
    standing.renew(at=standing.now - LEASE_S + 0.1)
    assert await standing.watchdog.round() == POLL_S
    assert standing.host.engine.asked == []
    assert standing.rounds == 1


async def test_once_the_lease_is_over_only_the_strict_that_run_are_stopped(
    standing: Standing,
) -> None:
    standing.renew(at=standing.now - LEASE_S)
    assert await standing.watchdog.round() == ROUND_S
    assert standing.host.stopped == [STRICT]


async def test_a_container_that_the_engine_can_not_stop_keeps_no_other_running(
    standing: Standing,
) -> None:
    standing.host.runs(STOPPED)  # another strict one, behind it in the list
    standing.host.engine.answers[f"POST /containers/{STRICT}/stop"] = (500, "no exit event")
    standing.renew(at=standing.now - LEASE_S)
    assert await standing.watchdog.round() == POLL_S
    assert standing.host.running == [STRICT, OTHER]
    assert standing.rounds == 0


async def test_what_starts_after_the_lease_is_stopped_too(standing: Standing) -> None:
    standing.renew(at=standing.now - LEASE_S)
    await standing.watchdog.round()
    standing.host.runs(STRICT)
    await standing.watchdog.round()
    assert standing.host.stopped == [STRICT, STRICT]


async def test_the_next_worker_of_the_host_is_left_alone(standing: Standing) -> None:
    standing.renew(at=standing.now - LEASE_S)
    await standing.watchdog.round()
    standing.host.runs(STRICT)
    standing.renew(at=standing.now)
    assert await standing.watchdog.round() == POLL_S
    assert standing.host.stopped == [STRICT]


@pytest.mark.parametrize("note", [None, "", "half a num", "5000.0"])
async def test_a_lease_that_nobody_knows_of_or_of_an_earlier_boot_is_none(
    standing: Standing, note: str | None
) -> None:
    if note is not None:
        standing.host.note.write_text(note)
    assert await standing.watchdog.round() == POLL_S
    assert standing.host.stopped == []


async def test_an_engine_that_does_not_answer_is_asked_again_soon(standing: Standing) -> None:
    standing.renew(at=standing.now - LEASE_S)
    standing.host.engine.answers["GET /containers/json"] = (500, "not now")
    assert await standing.watchdog.round() == POLL_S
    assert standing.rounds == 0


async def test_the_process_stops_what_outlives_the_lease_in_the_workers_folder(
    tmp_path: Path,
) -> None:
    folder, health = tmp_path / "runtime", tmp_path / "health"
    async with asyncio.timeout(40), scripted_engine(tmp_path) as (engine, _):
        host = WatchedHost(engine, tmp_path)
        note = shared_lease_file(folder, "host-1", host.url)
        assert note is not None
        note.write_text(str(uptime_s() - WATCHDOG_LEASE_S))
        process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-m", "worker.watchdog"],
            env={
                "DOCKER_HOST": host.url,
                "MODELYARD_HOST_ID": "host-1",
                "MODELYARD_WORKER_RUNTIME_DIR": str(folder),
                "MODELYARD_HEALTH_FILE": str(health),
            },
        )

        async def done() -> bool:
            assert process.poll() is None
            return host.stopped == [STRICT] and file_fault(str(health), 30.0) is None

        await eventually(done, what="the end of the container", within_s=30)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
