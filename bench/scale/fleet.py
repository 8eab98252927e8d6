"""A process that runs many simulated hosts, and what it tells the benchmark about itself."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import uvloop

from bench.scale.host import run_host
from bench.scale.shared_broker import SharedBroker
from deploy.local.errors import StackError
from modelyard.contract.topology import HEARTBEAT_INTERVAL_S
from modelyard.process.garbage import collect_rarely
from modelyard.process.logging import setup_logging
from modelyard.process.tasks import TaskGroup
from worker.attempts.journal import AttemptJournal
from worker.model_server.client import ModelServer
from worker.model_server.http_exchange import BoundedTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ctypes import c_double, c_longlong
    from multiprocessing.process import BaseProcess

STOP_S = 10.0
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Gauges:
    """Figures in memory that the fleet's process writes and the benchmark reads."""

    commands: c_longlong
    """Messages that came through the command queues of all hosts."""
    last_command: c_double
    """When the last of them came, by `time.monotonic`, which all processes of a machine share."""
    first_command: c_double
    """When the first one came after the benchmark had set this to 0."""

    @classmethod
    def new(cls) -> Gauges:
        """Return gauges that processes can share."""
        return cls(*(_SPAWN.RawValue(kind, 0) for kind in ("q", "d", "d")))

    def count_command(self) -> None:
        """Note that a command came."""
        now = time.monotonic()
        self.commands.value += 1
        self.last_command.value = now
        if not self.first_command.value:
            self.first_command.value = now


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The hosts to simulate; together they have `slots` slots, as equally many each as can be."""

    amqp_url: str
    hosts: int
    slots: int

    def slots_by_host(self) -> dict[str, int]:
        """Return the slots of each host by its id."""
        each, rest = divmod(self.slots, self.hosts)
        return {f"sim-{number:05}": each + (number < rest) for number in range(self.hosts)}


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running fleet."""

    plan: FleetPlan
    gauges: Gauges
    process: BaseProcess

    def check(self) -> None:
        """Raise `StackError` if its process has ended."""
        if not self.process.is_alive():
            message = f"The simulated hosts ended with exit code {self.process.exitcode}."
            raise StackError(message)


@contextmanager
def running_fleet(plan: FleetPlan) -> Iterator[Fleet]:
    """Run a fleet in a process of its own; its hosts come online within seconds."""
    gauges = Gauges.new()
    process = _SPAWN.Process(target=_run_process, args=(plan, gauges), name="fleet", daemon=True)
    process.start()
    try:
        yield Fleet(plan, gauges, process)
    finally:
        process.terminate()
        process.join(STOP_S)
        process.kill()


def _run_process(plan: FleetPlan, gauges: Gauges) -> None:
    setup_logging("fleet", level="error")
    uvloop.run(_run(plan, gauges))


async def _run(plan: FleetPlan, gauges: Gauges) -> None:
    broker = SharedBroker(plan.amqp_url, name="fleet", on_command=gauges.count_command)
    server = ModelServer(BoundedTransport())
    with TemporaryDirectory() as folder:
        async with TaskGroup() as tasks:
            for host_id, slots in plan.slots_by_host().items():
                journal = AttemptJournal(Path(folder) / f"{host_id}.attempts")
                tasks.create_task(run_host(broker, server, journal, host_id, slots=slots))
                # Spreads the heartbeats evenly over their interval.
                await asyncio.sleep(HEARTBEAT_INTERVAL_S / plan.hosts)
            collect_rarely()  # as each worker does
