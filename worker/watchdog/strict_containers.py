"""The containers that must not outlive the lease of their host."""

from collections.abc import Callable

import structlog

from worker.engine.protocol import ContainerFacts, ContainerRuntime, NoSuchContainerError

log = structlog.get_logger(__name__)


async def strict_containers(runtime: ContainerRuntime) -> list[ContainerFacts]:
    """Return the containers that must not outlive the lease, running or not."""
    return [
        facts
        for facts in await runtime.list_own()
        if facts.labels is not None and facts.labels.strict
    ]


async def stop_strict(
    runtime: ContainerRuntime, counts: Callable[[ContainerFacts], bool] = lambda _: True
) -> list[ContainerFacts]:
    """Stop those that run and that `counts` names, without grace; return all that were found."""
    found = await strict_containers(runtime)
    for facts in found:
        if not facts.running or not counts(facts):
            continue
        try:
            await runtime.stop(facts.id, 0.0)
        except NoSuchContainerError:
            continue
        job_id = facts.labels.job_id if facts.labels else None
        log.warning("watchdog.stopped", container_id=facts.id, job_id=job_id)
    return found
