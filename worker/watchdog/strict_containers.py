"""How watchdogs stop the containers that must not outlive the lease of their host."""

from collections.abc import Callable

import structlog

from worker.engine.protocol import ContainerFacts, ContainerRuntime
from worker.engine.strict_containers import stop_all, strict_containers

log = structlog.get_logger(__name__)


async def stop_strict(
    runtime: ContainerRuntime, counts: Callable[[ContainerFacts], bool] = lambda _: True
) -> list[ContainerFacts]:
    """Stop those that run and that `counts` names, without grace; return all that were found.

    Raises what `stop_all` raises.
    """

    async def stop(facts: ContainerFacts) -> None:
        await runtime.stop(facts.id, 0.0)
        job_id = facts.labels.job_id if facts.labels else None
        log.warning("watchdog.stopped", container_id=facts.id, job_id=job_id)

    found = await strict_containers(runtime)
    await stop_all((facts for facts in found if facts.running and counts(facts)), stop)
    return found
