"""Removes the containers that ended attempts left behind: at once, or later in the background."""

import asyncio

import structlog

from modelyard.contract.messages import HostCommand
from worker.containers.error_logging import log_errors
from worker.containers.lifecycle import ContainerLifecycle

log = structlog.get_logger(__name__)

CLEANUP_S = 60.0
RETRY_S = 5.0


class Cleanup:
    """Removes containers of ended attempts, and tries again until they are gone.

    An attempt reports its outcome without waiting for its container to be gone. A container that
    could not be removed is remembered, and removal is tried again until the engine says that it
    does not exist. After a restart of the process nothing is remembered: then the container is in
    the inventory, and the dispatcher decides.
    """

    def __init__(self, containers: ContainerLifecycle, *, retry_s: float = RETRY_S) -> None:
        self._containers = containers
        self._retry_s = retry_s
        self._pending: dict[str, int] = {}
        """By job id, the generation up to which containers still have to be removed."""
        self._work_waiting = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    async def remove(self, command: HostCommand) -> None:
        """Remove the job's containers up to the command's generation; if that fails, try later."""
        if not await self._try_remove(command.job_id, command.generation):
            self.remove_later(command)

    def remove_later(self, command: HostCommand) -> None:
        """Remove them after some seconds: the engine may still be creating one."""
        job_id = command.job_id
        self._pending[job_id] = max(command.generation, self._pending.get(job_id, 0))
        self._work_waiting.set()

    async def claim(self, command: HostCommand) -> None:
        """Stop removing the command's generation: its container is about to be created again."""
        if self._pending.get(command.job_id, 0) >= command.generation:
            async with self._one_at_a_time:
                self._pending.pop(command.job_id, None)

    async def run(self) -> None:
        """Retry the pending removals until cancelled."""
        while True:
            await self._work_waiting.wait()
            await asyncio.sleep(self._retry_s)
            for job_id in tuple(self._pending):
                async with self._one_at_a_time:
                    await self._retry(job_id)
            if not self._pending:
                self._work_waiting.clear()

    async def _retry(self, job_id: str) -> None:
        up_to = self._pending.get(job_id)
        if (
            up_to is not None
            and await self._try_remove(job_id, up_to)
            and self._pending[job_id] == up_to
        ):
            del self._pending[job_id]
            log.info("cleanup.done", job_id=job_id, generation=up_to)

    async def _try_remove(self, job_id: str, up_to: int) -> bool:
        first_time = job_id not in self._pending
        async with log_errors(
            "cleanup.failed", CLEANUP_S, job_id=job_id, generation=up_to, quiet=not first_time
        ):
            await self._containers.remove_generations(job_id, up_to=up_to)
            return True
        return False
