"""Containers that nobody owns, removed on the dispatcher's word, and only after a second look.

Also those that are dead: their removal was on somebody's word, and has not ended.
"""

from collections.abc import Coroutine
from typing import TYPE_CHECKING

import structlog

from modelyard.contract.messages import DiscardContainer
from modelyard.process.tasks import TaskGroup
from worker.attempts.job_locks import JobLocks
from worker.attempts.registry import AttemptRegistry
from worker.containers.best_effort import best_effort
from worker.containers.lifecycle import ContainerLifecycle

if TYPE_CHECKING:
    import asyncio

log = structlog.get_logger(__name__)

GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL; no ModelSpec is known that would say."""
DISCARD_S = 90.0
"""Seconds that one may take; the dispatcher asks again if it is still there."""


class Discards:
    """Discards each container in a task of its own, once at a time."""

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

    def begin(self, discard: DiscardContainer) -> None:
        """Discard a container soon, unless that is under way."""
        if discard.container_id not in self._running:
            self._begin(discard.container_id, self._discard(discard))

    def finish(self, container_id: str, job_id: str) -> None:
        """Remove a dead container soon, unless that is under way."""
        if container_id not in self._running:
            self._begin(container_id, self._finish(container_id, job_id))

    def _begin(self, container_id: str, work: Coroutine[None, None, None]) -> None:
        task = self._tasks.create_task(work)
        self._running[container_id] = task
        task.add_done_callback(lambda _: self._running.pop(container_id, None))

    def stop(self) -> None:
        """Leave what is under way as it is."""
        for task in tuple(self._running.values()):
            task.cancel()

    async def _discard(self, discard: DiscardContainer) -> None:
        told = log.bind(
            container_id=discard.container_id,
            job_id=discard.job_id,
            generation=discard.generation,
        )
        # Alone with the job: what runs in the container ends first.
        async with (
            self._locks.hold(discard.job_id),
            best_effort("discard.failed", DISCARD_S, container_id=discard.container_id),
        ):
            if self._registry.works_on(discard.job_id, discard.generation):
                told.warning("discard.refused", reason="its job is worked on")
            elif await self._containers.discard(discard, grace_s=GRACE_S):
                told.info("discard.done")
            else:
                told.warning("discard.refused", reason="it is not what it should be")

    async def _finish(self, container_id: str, job_id: str) -> None:
        """Not alone with the job: a dead container is not what anybody works with."""
        async with best_effort(
            "removal.not_finished", DISCARD_S, container_id=container_id, job_id=job_id
        ):
            await self._containers.finish_removal(container_id)
            log.info("removal.finished", container_id=container_id, job_id=job_id)
