"""Lists this host's containers so that one which can't be inspected does not hide the others."""

import asyncio

import structlog

from modelyard.process.tasks import TaskGroup
from worker.engine.protocol import (
    ContainerFacts,
    ContainerRuntime,
    NoSuchContainerError,
    RuntimeFaultError,
)

log = structlog.get_logger(__name__)

INSPECT_S = 5.0
"""Seconds for the inspections of all containers together."""
INSPECTIONS_AT_ONCE = 32


async def list_containers(runtime: ContainerRuntime) -> list[ContainerFacts]:
    """Return this host's own containers, `dead` ones among them, with all that is known of each.

    A container that is not inspected after `INSPECT_S` seconds is returned with what
    `list_uninspected` tells: it exists, and whether it runs is known.
    Raises `EngineUnavailableError` if the engine lists nothing.
    """
    found = {facts.id: facts for facts in await runtime.list_uninspected()}
    waiting = {facts.id for facts in found.values() if not facts.dead}
    turns = asyncio.Semaphore(INSPECTIONS_AT_ONCE)

    async def inspect(container_id: str) -> None:
        async with turns:
            try:
                found[container_id] = await runtime.inspect(container_id)
            except NoSuchContainerError:
                del found[container_id]  # removed after it was listed
            except RuntimeFaultError:
                return
            waiting.discard(container_id)

    limit = asyncio.timeout(INSPECT_S)
    try:
        async with limit, TaskGroup() as tasks:
            for container_id in tuple(waiting):
                tasks.create_task(inspect(container_id))
    except TimeoutError:
        if not limit.expired():
            raise
    if waiting:
        log.info("containers.uninspected", container_ids=sorted(waiting))
    return list(found.values())
