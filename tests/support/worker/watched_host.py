"""A host with containers that must not outlive its lease, and others; for tests of watchdogs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.waiting import eventually
from tests.support.worker.scripted_engine import ScriptedEngine
from worker.engine.labels import ContainerLabels

LEASE_S = 0.8
LOOK_S = 1.0
"""Instead of five seconds."""
STRICT, OTHER, STOPPED = "a" * 64, "b" * 64, "c" * 64


def container(container_id: str, *, strict: bool, running: bool = True) -> dict[str, Any]:
    """Return a container as `GET /containers/json` shows it."""
    labels = ContainerLabels("host-1", "job", "operation", 1, "spec", strict=strict)
    return {
        "Id": container_id,
        "Names": [f"/{labels.name}"],
        "State": "running" if running else "exited",
        "Labels": labels.as_labels(),
    }


class WatchedHost:
    """An engine with a strict container and others, and the watchdogs that look at it."""

    def __init__(self, engine: ScriptedEngine, folder: Path) -> None:
        self.engine = engine
        self.url = f"unix://{folder / 'engine.sock'}"
        self.note = folder / "host-1.lease"
        self.processes: list[subprocess.Popen[bytes]] = []
        containers = [
            container(STRICT, strict=True),
            container(OTHER, strict=False),
            container(STOPPED, strict=True, running=False),
        ]
        self.containers = {it["Id"]: it for it in containers}
        engine.answers["GET /containers/json"] = containers
        for it in containers:
            engine.answers[f"POST /containers/{it['Id']}/stop"] = self._stop

    async def _stop(self, request: web.Request) -> web.Response:
        assert request.query["t"] == "0"
        self.ends(request.path.split("/")[-2])
        return web.Response(status=204)

    def runs(self, container_id: str) -> None:
        """Have a container that runs."""
        self.containers[container_id]["State"] = "running"

    async def looked(self, *, times: int) -> None:
        """Return once a watchdog has looked so many times."""

        async def seen() -> bool:
            return self.engine.asked.count("GET /containers/json") >= times

        await eventually(seen, what="a look")

    def ends(self, container_id: str) -> None:
        """Have a container that does not run any more."""
        self.containers[container_id]["State"] = "exited"

    @property
    def running(self) -> list[str]:
        return [id_ for id_, it in self.containers.items() if it["State"] == "running"]

    @property
    def stopped(self) -> list[str]:
        asked = (it.split("/") for it in self.engine.asked if it.endswith("/stop"))
        return [parts[2] for parts in asked]

    def start(self, lease_s: float = LEASE_S) -> subprocess.Popen[bytes]:
        command = (
            *(sys.executable, "-m", "tests.support.worker.watchdog", str(LOOK_S)),
            *("--docker", self.url),
            *("--host-id", "host-1", "--lease-s", str(lease_s)),
            *("--patience-s", "20", "--note", str(self.note)),
        )
        self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        return self.processes[-1]

    async def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
