"""What a process tells systemd, heard on a real socket."""

import asyncio
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.process.service_manager import ServiceManager
from modelyard.process.settings import ServiceManagerSettings


class Manager:
    """Hears what a process says."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    async def hear(self) -> str:
        async with asyncio.timeout(10):
            return (await asyncio.get_running_loop().sock_recv(self.socket, 4_096)).decode()

    @property
    def silent(self) -> bool:
        try:
            self.socket.recv(4_096)
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


async def test_the_manager_of_the_environment_hears_of_readiness_life_and_end(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    told = ServiceManagerSettings().manager()
    told.ready()
    assert await manager.hear() == "READY=1"
    with told.watched():
        assert [await manager.hear() for _ in range(3)] == ["WATCHDOG=1"] * 3
    while not manager.silent:
        pass
    told.stopping()
    assert await manager.hear() == "STOPPING=1"


async def test_a_blocked_loop_says_nothing_and_goes_on_once_it_is_free(
    manager: Manager, tmp_path: Path
) -> None:
    with ServiceManager(str(tmp_path / "notify"), watchdog_s=0.03).watched():
        assert await manager.hear() == "WATCHDOG=1"
        while not manager.silent:
            pass
        # All of this runs without giving the loop its turn; a timer of the kernel tells the time.
        waiting = socket.socketpair()
        waiting[0].settimeout(0.1)
        with pytest.raises(TimeoutError):
            waiting[0].recv(1)
        for one in waiting:
            one.close()
        assert manager.silent
        assert await manager.hear() == "WATCHDOG=1"


async def test_a_watchdog_that_is_meant_for_another_process_is_not_served(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with ServiceManagerSettings().manager().watched():
        await asyncio.sleep(0)
        assert manager.silent


async def test_an_abstract_socket_is_heard_too() -> None:
    name = f"modelyard-{uuid.uuid4().hex}"
    abstract = Manager(f"\0{name}")
    ServiceManager(f"@{name}").ready()
    assert await abstract.hear() == "READY=1"
    abstract.socket.close()


def test_without_a_manager_and_without_its_socket_nothing_happens(tmp_path: Path) -> None:
    ServiceManagerSettings().manager().ready()
    ServiceManager(str(tmp_path / "absent")).ready()
