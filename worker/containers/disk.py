"""Measures regularly what containers write to the host's disk, and stops those over their limit.

Docker limits what a container writes only on some file systems, so the worker measures everywhere.
The limit is in a label of the container, so it also holds for containers that an earlier worker
created.

Each container is measured on its own, so a failure affects no other container. A container could
make its own measuring fail, so after `MISSES` failed measurements in a row it counts as over its
limit. The engine measures all volumes together or fails for all, so a failure there stops none.
"""

import asyncio
from collections.abc import Sequence

import structlog

from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.process.tasks import TaskGroup
from worker.containers.health import ModelHealth
from worker.engine.listing import list_containers
from worker.engine.protocol import (
    ContainerFacts,
    ContainerRuntime,
    NoSuchContainerError,
    RuntimeFaultError,
)

log = structlog.get_logger(__name__)

MIN_PAUSE_S = 5.0
"""The shortest pause between two rounds, in seconds."""
MAX_PAUSE_S = 60.0
"""The longest pause between two rounds, in seconds."""
PAUSE_FACTOR = 5
"""Between these bounds a pause is this many times the round before it, to spare the host's disk."""
CONCURRENCY = 4
"""Containers that are measured at the same time, so that one that hangs does not delay the rest."""
MISSES = 3
"""Failed measurements in a row after which a container is stopped."""


class DiskWatch:
    """Stops containers that have written too much, and records the cause in `ModelHealth`."""

    def __init__(self, runtime: ContainerRuntime, health: ModelHealth) -> None:
        self._runtime = runtime
        self._health = health
        self._engine_failing = False
        self._misses: dict[str, int] = {}
        """By container id, its failed measurements in a row."""
        self._growing: dict[str, ContainerFacts] = {}
        """Those that were measured last: an engine that is busy with one may not inspect it."""

    async def run(self) -> None:
        """Measure until cancelled; if the engine is away, try again in the next round."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.measure_all()
            except RuntimeFaultError as error:
                if not self._engine_failing:
                    log.warning("disk.unmeasured", reason=error.message)
                self._engine_failing = True
            else:
                self._engine_failing = False
            await asyncio.sleep(
                min(MAX_PAUSE_S, max(MIN_PAUSE_S, PAUSE_FACTOR * (loop.time() - began)))
            )

    async def measure_all(self) -> None:
        """Measure this host's running containers that could fill the disk; stop those over a limit.

        Raises `EngineUnavailableError` if there is no engine, and if volumes can't be measured.
        """
        running = [it for it in await list_containers(self._runtime) if it.running]
        running = [it if it.inspected else self._growing.get(it.id, it) for it in running]
        growing = [it for it in running if it.fills_disk and _limit(it) is not None]
        self._growing = {facts.id: facts for facts in growing}
        self._misses = {id_: n for id_, n in self._misses.items() if id_ in self._growing}
        written = await self._measure(growing)
        left = [it for it in growing if not await self._is_over(it, written.get(it.id, 0))]
        with_volumes = [it for it in left if any(mount.on_disk for mount in it.mounts)]
        if with_volumes:
            sizes = await self._runtime.volume_sizes()
            for facts in with_volumes:
                volumes = (mount.source for mount in facts.mounts if mount.on_disk)
                in_volumes = sum(sizes.get(name, 0) for name in volumes)
                await self._is_over(facts, written.get(facts.id, 0) + in_volumes)

    async def _measure(self, containers: Sequence[ContainerFacts]) -> dict[str, int]:
        """Return the measured bytes by container id; stop what failed `MISSES` times in a row."""
        turns = asyncio.Semaphore(CONCURRENCY)
        written: dict[str, int] = {}
        failed: dict[str, RuntimeFaultError] = {}

        async def measure(container_id: str) -> None:
            async with turns:
                try:
                    written[container_id] = await self._runtime.written(container_id)
                except NoSuchContainerError:
                    return
                except RuntimeFaultError as error:
                    failed[container_id] = error

        async with TaskGroup() as tasks:
            for facts in containers:
                tasks.create_task(measure(facts.id))
        for measured in written:
            self._misses.pop(measured, None)
        if failed:
            await self._runtime.ping()  # raises if the engine is away: no container is to blame
        for facts in containers:
            if facts.id in failed:
                await self._count_failure(facts, failed[facts.id])
        return written

    async def _count_failure(self, facts: ContainerFacts, error: RuntimeFaultError) -> None:
        misses = self._misses[facts.id] = self._misses.get(facts.id, 0) + 1
        log.warning(
            "disk.container_unmeasured",
            container_id=facts.id,
            job_id=_job_id(facts),
            in_a_row=misses,
            reason=error.message,
        )
        if misses >= MISSES:
            cause = ModelyardError(
                ErrorCode.DISK_QUOTA_EXCEEDED,
                f"What the container wrote to the disk could not be measured {misses} times in a "
                "row, so it counts as over its limit (`resources.disk`). Make it write fewer "
                "files.",
                limit=_limit(facts),
                failed_measurements=misses,
                last_failure=error.message,
            )
            await self._stop(facts, cause)

    async def _is_over(self, facts: ContainerFacts, written: int) -> bool:
        """Return whether a container is over its limit; if so, stop it."""
        limit = _limit(facts)
        if limit is None or written <= limit:
            return False
        log.warning(
            "disk.exceeded",
            container_id=facts.id,
            job_id=_job_id(facts),
            bytes=written,
            limit=limit,
        )
        cause = ModelyardError(
            ErrorCode.DISK_QUOTA_EXCEEDED,
            f"The container wrote {size_text(written)} to the disk, which is more than its limit "
            f"of {size_text(limit)} (`resources.disk`) allows.",
            limit=limit,
            written=written,
        )
        await self._stop(facts, cause)
        return True

    async def _stop(self, facts: ContainerFacts, cause: ModelyardError) -> None:
        # Record the cause first: an attempt that sees the container exit reads it.
        self._health.stop_causes[facts.id] = cause.info()
        try:
            await self._runtime.stop(facts.id, 0.0)
        except NoSuchContainerError:
            return
        except RuntimeFaultError as error:
            log.warning("disk.not_ended", container_id=facts.id, reason=error.message)


def _limit(facts: ContainerFacts) -> int | None:
    return facts.labels.disk if facts.labels else None


def _job_id(facts: ContainerFacts) -> str | None:
    return facts.labels.job_id if facts.labels else None
