"""The inventory: one item for each container, with the answer of its model server to a probe."""

from collections.abc import Collection, Sequence
from contextlib import suppress

from modelyard.contract.errors import ModelyardError
from modelyard.contract.messages import InventoryItem
from modelyard.process.tasks import TaskGroup
from worker.engine.labels import ContainerLabels
from worker.engine.protocol import ContainerFacts
from worker.model_server.client import ModelServer
from worker.model_server.probes import ProbeVerdict
from worker.model_server.profiles import probe_in_label


async def build_inventory(
    server: ModelServer, containers: Sequence[ContainerFacts], *, unasked: Collection[str] = ()
) -> list[InventoryItem]:
    """Return an item for each of our containers; servers of the jobs `unasked` are not probed.

    A server that works on an inference may not answer, and its silence would prove nothing.
    """
    async with TaskGroup() as tasks:
        items = [
            tasks.create_task(_item(server, facts, labels, ask=labels.job_id not in unasked))
            for facts in containers
            if (labels := facts.labels) is not None
        ]
    return [item.result() for item in items]


def answer_in(item: InventoryItem) -> ProbeVerdict | None:
    """Return the answer of the item's model server; None if it was not asked."""
    return None if item.answer in {None, "not_asked"} else ProbeVerdict(item.answer)


async def _item(
    server: ModelServer, facts: ContainerFacts, labels: ContainerLabels, *, ask: bool
) -> InventoryItem:
    answer: ProbeVerdict | None = None
    if ask and facts.address is not None and labels.ready is not None:
        # An invalid probe in the label of one container must not hide the other containers.
        with suppress(ModelyardError):
            answer = (await server.probe(facts.address, probe_in_label(labels.ready))).answer
    return InventoryItem(
        container_id=facts.id,
        job_id=labels.job_id,
        generation=labels.generation,
        operation_id=labels.operation_id,
        running=facts.running,
        loaded=answer is ProbeVerdict.YES,
        answer=answer.value if answer is not None else "not_asked",
        ever_started=facts.ever_started,
        exit_code=facts.exit_code,
        oom_killed=facts.oom_killed,
    )
