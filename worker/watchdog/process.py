"""`python -m worker.watchdog.process`: stops containers that must not outlive their worker's lease.

A worker that is frozen, hung or killed can't stop its containers when its lease ends, and the
dispatcher may then give the same work to another host. So each worker starts this small process and
sends it every renewal of the lease through a pipe. While renewals come in time the watchdog does
nothing. After `lease_s` seconds without one it stops the containers with the label
`modelyard.lease=strict`, and waits for renewals again. The lease counts from when the worker sent
its heartbeat, by the machine's uptime, which both processes read from the same clock.

When the pipe ends the worker is gone. The watchdog stays until the lease has ended. If another
worker of the same host has renewed its own lease by then, the watchdog stops nothing: each watchdog
writes the newest renewal to a small file that all watchdogs of the host share, and reads that file
before it stops anything. So containers that a new worker has adopted survive. The watchdog exits
after it has stopped the containers, and at the latest `patience_s` seconds after the lease.

A worker that stops in good order leaves its containers running and sends `FAREWELL`: it creates no
more containers. If no worker comes back the dispatcher declares the host lost all the same, so the
watchdog stays while a strict container runs or may still be starting.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from modelyard.process.clock import uptime_s
from modelyard.process.logging import setup_logging
from modelyard.process.tasks import TaskGroup
from worker.engine.docker.runtime import DockerRuntime
from worker.engine.protocol import ContainerFacts, ContainerRuntime, RuntimeFaultError
from worker.engine.strict_containers import strict_containers
from worker.watchdog.strict_containers import stop_strict

log = structlog.get_logger(__name__)

FAREWELL = b"farewell"
"""The last line from a worker that ends in good order: it starts no more containers."""
POLL_S = 0.5
CHECK_INTERVAL_S = 5.0
"""Seconds between two checks of the containers that a worker left running after `FAREWELL`."""
ENGINE_CALL_S = 20.0
"""Seconds for one try at listing or stopping the containers."""


class Watchdog:
    """The watchdog of one worker; see this module's docstring."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        *,
        lease_s: float,
        patience_s: float,
        lease_file: Path | None,
        clock: Callable[[], float] = uptime_s,
    ) -> None:
        """`lease_file` is the file that the host's watchdogs share; None: no file is shared.

        Stopping is tried again until `patience_s` seconds after the lease.
        """
        self._runtime = runtime
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._lease_file = lease_file
        self._clock = clock
        self._renewed_at: float | None = None
        """Time of the newest renewal; None before the first, and when nothing is left to do."""
        self._worker_stopped = False
        """True once the worker has sent `FAREWELL`."""
        self._worker_gone = False
        """True once the worker has sent `FAREWELL` or the pipe has ended."""
        self._next_check_at = 0.0
        self._remaining = frozenset[str]()
        """Ids of the strict containers that the worker left running after `FAREWELL`."""
        self._checked_once = False
        self._remaining_final = False
        """True once no id is added to those; until then every running strict container counts."""
        self._pipe_read = asyncio.Event()

    async def run(self, pipe: asyncio.StreamReader) -> None:
        """Watch until the worker is gone and nothing is left to do."""
        async with TaskGroup() as tasks:
            reading = tasks.create_task(self._read(pipe))
            while not (self._worker_gone and self._renewed_at is None):
                if self._seconds_left() <= 0:
                    await self._enforce_lease()
                elif self._worker_stopped and self._clock() >= self._next_check_at:
                    await self._check_remaining()
                    continue
                self._pipe_read.clear()
                await self._wait(min(max(self._seconds_left(), 0.0), POLL_S))
            reading.cancel()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._pipe_read.wait()
        except TimeoutError:
            return

    def _seconds_left(self) -> float:
        if self._renewed_at is None:
            return POLL_S
        return self._renewed_at + self._lease_s - self._clock()

    async def _read(self, pipe: asyncio.StreamReader) -> None:
        while line := await pipe.readline():
            if line.strip() == FAREWELL:
                self._worker_stopped = self._worker_gone = True
            else:
                self._renewed_at = max(float(line), self._renewed_at or 0.0)
                self._write_lease_file(self._renewed_at)
            self._pipe_read.set()
        self._worker_gone = True
        self._pipe_read.set()

    async def _check_remaining(self) -> None:
        """Check after `FAREWELL` whether strict containers still run.

        Nothing is left to do if none runs, or if another worker has renewed its lease on this host.
        Without the shared file the latter is unknown, so then the watchdog has nothing to do
        either. If the engine does not answer, the next check asks it again.
        """
        if self._lease_file is None or self._read_lease_file() > (self._renewed_at or 0.0):
            self._renewed_at = None
            return
        found = await self._try(self._strict_containers)
        if found is not None:
            up = frozenset(facts.id for facts in found if facts.running)
            if self._remaining_final:
                self._remaining &= up
            else:
                self._remaining |= up
                # The engine may still be starting a container that the worker asked for.
                self._remaining_final = self._checked_once or len(up) == len(found)
                self._checked_once = True
            if self._remaining_final and not self._remaining:
                self._renewed_at = None
        self._next_check_at = self._clock() + CHECK_INTERVAL_S

    async def _enforce_lease(self) -> None:
        """Stop the strict containers, unless another worker has renewed its lease on this host."""
        renewed_at = self._renewed_at or 0.0
        other_renewal = self._read_lease_file()
        if other_renewal > renewed_at:
            log.info("watchdog.relieved")
            self._renewed_at = None if self._worker_gone else other_renewal
            return
        log.warning("watchdog.lease_over", lease_s=self._lease_s)
        done = await self._try(self._stop_strict)
        if done is None and self._seconds_left() > -self._patience_s:
            await asyncio.sleep(POLL_S)
        elif self._renewed_at == renewed_at:
            self._renewed_at = None

    async def _try(
        self, work: Callable[[], Awaitable[list[ContainerFacts]]]
    ) -> list[ContainerFacts] | None:
        """Return the result of `work`; if the engine fails, log that and return None."""
        try:
            async with asyncio.timeout(ENGINE_CALL_S):
                return await work()
        except (RuntimeFaultError, TimeoutError) as error:
            log.warning("watchdog.failed", error=repr(error))
            return None

    async def _strict_containers(self) -> list[ContainerFacts]:
        return await strict_containers(self._runtime)

    async def _stop_strict(self) -> list[ContainerFacts]:
        return await stop_strict(self._runtime, self._may_stop)

    def _may_stop(self, facts: ContainerFacts) -> bool:
        return not self._remaining_final or facts.id in self._remaining

    def _write_lease_file(self, renewed_at: float) -> None:
        if self._lease_file is None:
            return
        fresh = self._lease_file.with_suffix(f".{os.getpid()}")
        try:
            fresh.write_text(f"{renewed_at}\n")
            fresh.replace(self._lease_file)
        except OSError as error:
            log.warning("watchdog.no_note", error=repr(error))

    def _read_lease_file(self) -> float:
        if self._lease_file is None:
            return 0.0
        try:
            return float(self._lease_file.read_text())
        except (OSError, ValueError):
            return 0.0


async def _watch(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    pipe = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin)
    runtime = DockerRuntime(
        options.docker, host_id=options.host_id, network="modelyard", publish=True
    )
    watchdog = Watchdog(
        runtime,
        lease_s=options.lease_s,
        patience_s=options.patience_s,
        lease_file=Path(options.note) if options.note else None,
    )
    try:
        await watchdog.run(pipe)
    finally:
        await runtime.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Run until there is nothing to watch; SIGTERM ends the process without stopping containers."""
    parser = argparse.ArgumentParser(
        prog="worker.watchdog.process",
        description="Stops containers that must not outlive their worker's lease. A worker starts "
        "this process and sends it renewals on stdin.",
    )
    parser.add_argument("--docker", required=True, help="URL of the Docker Engine")
    parser.add_argument("--host-id", required=True, help="id of the worker's host")
    parser.add_argument(
        "--lease-s", required=True, type=float, help="seconds that the lease lasts after a renewal"
    )
    parser.add_argument(
        "--patience-s",
        required=True,
        type=float,
        help="seconds after the lease for which stopping is tried again",
    )
    parser.add_argument(
        "--note", default="", help="file with the newest renewal, shared by the host's watchdogs"
    )
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    options = parser.parse_args(argv)
    setup_logging(
        "watchdog", level=options.log_level, log_format=options.log_format, host_id=options.host_id
    )
    asyncio.run(_watch(options))


if __name__ == "__main__":
    main()
