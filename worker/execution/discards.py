"""Removes containers that the dispatcher wants discarded, after checking once more what they are.

It also finishes the removal of containers in state `dead`: someone ordered it, and it did not end.
"""

from collections.abc import Coroutine
from typing import TYPE_CHECKING

import structlog

from modelyard.contract.messages import DiscardContainer
from modelyard.process.tasks import TaskGroup
from worker.attempts.job_locks import JobLocks
from worker.attempts.registry import AttemptRegistry
from worker.containers.error_logging import log_errors
from worker.containers.lifecycle import ContainerLifecycle

if TYPE_CHECKING:
    import asyncio

log = structlog.get_logger(__name__)

GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL; the ModelSpec, which would give its own, is not known."""
DISCARD_S = 90.0
"""Seconds that one discard may take; the dispatcher asks again while the container exists."""


class Discards:
    """Discards each container in a task of its own, one task a container at a time."""

    def __init__(
        self,
        containers: ContainerLifecycle,
        registry: AttemptRegistry,
        locks: JobLocks,
        tasks: TaskGroup,
    ) -> None:
        self._containers = containers
        self._registry = registry
        self._locks = locks
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stopped = False

    def begin(self, discard: DiscardContainer) -> None:
        """Start a task that discards the container, unless one runs already."""
        if self._may_begin(discard.container_id):
            self._begin(discard.container_id, self._discard(discard))

    def finish(self, container_id: str, job_id: str) -> None:
        """Start a task that removes a dead container, unless one runs already."""
        if self._may_begin(container_id):
            self._begin(container_id, self._finish(container_id, job_id))

    def _may_begin(self, container_id: str) -> bool:
        return not self._stopped and container_id not in self._running

    def _begin(self, container_id: str, work: Coroutine[None, None, None]) -> None:
        task = self._tasks.create_task(work)
        self._running[container_id] = task
        task.add_done_callback(lambda _: self._running.pop(container_id, None))

    def stop(self) -> None:
        """Cancel the running tasks and begin no others; their containers stay as they are."""
        self._stopped = True
        for task in tuple(self._running.values()):
            task.cancel()

    async def _discard(self, discard: DiscardContainer) -> None:
        logger = log.bind(
            container_id=discard.container_id,
            job_id=discard.job_id,
            generation=discard.generation,
        )
        # Holds the job's lock alone, so that running attempts on the job end first.
        async with (
            self._locks.hold(discard.job_id),
            log_errors("discard.failed", DISCARD_S, container_id=discard.container_id),
        ):
            if self._registry.has_open_attempt(discard.job_id, discard.generation):
                logger.warning("discard.refused", reason="an attempt on its job is open")
            elif await self._containers.discard(discard, grace_s=GRACE_S):
                logger.info("discard.done")
            else:
                logger.warning("discard.refused", reason="its labels do not match the request")

    async def _finish(self, container_id: str, job_id: str) -> None:
        """Remove a dead container; no attempt works with one, so no job lock is needed."""
        async with log_errors(
            "removal.not_finished", DISCARD_S, container_id=container_id, job_id=job_id
        ):
            await self._containers.finish_removal(container_id)
            log.info("removal.finished", container_id=container_id, job_id=job_id)
