"""The inventory: one item for each container, with what its model server answered to a probe."""

import json
from collections.abc import Collection, Mapping, Sequence

from modelyard.contract.errors import ErrorCode, ErrorInfo, ModelyardError
from modelyard.contract.messages import InventoryItem
from modelyard.process.tasks import TaskGroup
from worker.containers.health import Misses, ModelHealth
from worker.engine.labels import ContainerLabels
from worker.engine.protocol import ContainerFacts
from worker.execution.deaths import ContainerDeaths
from worker.model_server.client import ModelServer
from worker.model_server.probes import ProbeResult, ProbeVerdict, asked_of
from worker.model_server.profiles import probe_in_label

MAX_ERRORS_BYTES = 256 << 10
"""The errors of one inventory as JSON text; those beyond it come without their texts."""


class InventoryBuilder:
    """Makes the items of inventories; what the model servers answer counts for their health."""

    def __init__(self, server: ModelServer, deaths: ContainerDeaths, health: ModelHealth) -> None:
        self._server = server
        self._deaths = deaths
        self._health = health

    async def build(
        self, containers: Sequence[ContainerFacts], *, busy: Collection[str] = ()
    ) -> list[InventoryItem]:
        """Return an item for each of our containers.

        Servers of the jobs `busy` are not probed, and nothing is concluded of their containers: a
        server that works on an inference may not answer, and its silence would prove nothing. Jobs
        may be added to `busy` until this returns.
        """
        ours = [(facts, facts.labels) for facts in containers if facts.labels is not None]
        idle = [(facts, labels) for facts, labels in ours if labels.job_id not in busy]
        async with TaskGroup() as tasks:
            dying = tasks.create_task(self._deaths.causes([facts for facts, _ in idle]))
            asking = {
                facts.id: tasks.create_task(self._probe(facts, labels)) for facts, labels in idle
            }
        probed = {container_id: task.result() for container_id, task in asking.items()}
        # Jobs on which operations have begun meanwhile are busy too.
        still_idle = [(facts, labels) for facts, labels in idle if labels.job_id not in busy]
        unhealthy = {
            facts.id: _unhealthy(misses, labels)
            for facts, labels in still_idle
            if (misses := self._record(facts, probed[facts.id])) is not None
        }
        judged = {facts.id for facts, _ in still_idle}
        dead = {key: error for key, error in dying.result().items() if key in judged}
        errors = _bounded(unhealthy | dead)
        items = [self._item(facts, labels, probed.get(facts.id)) for facts, labels in ours]
        return [
            item.model_copy(
                update={
                    "unhealthy": item.container_id in unhealthy,
                    "error": errors.get(item.container_id),
                }
            )
            for item in items
        ]

    async def _probe(self, facts: ContainerFacts, labels: ContainerLabels) -> ProbeResult | None:
        """Return the answer of a container's server; None if it was not asked."""
        if facts.address is None or labels.ready is None:
            return None
        try:
            return await self._server.probe(facts.address, probe_in_label(labels.ready))
        except ModelyardError:
            # An invalid probe in the label of one container must not hide the other containers.
            return None

    def _record(self, facts: ContainerFacts, probed: ProbeResult | None) -> Misses | None:
        return self._health.record_answer(facts.id, running=facts.running, probed=probed)

    def _item(
        self, facts: ContainerFacts, labels: ContainerLabels, probed: ProbeResult | None
    ) -> InventoryItem:
        answer = probed.answer if probed is not None else None
        stopped = self._health.stop_causes.get(facts.id)
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
            disk_exceeded=stopped is not None and stopped.code is ErrorCode.DISK_QUOTA_EXCEEDED,
        )


def _unhealthy(misses: Misses, labels: ContainerLabels) -> ErrorInfo:
    """Return why a model is unhealthy: what its server was asked, and what it answered last."""
    # It was asked, so the label is there and valid.
    asked = asked_of(probe_in_label(labels.ready or "").path, labels.port)
    return ModelyardError(
        ErrorCode.UNHEALTHY,
        f"{misses.count} checks in a row found the model not ready, although no operation worked "
        f"on it. {misses.last.sentences(asked)}",
        **misses.last.detail(asked),
    ).info()


def _bounded(errors: Mapping[str, ErrorInfo]) -> dict[str, ErrorInfo]:
    """Return the errors by container id; those after `MAX_ERRORS_BYTES` only with their numbers."""
    left = MAX_ERRORS_BYTES
    bounded: dict[str, ErrorInfo] = {}
    for container_id, error in errors.items():
        left -= len(json.dumps(error.model_dump(mode="json")))
        bounded[container_id] = error if left >= 0 else _without_texts(error)
    return bounded


def _without_texts(error: ErrorInfo) -> ErrorInfo:
    numbers = {name: value for name, value in error.detail.items() if not isinstance(value, str)}
    return ErrorInfo.of(error.code).model_copy(update={"detail": numbers})
