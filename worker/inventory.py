"""What a host says of its containers: one item for each, its server asked if it is ready."""

from collections.abc import Collection, Sequence

from modelyard.contract.messages import InventoryItem
from modelyard.together import TaskGroup
from worker.hooks import ModelServer
from worker.labels import ContainerLabels
from worker.runtime import ContainerFacts


async def take_stock(
    server: ModelServer, containers: Sequence[ContainerFacts], *, unasked: Collection[str] = ()
) -> list[InventoryItem]:
    """Return an item for each container that is ours; servers of the jobs `unasked` are not asked.

    A server that works on an inference may not answer: what it does not say would mean nothing.
    """
    async with TaskGroup() as tasks:
        items = [
            tasks.create_task(_item(server, facts, labels, ask=labels.job_id not in unasked))
            for facts in containers
            if (labels := facts.labels) is not None
        ]
    return [item.result() for item in items]


async def _item(
    server: ModelServer, facts: ContainerFacts, labels: ContainerLabels, *, ask: bool
) -> InventoryItem:
    loaded = False
    if ask and facts.address is not None and labels.ready_path is not None:
        loaded = await server.answers(facts.address, labels.ready_path)
    return InventoryItem(
        container_id=facts.id,
        job_id=labels.job_id,
        generation=labels.generation,
        operation_id=labels.operation_id,
        running=facts.running,
        loaded=loaded,
        ever_started=facts.ever_started,
        exit_code=facts.exit_code,
        oom_killed=facts.oom_killed,
    )
