"""The watchdog as a real process: when it acts, when it does not, and when it ends."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from modelyard.process.clock import uptime_s
from tests.support.waiting import eventually
from tests.support.worker.scripted_engine import scripted_engine
from tests.support.worker.watched_host import (
    OTHER,
    STOPPED,
    STRICT,
    WatchedHost,
)
from worker.watchdog.client import WatchdogClient, shared_lease_file
from worker.watchdog.process import FAREWELL


def say(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line + b"\n")
    process.stdin.flush()


def renew(process: subprocess.Popen[bytes]) -> float:
    renewed_at = uptime_s()
    say(process, str(renewed_at).encode())
    return renewed_at


def close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


async def code_of(process: subprocess.Popen[bytes]) -> int:
    async def ended() -> str | None:
        code = process.poll()
        return None if code is None else str(code)

    return int(await eventually(ended, what="the end of the watchdog"))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[WatchedHost]:
    async with asyncio.timeout(60), scripted_engine(tmp_path) as (engine, _):
        made = WatchedHost(engine, tmp_path)
        try:
            yield made
        finally:
            await made.end()


async def noted(host: WatchedHost, renewed_at: float) -> None:
    """Return once a watchdog has taken a renewal."""

    async def there() -> bool:
        return host.note.exists() and float(host.note.read_text()) >= renewed_at

    await eventually(there, what="the note of a renewal")


async def renewed(host: WatchedHost, process: subprocess.Popen[bytes]) -> None:
    """Renew the lease of a watchdog that is up: the lease is as long as it says."""
    await noted(host, renew(process))
    renew(process)


async def acted(host: WatchedHost) -> None:
    async def stopped() -> bool:
        return bool(host.stopped)

    await eventually(stopped, what="the work of the watchdog")


async def test_what_is_strict_is_stopped_when_the_renewals_stay_out(host: WatchedHost) -> None:
    process = host.start()
    renew(process)
    await acted(host)
    assert host.stopped == [STRICT]
    assert process.poll() is None  # the worker may come back
    host.runs(STRICT)
    renew(process)

    async def twice() -> bool:
        return host.stopped == [STRICT, STRICT]

    await eventually(twice)
    close(process)
    assert await code_of(process) == 0


@pytest.mark.slow
async def test_as_long_as_renewals_come_nothing_is_stopped(host: WatchedHost) -> None:
    process = host.start(lease_s=2.0)
    ends_at = uptime_s() + 4.0
    while uptime_s() < ends_at:
        renew(process)
        await asyncio.sleep(0.1)  # the pace of renewals
    assert host.stopped == []
    host.ends(STRICT)
    say(process, FAREWELL)
    assert await code_of(process) == 0
    assert host.stopped == []


@pytest.mark.slow
async def test_what_a_worker_leaves_that_said_farewell_does_not_outlive_its_lease(
    host: WatchedHost,
) -> None:
    process = host.start(lease_s=2.0)
    renew(process)
    say(process, FAREWELL)
    assert await code_of(process) == 0
    assert host.stopped == [STRICT]


@pytest.mark.slow
async def test_after_a_farewell_it_stays_for_no_longer_than_something_strict_runs(
    host: WatchedHost,
) -> None:
    process = host.start(lease_s=60.0)
    renew(process)
    say(process, FAREWELL)
    await host.looked(times=1)
    assert process.poll() is None
    host.ends(STRICT)
    assert await code_of(process) == 0
    assert host.stopped == []


@pytest.mark.slow
async def test_what_a_new_worker_makes_is_not_what_the_old_one_left(host: WatchedHost) -> None:
    host.ends(STOPPED)
    process = host.start(lease_s=4.0)
    await renewed(host, process)
    say(process, FAREWELL)
    await host.looked(times=2)
    host.runs(STOPPED)
    assert await code_of(process) == 0
    assert host.stopped == [STRICT]


@pytest.mark.slow
async def test_what_the_engine_starts_after_the_farewell_is_left_as_well(host: WatchedHost) -> None:
    host.ends(STRICT)
    process = host.start(lease_s=4.0)
    await renewed(host, process)
    say(process, FAREWELL)
    await host.looked(times=1)
    host.runs(STOPPED)
    assert await code_of(process) == 0
    assert host.stopped == [STOPPED]


async def test_before_the_first_renewal_there_is_nothing_to_do(host: WatchedHost) -> None:
    process = host.start()
    close(process)
    assert await code_of(process) == 0
    assert host.engine.asked == []


async def test_when_the_worker_is_gone_it_stays_until_the_lease_is_over(host: WatchedHost) -> None:
    process = host.start()
    renew(process)
    close(process)
    assert await code_of(process) == 0
    assert host.stopped == [STRICT]


@pytest.mark.slow
async def test_a_new_worker_relieves_the_watchdog_of_the_one_that_was_killed(
    host: WatchedHost,
) -> None:
    old, new = host.start(lease_s=2.0), host.start(lease_s=30.0)
    await noted(host, renew(new))
    await noted(host, renew(old))
    close(old)
    renew(new)
    assert await code_of(old) == 0
    assert host.stopped == []
    assert new.poll() is None


async def test_a_new_worker_that_never_gets_a_lease_relieves_nobody(host: WatchedHost) -> None:
    old = host.start()
    host.start()
    renew(old)
    close(old)
    assert await code_of(old) == 0
    assert host.stopped == [STRICT]


async def test_an_engine_that_does_not_answer_is_asked_again(host: WatchedHost) -> None:
    listed = host.engine.answers["GET /containers/json"]
    host.engine.answers["GET /containers/json"] = (500, "no")
    process = host.start()
    renew(process)
    close(process)

    async def tried() -> bool:
        return host.engine.asked.count("GET /containers/json") >= 2

    await eventually(tried)
    host.engine.answers["GET /containers/json"] = listed
    assert await code_of(process) == 0
    assert host.stopped == [STRICT]


async def test_a_container_that_the_engine_can_not_stop_keeps_no_other_running(
    host: WatchedHost,
) -> None:
    host.runs(STOPPED)  # another strict one, behind it in the list

    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    host.engine.answers[f"POST /containers/{STRICT}/stop"] = hang
    process = host.start()
    renew(process)
    close(process)

    async def the_others_are() -> bool:
        return host.running == [STRICT, OTHER]

    await eventually(the_others_are, what="the end of the other one")
    assert process.poll() is None


async def test_a_signal_ends_it_at_once_and_nothing_is_stopped(host: WatchedHost) -> None:
    process = host.start(lease_s=30.0)
    await noted(host, renew(process))
    process.terminate()
    assert await code_of(process) == -signal.SIGTERM
    assert host.stopped == []


async def test_a_watchdog_that_died_is_started_again_with_the_next_renewal(
    host: WatchedHost,
) -> None:
    watchdog = WatchdogClient(host.url, host_id="host-1", lease_file=host.note, lease_s=30.0)
    watchdog.renewed(uptime_s())
    first = watchdog.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    # Until the client looks at it the process is a zombie, which this leaves it.
    await asyncio.to_thread(os.waitid, os.P_PID, first, os.WEXITED | os.WNOWAIT)
    watchdog.renewed(uptime_s())
    second = watchdog.pid
    assert second is not None
    assert second != first
    watchdog.announce_shutdown()
    os.kill(second, signal.SIGKILL)  # it would stay, as a strict container runs
    watchdog.close()
    assert watchdog.pid is None


async def test_a_watchdog_that_does_not_read_holds_nobody_up(host: WatchedHost) -> None:
    watchdog = WatchdogClient(host.url, host_id="host-1", lease_file=None, lease_s=30.0)
    watchdog.renewed(uptime_s())
    pid = watchdog.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = uptime_s()
    for _ in range(20_000):
        watchdog.renewed(began)
    assert uptime_s() - began < 10
    os.kill(pid, signal.SIGKILL)
    watchdog.close()


def test_a_watchdog_that_can_not_be_started_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    watchdog = WatchdogClient("unix:///nowhere", host_id="host-1", lease_file=None)
    watchdog.renewed(uptime_s())
    assert watchdog.pid is None
    watchdog.announce_shutdown()
    watchdog.close()


def test_the_shared_note_lies_where_only_we_may_write(tmp_path: Path) -> None:
    note = shared_lease_file(tmp_path / "own", "h", "unix:///a")
    assert note is not None
    assert note.parent == tmp_path / "own"
    assert note == shared_lease_file(tmp_path / "own", "h", "unix:///a")
    assert note != shared_lease_file(tmp_path / "own", "h", "unix:///b")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "file").touch()
    for name in ("open", "link", "file"):
        assert shared_lease_file(tmp_path / name, "h", "unix:///a") is None
