"""The same calls to the engine as a worker makes, by aiodocker alone.

`TEMP`, `CREATE` and `TERMINATE` name the methods of `ContainerRuntime` that a worker calls for
these verbs, in order; `tests/unit/bench/containers/test_bare.py` compares them with a worker. Each
step here sends the requests that `DockerRuntime` sends in that method, and does nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiodocker.exceptions import DockerError

from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Verb
from worker.containers.planning import PlanRules, plan_container
from worker.engine.docker.config import engine_config
from worker.engine.labels import HOST, JOB

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiodocker

    from modelyard.contract.catalog.entries import ModelSpec

TEMP = (
    "list_own", "image", "ensure_network", "create", "inspect",
    "start", "inspect", "wait_exit", "stdout_tail", "list_own", "remove",
)  # fmt: skip
CREATE = ("list_own", "image", "ensure_network", "create", "inspect")
TERMINATE = ("list_own", "remove")

_HOST_ID = "bare"
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class BareContainer:
    """One container, and the calls to the engine that concern it."""

    docker: aiodocker.Docker
    job_id: str
    network: str
    name: str
    config: dict[str, Any]

    @classmethod
    def of(
        cls, docker: aiodocker.Docker, network: str, job_id: str, model: ModelSpec
    ) -> BareContainer:
        """Plan the container that a worker would create for a TEMP of this job.

        The network must exist.
        """
        command = HostCommand(
            operation_id="00000000-0000-7000-8000-000000000000",
            epoch=1,
            verb=Verb.TEMP,
            job_id=job_id,
            generation=1,
            model=model,
            timeout_s=60.0,
        )
        plan = plan_container(command, None, PlanRules(host_id=_HOST_ID, network=network))
        return cls(docker, job_id, network, plan.name, engine_config(plan))

    async def run(self, steps: Sequence[str]) -> None:
        """Make the calls of these steps, one after the other."""
        for step in steps:
            await getattr(self, f"_{step}")()

    async def _list_own(self) -> None:
        labels = [f"{HOST}={_HOST_ID}", f"{JOB}={self.job_id}"]
        filters = json.dumps({"label": labels})
        for one in await self.docker.containers.list(all=True, filters=filters):
            await one.show()

    async def _inspect(self) -> None:
        try:
            await self.docker.containers.container(self.name).show()
        except DockerError as error:
            if error.status != _NOT_FOUND:
                raise

    async def _image(self) -> None:
        await self.docker.images.inspect(self.config["Image"])

    async def _ensure_network(self) -> None:
        await self.docker.networks.list(filters={"name": self.network})

    async def _create(self) -> None:
        await self.docker.containers.create(self.config, name=self.name)

    async def _start(self) -> None:
        await self.docker.containers.container(self.name).start()

    async def _wait_exit(self) -> None:
        await self.docker.containers.container(self.name).wait(timeout=None)
        await self._inspect()

    async def _stdout_tail(self) -> None:
        await self.docker.containers.container(self.name).log(stdout=True)

    async def _remove(self) -> None:
        await self.docker.containers.container(self.name).delete(force=True, v=True)
