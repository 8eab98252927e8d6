"""The containers that must not outlive the lease of their host, and how they are stopped."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from modelyard.process.tasks import TaskGroup
from worker.engine.protocol import (
    ContainerFacts,
    ContainerRuntime,
    NoSuchContainerError,
    RuntimeFaultError,
)

STOPS_AT_ONCE = 64


async def strict_containers(runtime: ContainerRuntime) -> list[ContainerFacts]:
    """Return the containers that must not outlive the lease, running or not.

    None is inspected, so a container that the engine can't inspect hides no other.
    """
    return [
        facts
        for facts in await runtime.list_uninspected()
        if facts.labels is not None and facts.labels.strict
    ]


async def stop_all(
    containers: Iterable[ContainerFacts], stop: Callable[[ContainerFacts], Awaitable[None]]
) -> None:
    """Stop containers, up to `STOPS_AT_ONCE` at a time; one that is gone is stopped.

    The engine may be unable to kill one of them. So all are tried before the first error is raised.
    """
    turns = asyncio.Semaphore(STOPS_AT_ONCE)
    failed: list[RuntimeFaultError] = []

    async def stop_one(facts: ContainerFacts) -> None:
        async with turns:
            try:
                await stop(facts)
            except NoSuchContainerError:
                return
            except RuntimeFaultError as error:
                failed.append(error)

    async with TaskGroup() as tasks:
        for facts in containers:
            tasks.create_task(stop_one(facts))
    if failed:
        raise failed[0]
