"""Says why containers do not run, as far as this worker knows, and keeps the ends of their logs."""

import asyncio
from collections.abc import Iterable, Sequence

from modelyard.contract.deaths import death_of
from modelyard.contract.errors import ErrorInfo
from modelyard.process.tasks import TaskGroup
from worker.containers.error_logging import log_errors
from worker.containers.health import ModelHealth
from worker.engine.protocol import ContainerFacts, ContainerRuntime

LOG_S = 5.0
"""Seconds for reading the ends of the logs of all containers that were found dead at once."""
LOG_LINES = 20
LOG_CHARS = 2_048
LOGS_AT_ONCE = 8
"""Logs that are read at the same time."""


async def log_tail(runtime: ContainerRuntime, container_id: str) -> str:
    """Return the end of a container's log, at most `LOG_CHARS` characters."""
    return (await runtime.log_tail(container_id, lines=LOG_LINES))[-LOG_CHARS:]


class ContainerDeaths:
    """The causes of death of this host's containers."""

    def __init__(self, runtime: ContainerRuntime, health: ModelHealth) -> None:
        self._runtime = runtime
        self._health = health

    async def causes(self, containers: Iterable[ContainerFacts]) -> dict[str, ErrorInfo]:
        """Return why these containers died, by container id, the death that was found last first.

        Leaves out those that run, those that never started, and those that an UNLOAD stopped. The
        log of each is read once; a cause has no `log_tail` if that failed. Raises no error.
        """
        dead: dict[str, ContainerFacts] = {}
        for facts in containers:
            if facts.running:
                self._health.log_tails.pop(facts.id, None)  # somebody has started it again
            elif self._died(facts):
                dead[facts.id] = facts
        await self._read([one for one in dead if one not in self._health.log_tails])
        found_last_first = reversed(tuple(self._health.log_tails.items()))
        return {one: self._cause(dead[one], tail) for one, tail in found_last_first if one in dead}

    def _died(self, facts: ContainerFacts) -> bool:
        if not facts.ever_started:
            return False
        return facts.id in self._health.stop_causes or not self._health.known_unloaded(facts.id)

    async def _read(self, container_ids: Sequence[str]) -> None:
        turns = asyncio.Semaphore(LOGS_AT_ONCE)

        async def read(container_id: str) -> None:
            tail = ""
            async with log_errors("container.no_log", LOG_S, container_id=container_id), turns:
                tail = await log_tail(self._runtime, container_id)
            self._health.log_tails[container_id] = tail

        async with TaskGroup() as tasks:
            for container_id in container_ids:
                tasks.create_task(read(container_id))

    def _cause(self, facts: ContainerFacts, tail: str) -> ErrorInfo:
        cause = self._health.stop_causes.get(facts.id)
        if cause is None:
            cause = death_of(facts.exit_code, oom_killed=facts.oom_killed)
        detail = {**cause.detail, "exit_code": facts.exit_code}
        return cause.model_copy(update={"detail": detail | ({"log_tail": tail} if tail else {})})
