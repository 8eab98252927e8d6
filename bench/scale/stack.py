"""The servers and dispatchers that `make bench-scale` measures: no gateway, no real worker."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from bench.profiling.profiler import sampling
from deploy.local import signals
from deploy.local.layout import ROOT, Layout
from deploy.local.locks import exclusive
from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import RabbitMQ
from deploy.local.services import Service

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from bench.profiling.profiler import Profiler
    from deploy.local.processes import ProcessId

CACHE_GB = 2.0
"""MongoDB's cache: a million waiting operations with their indexes fit, as on a real server."""
ACTIVE, STANDBY = "dispatcher", "standby"
READY = b"dispatcher.ready"
"""What a dispatcher logs when it has begun."""


class ScaleStack:
    """A private RabbitMQ and MongoDB, empty at the start, and up to two dispatchers on them."""

    def __init__(self, profiler: Profiler | None = None, root: Path = ROOT) -> None:
        self._profiler = profiler
        var = root / "var"
        logs = var / "log" / "bench-scale"
        self._layout = Layout(
            root, var / "bench-scale", var / "docker", logs, var / "datasets", transient=True
        )
        data = self._layout.data
        self.rabbitmq = RabbitMQ(data / "rabbitmq", logs=logs)
        self.mongodb = MongoDB(data / "mongodb", logs=logs, cache_gb=CACHE_GB)
        self.dispatchers = {
            name: Service("dispatcher", root=root, folder=data / "services", logs=logs, name=name)
            for name in (ACTIVE, STANDBY)
        }
        self._logged = dict.fromkeys(self.dispatchers, 0)
        """Bytes that were in the log of each dispatcher before it was started last."""
        self._exits = ExitStack()

    def start_dispatcher(self, name: str = ACTIVE) -> None:
        """Start a dispatcher, without waiting for it."""
        log = self.dispatchers[name].daemon.log
        self._logged[name] = log.stat().st_size if log.exists() else 0
        self.dispatchers[name].launch(
            {
                "MODELYARD_AMQP_URL": self.rabbitmq.url,
                "MODELYARD_MONGO_URL": self.mongodb.url,
            }
        )

    def is_ready(self, name: str = ACTIVE) -> bool:
        """Tell whether a dispatcher consumes, or stands by; raises `StartFailed` if it ended.

        RabbitMQ does not count the consumer of a dispatcher that stands by. So its log is read.
        """
        daemon = self.dispatchers[name].daemon
        daemon.check()
        with daemon.log.open("rb") as log:
            log.seek(self._logged[name])
            return READY in log.read()

    def stop_dispatcher(self, name: str = ACTIVE) -> None:
        """Stop a dispatcher in an orderly way."""
        self.dispatchers[name].stop()

    def processes(self) -> dict[str, set[ProcessId]]:
        """Return the running processes by service, to be read with `bench.processes`."""
        daemons = {
            **{name: [one.daemon] for name, one in self.dispatchers.items()},
            "mongod": self.mongodb.members,
            "rabbitmq": [self.rabbitmq.daemon],
        }
        found = {name: set().union(*(one.family() for one in of)) for name, of in daemons.items()}
        return {name: processes for name, processes in found.items() if processes}

    def sampling(self, load: str) -> AbstractAsyncContextManager[None]:
        """Sample the dispatchers inside of the block, if there is a profiler."""
        return sampling(self._profiler, load, self.dispatchers.values())

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.enter_context(exclusive(self._layout.data.with_suffix(".lock"), seconds=0))
            exits.enter_context(signals.raised())
            exits.callback(self._stop)
            self._forget()
            self.rabbitmq.launch()
            self.mongodb.start()
            self.rabbitmq.wait_ready()
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exits.close()

    def _stop(self) -> None:
        with signals.ignored():
            self._forget()

    def _forget(self) -> None:
        """Stop what runs, also what a killed command has left, and remove its data."""
        for one in self.dispatchers.values():
            one.stop()
        self.rabbitmq.stop()
        self.mongodb.stop()
        shutil.rmtree(self._layout.data, ignore_errors=True)
