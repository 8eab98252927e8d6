"""`python -m worker.watchdog.process`: ends what must not outlive a worker that could not end it.

A worker that is frozen, hung or killed can't stop its containers when its lease ends, and another
host may then be given the same work. So a worker starts this small process and tells it of each
renewal through a pipe. As long as they come in time it does nothing. When the lease has not been
renewed for `lease_s` seconds it stops the containers that are labelled `modelyard.lease=strict`,
and waits for renewals again. The lease counts from when the worker sent its sign of life, by the
machine's uptime, which both processes read alike.

When the pipe ends the worker is gone. Its watchdog stays until the lease is over, unless another
worker of the same host has renewed its own lease by then: each watchdog notes the newest renewal in
a small file that all of the host's share, and looks into it before it stops anything. So containers
that a new worker has adopted survive. After its work it ends, and in any case `patience_s` seconds
after the lease.

A worker that was told to stop leaves its containers running, and says farewell: nothing is created
any more. Its watchdog stays for no longer than something of that runs, or is about to, that is
strict, for the host is given up all the same if no worker comes back.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from modelyard.process.logging import setup_logging
from modelyard.process.tasks import TaskGroup
from worker.engine.docker.runtime import DockerRuntime
from worker.engine.protocol import (
    ContainerFacts,
    ContainerRuntime,
    NoSuchContainerError,
    RuntimeFaultError,
)
from worker.session.lease import uptime_s

log = structlog.get_logger(__name__)

FAREWELL = b"farewell"
"""The last line of a worker that ends in good order: what runs is all that there will be."""
POLL_S = 0.5
LOOK_S = 5.0
"""Seconds between two looks at what a worker has left that said farewell."""
TRY_S = 20.0
"""Seconds for one try at stopping what has to be stopped."""


class Watchdog:
    """One worker's watchdog."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        *,
        lease_s: float,
        patience_s: float,
        note: Path | None,
        clock: Callable[[], float] = uptime_s,
    ) -> None:
        """`note` is the file that the host's watchdogs share; None: there is no other.

        What can't be stopped is tried again for `patience_s` seconds.
        """
        self._runtime = runtime
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._note = note
        self._clock = clock
        self._renewed_at: float | None = None
        """None before the first renewal, and after the work is done."""
        self._farewell = False
        self._alone = False
        """True once the worker is gone."""
        self._look_at = 0.0
        self._left = frozenset[str]()
        """Ids of what a worker has left that said farewell."""
        self._looked_once = False
        self._settled = False
        """True once nothing is added to that any more; before, whatever is there counts."""
        self._news = asyncio.Event()

    async def run(self, pipe: asyncio.StreamReader) -> None:
        """Watch until the worker is gone and nothing is left to do."""
        async with TaskGroup() as tasks:
            reading = tasks.create_task(self._read(pipe))
            while not (self._alone and self._renewed_at is None):
                if self._left_s() <= 0:
                    await self._do_its_work()
                elif self._farewell and self._clock() >= self._look_at:
                    await self._look_around()
                    continue
                self._news.clear()
                await self._wait(min(max(self._left_s(), 0.0), POLL_S))
            reading.cancel()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    def _left_s(self) -> float:
        if self._renewed_at is None:
            return POLL_S
        return self._renewed_at + self._lease_s - self._clock()

    async def _read(self, pipe: asyncio.StreamReader) -> None:
        while line := await pipe.readline():
            if line.strip() == FAREWELL:
                self._farewell = self._alone = True
            else:
                self._renewed_at = max(float(line), self._renewed_at or 0.0)
                self._write_note(self._renewed_at)
            self._news.set()
        self._alone = True
        self._news.set()

    async def _look_around(self) -> None:
        """Have nothing left to do if nothing is left, or another worker has the host by now.

        Without a note that could not be told. An engine that does not answer is asked again.
        """
        if self._note is None or self._read_note() > (self._renewed_at or 0.0):
            self._renewed_at = None
            return
        found = await self._try(self._strict)
        if found is not None:
            up = frozenset(facts.id for facts in found if facts.running)
            if self._settled:
                self._left &= up
            else:
                self._left |= up
                # The engine may still be at the start of one that it was asked for.
                self._settled = self._looked_once or len(up) == len(found)
                self._looked_once = True
            if self._settled and not self._left:
                self._renewed_at = None
        self._look_at = self._clock() + LOOK_S

    async def _do_its_work(self) -> None:
        """Stop what is strict, unless another worker has the host by now."""
        renewed_at = self._renewed_at or 0.0
        elsewhere = self._read_note()
        if elsewhere > renewed_at:
            log.info("watchdog.relieved")
            self._renewed_at = None if self._alone else elsewhere
            return
        log.warning("watchdog.lease_over", lease_s=self._lease_s)
        done = await self._try(self._stop_all)
        if done is None and self._left_s() > -self._patience_s:
            await asyncio.sleep(POLL_S)
        elif self._renewed_at == renewed_at:
            self._renewed_at = None

    async def _try(
        self, work: Callable[[], Awaitable[list[ContainerFacts]]]
    ) -> list[ContainerFacts] | None:
        """Return what the work does; None, and a line in the log, if the engine fails."""
        try:
            async with asyncio.timeout(TRY_S):
                return await work()
        except (RuntimeFaultError, TimeoutError) as error:
            log.warning("watchdog.failed", error=repr(error))
            return None

    async def _strict(self) -> list[ContainerFacts]:
        """Return the containers that must not outlive the lease, also those that do not run."""
        return [
            facts
            for facts in await self._runtime.list_own()
            if facts.labels is not None and facts.labels.strict
        ]

    async def _stop_all(self) -> list[ContainerFacts]:
        found = await self._strict()
        for facts in found:
            if not facts.running or (self._settled and facts.id not in self._left):
                continue
            try:
                await self._runtime.stop(facts.id, 0.0)
            except NoSuchContainerError:
                continue
            job_id = facts.labels.job_id if facts.labels else None
            log.warning("watchdog.stopped", container_id=facts.id, job_id=job_id)
        return found

    def _write_note(self, renewed_at: float) -> None:
        if self._note is None:
            return
        fresh = self._note.with_suffix(f".{os.getpid()}")
        try:
            fresh.write_text(f"{renewed_at}\n")
            fresh.replace(self._note)
        except OSError as error:
            log.warning("watchdog.no_note", error=repr(error))

    def _read_note(self) -> float:
        if self._note is None:
            return 0.0
        try:
            return float(self._note.read_text())
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
        note=Path(options.note) if options.note else None,
    )
    try:
        await watchdog.run(pipe)
    finally:
        await runtime.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Watch until there is nothing to watch; SIGTERM ends it at once, and nothing is stopped."""
    parser = argparse.ArgumentParser(prog="worker.watchdog.process")
    parser.add_argument("--docker", required=True)
    parser.add_argument("--host-id", required=True)
    parser.add_argument("--lease-s", required=True, type=float)
    parser.add_argument("--patience-s", required=True, type=float)
    parser.add_argument("--note", default="")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    options = parser.parse_args(argv)
    setup_logging(
        "watchdog", level=options.log_level, log_format=options.log_format, host_id=options.host_id
    )
    asyncio.run(_watch(options))


if __name__ == "__main__":
    main()
