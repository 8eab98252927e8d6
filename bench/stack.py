"""The stack that the benchmarks measure: real servers, one worker, and model servers in containers.

It has its own data in `var/bench`, which it removes at the end, and shares the engine's images with
the other local stacks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from bench.profiling.profiler import sampling
from deploy.local import engine_api
from deploy.local.caller_settings import CallerSettings
from deploy.local.images import FAST, ensure_images
from deploy.local.layout import ROOT, Given, Layout
from deploy.local.processes import ProcessId, with_descendants
from deploy.local.services import Services
from deploy.local.stack import LocalStack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from bench.profiling.profiler import Profiler
    from deploy.local.progress import Progress

HOST_ID = "bench"
HOST_LABEL = f"modelyard.host={HOST_ID}"
"""The label of every container of the stack's worker."""


class BenchStack(LocalStack):
    """A private stack whose worker has as many slots as a benchmark needs.

    `with BenchStack.started(progress, slots=8) as stack:` gives addresses in `stack.endpoints`, an
    admin key in `stack.api_key`, and the processes by service from `stack.processes()`. The gateway
    requires keys, as in production. Servers that the user provides in the environment are used.
    """

    images: Sequence[str] = (FAST,)
    """The images that `start` provides."""
    profiler: Profiler | None = None

    @classmethod
    def started(
        cls, progress: Progress, *, slots: int, images: Sequence[str] = (FAST,), root: Path = ROOT
    ) -> Self:
        """Return a stack that starts when it is entered."""
        var = root / "var"
        folders = (var / "bench", var / "docker", var / "log" / "bench", var / "datasets")
        layout = Layout(root, *folders, transient=True)
        given = Given.by(os.environ)
        settings = CallerSettings({"MODELYARD_AUTH": "keys"})
        made = cls(layout, given, host_id=HOST_ID, progress=progress, settings=settings)
        made.services = Services(layout, settings, slots=slots)
        made.images = images
        return made

    def provide_images(self, note: Callable[[str], None]) -> str:
        """Build or load only the images of this benchmark."""
        ensure_images(self.endpoints.docker_host, note, which=self.images)
        return "Images of the benchmark ready"

    def processes(self) -> dict[str, set[ProcessId]]:
        """Return the running processes by service, to be read with `bench.processes`.

        `models` are the processes in containers; `dockerd` are the engine, its shims and its port
        proxies without those. Servers that the user provided are not in it.
        """
        daemons = {
            "gateway": [self.services.gateway.daemon],
            "dispatcher": [self.services.dispatcher.daemon],
            "worker": [self.services.worker.daemon],
            "mongod": self.servers.mongodb.members,
            "rabbitmq": [self.servers.rabbitmq.daemon],
            "dockerd": [self.servers.docker.daemon],
        }
        found = {name: set().union(*(one.family() for one in of)) for name, of in daemons.items()}
        models = self._model_processes()
        found["dockerd"] -= models
        return {**found, "models": models}

    def sampling(self, load: str) -> AbstractAsyncContextManager[None]:
        """Sample gateway, dispatcher and worker inside of the block, if there is a profiler."""
        services = (self.services.gateway, self.services.dispatcher, self.services.worker)
        return sampling(self.profiler, load, services)

    def versions(self) -> dict[str, str]:
        """Return the versions of the servers that this stack has started."""
        servers = self.servers
        found = {
            "rabbitmq": servers.rabbitmq.version,
            "mongodb": servers.mongodb.version,
            "docker": engine_api.version(self.endpoints.docker_host),
        }
        return {name: version for name, version in found.items() if version}

    def _model_processes(self) -> set[ProcessId]:
        pids = engine_api.container_processes(self.endpoints.docker_host, HOST_LABEL)
        return with_descendants(one for pid in pids if (one := ProcessId.of(pid)))
