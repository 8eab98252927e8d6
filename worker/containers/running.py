"""Containers that are known to run: inferences use them without asking the engine each time.

Each of these containers has one watcher, which waits for its exit at the engine. While the watcher
waits, what the engine said of the container holds: it runs, at the same address. It holds no longer
once the container exited, the engine can't tell, this worker itself is about to stop or remove the
container, or an inventory shows something else. The next inference then asks the engine again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from modelyard.contract.errors import ModelyardError
from modelyard.process.tasks import TaskGroup
from worker.containers.readiness import exit_error_of
from worker.engine.protocol import ContainerFacts, ContainerRuntime, RuntimeFaultError

T = TypeVar("T")

EXIT_GRACE_S = 1.0
"""Seconds that work gets before an exit interrupts it: an answer may be there already, and a
connection to a process that has died breaks by itself."""
_ENGINE_RETRY_S = 1.0


@dataclass(eq=False, slots=True)
class _Watched:
    facts: ContainerFacts
    users: dict[asyncio.Timeout, float] = field(default_factory=dict)
    """What works with the container now: how to interrupt it, and since when it works."""
    end: ModelyardError | None = None
    """How the container ended; None while it is not known to have ended."""


class RunningContainers:
    """The running containers of one worker, by name. Nothing is kept unless `run` runs."""

    def __init__(self, runtime: ContainerRuntime) -> None:
        self._runtime = runtime
        self._known: dict[str, _Watched] = {}
        self._watchers: TaskGroup | None = None

    async def run(self) -> None:
        """Own the watchers until cancelled."""
        async with TaskGroup() as watchers:
            self._watchers = watchers
            try:
                await asyncio.Event().wait()
            finally:
                self._watchers = None
                self._known.clear()

    def get(self, name: str) -> ContainerFacts | None:
        """Return the facts of a container that is known to run; None if it has to be inspected."""
        watched = self._known.get(name)
        return watched.facts if watched else None

    def keep(self, facts: ContainerFacts) -> None:
        """Keep the facts of a container that was just inspected, and watch it, if it runs."""
        if self._watchers is None or not facts.running or facts.name in self._known:
            return
        watched = self._known[facts.name] = _Watched(facts)
        self._watchers.create_task(self._watch(watched))

    def forget(self, container_id: str) -> None:
        """Keep nothing of a container: it is about to be stopped or removed."""
        for watched in tuple(self._known.values()):
            if watched.facts.id == container_id:
                self._drop(watched)

    def compare(self, listed: Iterable[ContainerFacts]) -> None:
        """Forget the containers that differ from what the engine has just listed."""
        now = {facts.name: facts for facts in listed}
        for name, watched in tuple(self._known.items()):
            facts = now.get(name)
            if facts is None or not facts.running or facts.address != watched.facts.address:
                self._drop(watched)

    def check_of(self, facts: ContainerFacts) -> Callable[[], None]:
        """Return what raises `exited` or `oom_killed` once the container is known to have ended.

        For a container that is not kept it does nothing.
        """
        watched = self._known.get(facts.name)

        def check() -> None:
            if watched is not None and watched.end is not None:
                raise watched.end

        return check

    async def work_in(self, facts: ContainerFacts, work: Awaitable[T]) -> T:
        """Return the result of `work`; raise `exited` or `oom_killed` if the container exits.

        The container is one that `get` returned, or that was kept; else nothing interrupts `work`.
        """
        watched = self._known.get(facts.name)
        if watched is None:
            return await work
        limit = asyncio.timeout(None)
        try:
            async with limit:
                watched.users[limit] = asyncio.get_running_loop().time()
                try:
                    return await work
                finally:
                    watched.users.pop(limit, None)
        except TimeoutError as error:
            if not limit.expired() or watched.end is None:
                raise
            raise watched.end from error

    async def _watch(self, watched: _Watched) -> None:
        while watched.end is None:
            try:
                watched.end = await exit_error_of(self._runtime, watched.facts.id)
            except RuntimeFaultError:
                self._drop(watched)
                if not watched.users:
                    return
                await asyncio.sleep(_ENGINE_RETRY_S)
        self._drop(watched)
        now = asyncio.get_running_loop().time()
        for limit, began in tuple(watched.users.items()):
            limit.reschedule(max(now, began + EXIT_GRACE_S))

    def _drop(self, watched: _Watched) -> None:
        if self._known.get(watched.facts.name) is watched:
            del self._known[watched.facts.name]
