"""The rounds: each kind of work through Modelyard and by aiodocker alone, one after the other."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import processes
from bench.containers.bare import CREATE, TEMP, TERMINATE, BareContainer
from bench.containers.image import NOOP, PROGRAM
from bench.measuring import GENERATOR, Section
from deploy.local.processes import ProcessId
from modelyard.contract.catalog.entries import Hook, Hooks, ModelSpec, Profile
from modelyard.process.tasks import TaskGroup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiodocker

    from bench.stack import BenchStack
    from deploy.local.progress import Progress
    from modelyard.client import AsyncModelyard

AT_ONCE = 16
TEMP_WORK, CREATE_WORK = "TEMP of a no-op program", "CREATE + TERMINATE"
MODELYARD, BARE = "Modelyard", "aiodocker alone"
BATCH_MODEL = ModelSpec(name="noop-batch", image=NOOP, profile=Profile.BATCH, command=PROGRAM)
SERVER_MODEL = ModelSpec(
    name="noop-server",
    image=NOOP,
    profile=Profile.PROCESS,
    command=PROGRAM,
    port=8080,
    hooks=Hooks(infer=Hook(path="/infer", body="{input}")),
)
"""Its containers are created and never started."""
_WAIT_S = 120.0
_MIB = 1 << 20
_MS = 1_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work is done."""

    temps: int = 64
    creates: int = 192
    """Pieces of work in each part of a round; creating and removing takes the engine less time."""
    rounds: int = 5


QUICK = Sizes(temps=16, creates=32, rounds=1)


class Rounds:
    """Does the same work through Modelyard and without it, and measures both."""

    def __init__(self, stack: BenchStack, client: AsyncModelyard, docker: aiodocker.Docker) -> None:
        """`docker` is a client of the stack's engine."""
        self._stack = stack
        self._client = client
        self._docker = docker

    async def run(self, sizes: Sizes, progress: Progress) -> list[Section]:
        """Return all sections in order; raises `OperationFailed` or `DockerError`."""
        for model in (BATCH_MODEL, SERVER_MODEL):
            await self._client.put_model(model)
        parts = (
            (MODELYARD, TEMP_WORK, sizes.temps, self._temp),
            (BARE, TEMP_WORK, sizes.temps, self._bare_temp),
            (MODELYARD, CREATE_WORK, sizes.creates, self._create_and_terminate),
            (BARE, CREATE_WORK, sizes.creates, self._bare_create_and_terminate),
        )
        sections = []
        for number in range(1, sizes.rounds + 1):
            for system, what, pieces, work in parts:
                with progress.step(f"{what}, {system}") as step:
                    section = await self._section(system, what, pieces, work)
                    step.result = f"Round {number}: {what}, {system}: {section.rate:.2f}/s"
                sections.append(section)
        return sections

    async def _section(
        self, system: str, what: str, pieces: int, work: Callable[[str], Awaitable[None]]
    ) -> Section:
        watched = self._stack.processes()
        own = ProcessId.of(os.getpid())
        watched[GENERATOR] = {own} if own else set()
        async with self._stack.sampling(what) if system == MODELYARD else nullcontext():
            before = processes.read(watched)
            seconds = await seconds_of(work, pieces)
            after = processes.read(watched)
        used = processes.cpu_between(before, after)
        return Section(
            system=system,
            what=what,
            operations=pieces,
            seconds=seconds,
            cpu_ms={name: cpu_s * _MS / pieces for name, cpu_s in used.items()},
            rss_mib={name: rss / _MIB for name, rss in processes.memory(after).items()},
        )

    async def _temp(self, job_id: str) -> None:
        await self._client.wait(await self._client.temp(job_id, BATCH_MODEL.name), _WAIT_S)

    async def _create_and_terminate(self, job_id: str) -> None:
        await self._client.wait(await self._client.create(job_id, SERVER_MODEL.name), _WAIT_S)
        await self._client.wait(await self._client.terminate(job_id), _WAIT_S)

    async def _bare_temp(self, job_id: str) -> None:
        await self._bare(job_id, BATCH_MODEL).run(TEMP)

    async def _bare_create_and_terminate(self, job_id: str) -> None:
        container = self._bare(job_id, SERVER_MODEL)
        await container.run(CREATE)
        await container.run(TERMINATE)

    def _bare(self, job_id: str, model: ModelSpec) -> BareContainer:
        # The worker has made its network by then: Modelyard has the first turn.
        return BareContainer.of(self._docker, self._stack.network, job_id, model)


async def seconds_of(work: Callable[[str], Awaitable[None]], pieces: int) -> float:
    """Do so many pieces of work, `AT_ONCE` at a time; return the seconds that it took.

    `work` does one piece, for a job that nobody has used before.
    """
    mark, left = uuid.uuid4().hex[:8], iter(range(pieces))

    async def do_some() -> None:
        for number in left:
            await work(f"bench-{mark}-{number}")

    began = time.monotonic()
    async with TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(do_some())
    return time.monotonic() - began
