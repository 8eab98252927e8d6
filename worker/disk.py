"""Containers that write to the host's disk, measured again and again and ended over their limit.

Docker bounds what a container writes only on some file systems, so it is watched everywhere. The
limit is written on the container as a label: it holds for what an earlier worker has made too.
"""

import asyncio
from collections.abc import Sequence

import structlog

from worker.health import Health
from worker.runtime import (
    ContainerFacts,
    ContainerRuntime,
    NoSuchContainerError,
    RuntimeFaultError,
)

log = structlog.get_logger(__name__)

LOOK_S = 5.0
"""Seconds between two looks."""
SHARE = 5
"""A look that takes long is followed by a rest of so many times that: it costs the host's disk."""
REST_S = 60.0
"""The longest rest."""


class DiskWatch:
    """Ends what has written too much; why is noted for whoever finds it dead."""

    def __init__(self, runtime: ContainerRuntime, health: Health) -> None:
        self._runtime = runtime
        self._health = health
        self._silent = False

    async def run(self) -> None:
        """Look until cancelled; an engine that is away is asked again."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.look()
            except RuntimeFaultError as error:
                if not self._silent:
                    log.warning("disk.unmeasured", reason=error.message)
                self._silent = True
            else:
                self._silent = False
            await asyncio.sleep(min(REST_S, max(LOOK_S, SHARE * (loop.time() - began))))

    async def look(self) -> None:
        """Measure all own containers that run and could fill the disk."""
        listed = await self._runtime.list_own()
        growing = [it for it in listed if it.running and it.fills_disk and _limit(it) is not None]
        if growing:
            await self._judge(growing, await self._runtime.disk_used(growing))

    async def _judge(self, containers: Sequence[ContainerFacts], used: dict[str, int]) -> None:
        for facts in containers:
            limit, written = _limit(facts), used.get(facts.id, 0)
            if limit is None or written <= limit:
                continue
            job_id = facts.labels.job_id if facts.labels else None
            log.warning(
                "disk.exceeded", container_id=facts.id, job_id=job_id, bytes=written, limit=limit
            )
            # Noted first: whoever waits for its end wants to know why.
            self._health.over_disk.add(facts.id)
            try:
                await self._runtime.stop(facts.id, 0.0)
            except NoSuchContainerError:
                continue


def _limit(facts: ContainerFacts) -> int | None:
    return facts.labels.disk if facts.labels else None
