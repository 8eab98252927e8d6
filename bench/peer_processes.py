"""A peer's processes: workers, and the client that submits to them and measures."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.local.daemon import Daemon
from deploy.local.errors import StackError
from deploy.local.layout import ROOT
from deploy.local.processes import ProcessId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peers.settings import PeerSettings
    from deploy.local.layout import Layout

PYTHON = ROOT / "var" / "bench-venv" / "bin" / "python"
"""The environment that `make bench` makes for the peers."""
PROCESSES = 2
"""Worker processes of each peer."""

_WORKERS = {
    "celery": (
        *("celery", "--quiet", "-A", "bench.peers.celery_app", "worker", "--pool", "prefork"),
        *("--concurrency", str(PROCESSES), "--loglevel", "warning"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    "taskiq": (
        *("taskiq", "worker", "bench.peers.taskiq_app:broker", "--workers", str(PROCESSES)),
        *("--ack-type", "when_executed", "--log-level", "WARNING"),
    ),
}
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer."""

    name: str
    workers: Daemon
    client: asyncio.subprocess.Process
    _asking: asyncio.Lock

    def processes(self) -> dict[str, set[ProcessId]]:
        """Return its processes by service; the client is the load generator."""
        client = ProcessId.of(self.client.pid)
        return {self.name: self.workers.family(), "load generator": {client} if client else set()}

    async def throughput(self, operations: int) -> float:
        """Return the seconds that so many operations take, from first publish to last end."""
        return float((await self._ask("throughput", operations))["seconds"])

    async def one_at_a_time(self, operations: int) -> list[float]:
        """Return the seconds that each operation takes, the next one after its end."""
        return list((await self._ask("one_at_a_time", operations))["latencies_s"])

    async def _ask(self, what: str, operations: int) -> dict[str, Any]:
        stdin, stdout = self.client.stdin, self.client.stdout
        if stdin is None or stdout is None:
            raise StackError(f"The client of {self.name} has no pipes.")
        command = {"what": what, "operations": operations}
        async with self._asking:
            stdin.write(json.dumps(command).encode() + b"\n")
            await stdin.drain()
            line = await stdout.readline()
        if not line:
            raise StackError(f"The client of {self.name} ended:\n{self.workers.log_end()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def running_peer(name: str, settings: PeerSettings, layout: Layout) -> AsyncIterator[Peer]:
    """Start workers and client of a peer; stop them at the end.

    Raises `StackError` if the peers' environment is missing.
    """
    if not PYTHON.exists():
        raise StackError(f"{PYTHON} is missing; `make bench` makes it.")
    environment = {**os.environ, **settings.variables()}
    workers = Daemon(name, layout.data / "peers", log=layout.logs / f"{name}.log")
    workers.spawn([PYTHON, "-m", *_WORKERS[name]], environment, cwd=ROOT)
    try:
        client = await asyncio.create_subprocess_exec(
            *(PYTHON, "-m", "bench.peers.client", name),
            env=environment,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        try:
            yield Peer(name, workers, client, asyncio.Lock())
        finally:
            if client.stdin is not None:
                client.stdin.close()
            await client.wait()
    finally:
        workers.stop(_STOP_S)
