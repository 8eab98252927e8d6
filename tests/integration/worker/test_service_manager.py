"""Each service tells systemd when it does its work, that it lives, and that it stops."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.local.docker_engine import DockerEngine
from deploy.local.ports import free_port
from modelyard.broker import Broker
from tests.support.dispatcher.enrolled import enrol

HOST = "notifies"
WITHIN_S = 60


class Heard:
    """The lines that a process said to its manager."""

    def __init__(self, address: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(address))
        self.socket.setblocking(False)

    async def until(self, line: str) -> list[str]:
        """Return what was said before a line."""
        before: list[str] = []
        async with asyncio.timeout(WITHIN_S):
            while (said := await self._next()) != line:
                before.append(said)
        return before

    async def _next(self) -> str:
        return (await asyncio.get_running_loop().sock_recv(self.socket, 4_096)).decode()


@asynccontextmanager
async def running(
    service: str, folder: Path, **variables: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Heard]]:
    """Start a service as systemd does; end it with SIGTERM."""
    heard = Heard(folder / "notify")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
    manager = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "300000"}
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", service, env={**clean, **manager, **variables}, stderr=log
        )
    try:
        yield process, heard
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        heard.socket.close()


async def lives_and_stops(process: asyncio.subprocess.Process, heard: Heard) -> None:
    for _ in range(3):
        await heard.until("WATCHDOG=1")
    process.send_signal(signal.SIGTERM)
    await heard.until("STOPPING=1")
    assert await process.wait() == 0


@pytest.mark.parametrize("service", ["gateway", "dispatcher"])
async def test_gateway_and_dispatcher_tell_that_they_are_ready_live_and_stop(
    service: str, amqp_url: str, mongo_url: str, tmp_path: Path
) -> None:
    variables = {
        "MODELYARD_AMQP_URL": amqp_url,
        "MODELYARD_MONGO_URL": mongo_url,
        "MODELYARD_GATEWAY_PORT": "0",
    }
    async with running(service, tmp_path, **variables) as (process, heard):
        await heard.until("READY=1")
        await lives_and_stops(process, heard)


async def test_a_dispatcher_that_waits_for_rabbitmq_lives_and_is_not_ready(
    mongo_url: str, tmp_path: Path
) -> None:
    variables = {
        "MODELYARD_AMQP_URL": f"amqp://127.0.0.1:{free_port()}",
        "MODELYARD_MONGO_URL": mongo_url,
    }
    async with running("dispatcher", tmp_path, **variables) as (process, heard):
        said = [await heard.until("WATCHDOG=1") for _ in range(20)]
        assert said == [[]] * 20
        await lives_and_stops(process, heard)


async def test_a_worker_is_ready_once_its_host_is_announced(
    engine: DockerEngine, amqp_url: str, tmp_path: Path
) -> None:
    variables = {
        "MODELYARD_AMQP_URL": amqp_url,
        "MODELYARD_HOST_ID": HOST,
        "DOCKER_HOST": engine.url,
        "MODELYARD_WORKER_RUNTIME_DIR": str(tmp_path / "run"),
    }
    async with running("worker", tmp_path, **variables) as (process, heard):
        said = [await heard.until("WATCHDOG=1") for _ in range(10)]
        assert said == [[]] * 10, "no dispatcher has declared its queues yet"
        broker = Broker(amqp_url, name="test")
        await enrol(broker, HOST)
        await heard.until("READY=1")
        await lives_and_stops(process, heard)
        await broker.close()
