"""A watchdog that outlives its worker, because it is in another container.

The watchdog that a worker starts ends with the worker's container. This one is started beside the
worker's, shares its runtime folder, and reads from the lease file there what the worker's own
watchdogs write: when the lease was last renewed. While no worker of this host has a lease, it stops
each container with the label `modelyard.lease=strict` that runs.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from modelyard.process.clock import uptime_s
from worker.engine.protocol import ContainerRuntime, RuntimeFaultError
from worker.watchdog.strict_containers import stop_strict

log = structlog.get_logger(__name__)

POLL_S = 0.5
ROUND_S = 5.0
"""Seconds between two looks at the containers while no worker has a lease."""
ENGINE_CALL_S = 20.0


class StandingWatchdog:
    """The watchdog of one host; it lasts from one worker to the next."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        *,
        lease_s: float,
        lease_file: Path,
        on_round: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = uptime_s,
    ) -> None:
        """`on_round` is called each time the lease was found held, or the engine has answered."""
        self._runtime = runtime
        self._lease_s = lease_s
        self._lease_file = lease_file
        self._on_round = on_round
        self._clock = clock
        self._enforcing = False

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set; containers are then left as they are."""
        while not stop.is_set():
            pause_s = await self.round()
            try:
                async with asyncio.timeout(pause_s):
                    await stop.wait()
            except TimeoutError:
                continue

    async def round(self) -> float:
        """Look at the lease once, and stop what must not run; return the seconds until the next."""
        renewed_at = self._renewed_at()
        if renewed_at is None or self._clock() < renewed_at + self._lease_s:
            self._enforcing = False
            self._on_round()
            return POLL_S
        if not self._enforcing:
            log.warning("watchdog.lease_over", lease_s=self._lease_s)
            self._enforcing = True
        try:
            async with asyncio.timeout(ENGINE_CALL_S):
                await stop_strict(self._runtime)
        except (RuntimeFaultError, TimeoutError) as error:
            log.warning("watchdog.failed", error=repr(error))
            return POLL_S
        self._on_round()
        return ROUND_S

    def _renewed_at(self) -> float | None:
        """Return when the lease was last renewed; None if that is not known.

        The file may be from before the machine's last boot, which ended all containers.
        """
        try:
            renewed_at = float(self._lease_file.read_text())
        except (OSError, ValueError):
            return None
        return renewed_at if renewed_at <= self._clock() else None
