"""Daemons of the local stack: found again by their record, ended with all they started."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.local.daemon import Daemon
from deploy.local.errors import InUse, StartFailed
from deploy.local.locks import exclusive
from deploy.local.ports import LOOPBACK, free_port, is_free
from deploy.local.processes import ProcessId
from deploy.local.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ENV = dict(os.environ)
# Its main thread ends and another one goes on.
HEADLESS = (
    sys.executable,
    "-c",
    (
        "import ctypes, threading as t, time; t.Thread(target=time.sleep, args=(60,)).start(); "
        "ctypes.CDLL(None).pthread_exit(None)"
    ),
)
SLEEPER = ("sleep", "600")
# Leaves the session, as epmd does, and ignores SIGTERM.
RUNAWAY = (
    "sh",
    "-c",
    "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > runaway; sleep 600' & wait",
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("sleeper", tmp_path)
    yield daemon
    daemon.stop(grace=1)


def started(daemon: Daemon) -> ProcessId:
    daemon.spawn(SLEEPER, ENV)
    process = daemon.process
    assert process
    return process


def test_a_daemon_is_found_and_stopped_by_another_object_for_its_folder(daemon: Daemon) -> None:
    process = started(daemon)
    again = Daemon("sleeper", daemon.folder)
    assert again.process == process
    again.stop(grace=5)
    assert not process.alive
    again.stop(grace=5)


def test_a_process_with_the_same_number_is_not_taken_for_the_recorded_one(daemon: Daemon) -> None:
    process = started(daemon)
    record = daemon.folder / "sleeper.json"
    fields = json.loads(record.read_text())
    fields["process"]["started"] += 1
    record.write_text(json.dumps(fields))
    assert Daemon("sleeper", daemon.folder).process is None
    assert process.alive


def test_a_paused_daemon_has_stopped_with_all_its_threads(daemon: Daemon) -> None:
    spinning = """
import threading
for _ in range(8):
    threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()
"""
    daemon.spawn((sys.executable, "-c", spinning), ENV)
    process = daemon.process
    assert process is not None
    wait_until(lambda: not process.stopped, 10, "it runs")
    daemon.pause()
    assert process.stopped
    daemon.resume()
    wait_until(lambda: not process.stopped, 10, "it runs again")


def test_only_the_process_that_listens_on_a_port_is_found_to() -> None:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        port = server.getsockname()[1]
        ours = ProcessId.of(os.getpid())
        assert ours is not None
        assert not ours.listens_on(port)
        server.listen()
        assert ours.listens_on(port)
        parent = ProcessId.of(os.getppid())
        assert parent is not None
        assert not parent.listens_on(port)


def test_a_process_lives_for_as_long_as_one_of_its_threads(daemon: Daemon) -> None:
    """A killed server of many threads is a zombie first, and holds its port for a moment more."""
    daemon.spawn(HEADLESS, ENV)
    process = daemon.process
    assert process
    stat = Path("/proc", str(process.pid), "stat")
    wait_until(lambda: ") Z " in stat.read_text(), 5, "the end of the main thread")
    assert process.alive
    daemon.kill()
    assert not process.alive


def test_stop_ends_also_what_left_the_session_and_ignores_sigterm(daemon: Daemon) -> None:
    daemon.spawn(RUNAWAY, ENV)
    note = daemon.folder / "runaway"
    wait_until(lambda: note.exists() and note.read_text().strip() != "", 5, "the runaway")
    runaway = ProcessId.of(int(note.read_text()))
    assert runaway
    daemon.stop(grace=0.2)
    assert not runaway.alive


def test_stop_ends_a_paused_daemon_in_an_orderly_way(daemon: Daemon) -> None:
    daemon.spawn(
        ("sh", "-c", "trap 'touch orderly; exit' TERM; touch up; while :; do :; done"), ENV
    )
    wait_until((daemon.folder / "up").exists, 5, "up")
    daemon.pause()
    daemon.stop(grace=5)
    assert (daemon.folder / "orderly").exists()


def test_a_second_start_in_the_folder_is_refused_while_the_owner_lives(daemon: Daemon) -> None:
    process = started(daemon)
    with pytest.raises(InUse, match=str(process.pid)):
        Daemon("sleeper", daemon.folder).spawn(SLEEPER, ENV)
    assert process.alive


def test_a_released_daemon_belongs_to_the_background(daemon: Daemon) -> None:
    process = started(daemon)
    daemon.release()
    assert daemon.released
    with pytest.raises(InUse, match="background"):
        Daemon("sleeper", daemon.folder).spawn(SLEEPER, ENV)
    assert process.alive


def test_what_a_killed_owner_left_is_ended_by_the_next_start(tmp_path: Path) -> None:
    script = f"""
        import os, pathlib, signal
        from deploy.local.daemon import Daemon
        Daemon("sleeper", pathlib.Path({str(tmp_path)!r})).spawn({SLEEPER!r}, os.environ)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    owner = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert owner.returncode == -signal.SIGKILL
    daemon = Daemon("sleeper", tmp_path)
    left = daemon.process
    assert left
    daemon.spawn(SLEEPER, ENV)
    try:
        assert not left.alive
        assert daemon.process != left
    finally:
        daemon.stop(grace=5)


def test_an_exit_while_starting_shows_the_end_of_the_log(daemon: Daemon) -> None:
    daemon.spawn(("sh", "-c", "echo no license; exit 3"), ENV)
    with pytest.raises(StartFailed, match=re.compile("sleeper exited.*no license", re.DOTALL)):
        daemon.wait_ready(lambda: False, seconds=10)


def test_a_daemon_that_never_gets_ready_is_reported_at_the_deadline(daemon: Daemon) -> None:
    started(daemon)
    with pytest.raises(StartFailed, match=re.escape("not ready within 0.2 s")):
        daemon.wait_ready(lambda: False, seconds=0.2)


def test_a_lock_that_is_held_is_refused_after_its_patience(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock"), pytest.raises(InUse), exclusive(tmp_path / "lock", 0.1):
        pytest.fail("two holders")


def test_free_ports_can_be_bound_and_are_not_handed_out_to_clients() -> None:
    port = free_port()
    assert is_free(port)
    lowest_of_clients = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
    assert port < int(lowest_of_clients)
