"""A container engine that only remembers: what a simulated host's worker finds on it."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

from modelyard.contract.messages import EngineFacts
from worker.engine.labels import ContainerLabels, container_name
from worker.engine.protocol import ContainerFacts, NoSuchContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.contract.messages import HostCommand


class SimulatedEngine:
    """The part of `ContainerRuntime` that a worker calls outside of its verbs.

    The verbs of a simulated host (`SimulatedVerbs`) keep it up to date. Containers have no address,
    so that no model server is asked.
    """

    def __init__(self, host_id: str) -> None:
        self._host_id = host_id
        self._containers: dict[str, ContainerFacts] = {}
        """By job."""

    async def ping(self) -> None:
        """Answer."""

    async def facts(self) -> EngineFacts:
        """Describe an engine."""
        return EngineFacts(version="20.10", api_version="1.41")

    async def ensure_network(self) -> None:
        """Do nothing: there are no containers that would use it."""

    async def list_uninspected(self) -> list[ContainerFacts]:
        """Return all containers."""
        return list(self._containers.values())

    async def inspect(self, ref: str) -> ContainerFacts:
        """Return the facts of a container by its id."""
        for one in self._containers.values():
            if one.id == ref:
                return one
        raise NoSuchContainerError

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Report no change, for ever: no container ends by itself."""
        on_change()
        await asyncio.Event().wait()

    def create(self, command: HostCommand) -> str:
        """Remember a running container for the command's generation; return its id."""
        known = self.find(command)
        if known is None:
            known = _container(self._host_id, command)
            self._containers[command.job_id] = known
        return known.id

    def remove(self, command: HostCommand) -> None:
        """Forget the job's container."""
        self._containers.pop(command.job_id, None)

    def find(self, command: HostCommand) -> ContainerFacts | None:
        """Return the container of the command's generation; None if there is none."""
        known = self._containers.get(command.job_id)
        name = container_name(command.job_id, command.generation)
        return known if known is not None and known.name == name else None


def _container(host_id: str, command: HostCommand) -> ContainerFacts:
    return ContainerFacts(
        id=uuid.uuid4().hex * 2,
        name=container_name(command.job_id, command.generation),
        running=True,
        ever_started=True,
        exit_code=None,
        oom_killed=False,
        labels=ContainerLabels(
            host_id=host_id,
            job_id=command.job_id,
            operation_id=command.operation_id,
            generation=command.generation,
            spec="",
        ),
        mounts=(),
        address=None,
    )
