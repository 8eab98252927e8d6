"""What an attempt leaves behind: removed now, or as soon as it can be, in nobody's way."""

import asyncio

import structlog

from modelyard.contract.messages import HostCommand
from worker.containers.best_effort import best_effort
from worker.containers.lifecycle import ContainerLifecycle

log = structlog.get_logger(__name__)

CLEANUP_S = 60.0
RETRY_S = 5.0


class Cleanup:
    """Removes containers of attempts that have ended, for as long as it takes.

    An attempt's end is reported whether or not its container is gone: what this boot could not
    remove it remembers, and tries again until the engine says that it is not there. The next boot
    knows nothing of it: there the container is in the inventory, and the dispatcher decides.
    """

    def __init__(self, containers: ContainerLifecycle, *, retry_s: float = RETRY_S) -> None:
        self._containers = containers
        self._retry_s = retry_s
        self._left: dict[str, int] = {}
        """By job: containers up to this generation are to go."""
        self._something = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    async def remove(self, command: HostCommand) -> None:
        """Remove the job's containers up to the command's generation; trouble is for later."""
        if not await self._gone(command.job_id, command.generation):
            self.remove_later(command)

    def remove_later(self, command: HostCommand) -> None:
        """Remove them some seconds from now: the engine may still be at making one."""
        job_id = command.job_id
        self._left[job_id] = max(command.generation, self._left.get(job_id, 0))
        self._something.set()

    async def claim(self, command: HostCommand) -> None:
        """Leave the command's generation alone from here on: it is about to be made anew."""
        if self._left.get(command.job_id, 0) >= command.generation:
            async with self._one_at_a_time:
                self._left.pop(command.job_id, None)

    async def run(self) -> None:
        """Try again what is left, until cancelled."""
        while True:
            await self._something.wait()
            await asyncio.sleep(self._retry_s)
            for job_id in tuple(self._left):
                async with self._one_at_a_time:
                    await self._again(job_id)
            if not self._left:
                self._something.clear()

    async def _again(self, job_id: str) -> None:
        up_to = self._left.get(job_id)
        if up_to is not None and await self._gone(job_id, up_to) and self._left[job_id] == up_to:
            del self._left[job_id]
            log.info("cleanup.done", job_id=job_id, generation=up_to)

    async def _gone(self, job_id: str, up_to: int) -> bool:
        first_time = job_id not in self._left
        async with best_effort(
            "cleanup.failed", CLEANUP_S, job_id=job_id, generation=up_to, quiet=not first_time
        ):
            await self._containers.remove_generations(job_id, up_to=up_to)
            return True
        return False
