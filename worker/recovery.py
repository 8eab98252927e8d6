"""The boot of a worker: look at what is there, say so, and only then take commands."""

import asyncio
import time

import structlog

from modelyard.broker import Broker, backoff_s
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.messages import EngineFacts, HostOnline, InventoryItem, WorkerReports
from modelyard.contract.topology import REPORTS, REPORTS_QUEUE, host_queue
from worker.hooks import ModelServer
from worker.reporter import REPORTS_TYPE
from worker.runtime import ContainerFacts, ContainerRuntime, EngineUnavailableError

log = structlog.get_logger(__name__)

ENGINE_WAIT_S = 30.0
"""Seconds that a booting worker waits for its engine."""
_ENGINE_RETRY_S = 0.5


async def declare_topology(broker: Broker, host_id: str) -> None:
    """Declare this host's queue and the reports' way back.

    Raises `TopologyMismatchError` and `BrokerUnavailableError`.
    """
    await broker.declare(
        [host_queue(host_id), REPORTS_QUEUE], extra_bindings=[(REPORTS_QUEUE, host_id)]
    )


class Recovery:
    """One boot."""

    def __init__(  # noqa: PLR0913 - what one boot says of itself
        self,
        *,
        broker: Broker,
        runtime: ContainerRuntime,
        server: ModelServer,
        host_id: str,
        incarnation: str,
        slots: int,
        labels: dict[str, str],
    ) -> None:
        self._broker = broker
        self._runtime = runtime
        self._server = server
        self._host_id = host_id
        self._incarnation = incarnation
        self._slots = slots
        self._labels = labels
        self._engine_facts: EngineFacts | None = None

    async def prepare(self) -> None:
        """Wait for the engine and the broker, and make what both need.

        Raises `EngineUnavailableError` if the engine does not answer for `ENGINE_WAIT_S`, and
        `TopologyMismatchError`. The broker is waited for: it comes back by itself.
        """
        self._engine_facts = await self._engine()
        await self._runtime.ensure_network()
        failures = 0
        while True:
            try:
                await declare_topology(self._broker, self._host_id)
            except BrokerUnavailableError as error:
                failures += 1
                if failures == 1:
                    log.warning("broker.waiting", error=str(error))
                await asyncio.sleep(backoff_s(failures))
            else:
                return

    async def announce(self) -> list[ContainerFacts]:
        """Publish what this host offers and holds, confirmed; return its containers.

        The engine is waited for: it has answered once, and comes back by itself.
        Raises `BrokerUnavailableError`; what was published may be published again.
        """
        containers = await self._containers()
        online = HostOnline(
            slots=self._slots,
            labels=self._labels,
            engine=self._engine_facts or await self._engine(),
            inventory=tuple(await self._inventory(containers)),
        )
        body = WorkerReports(
            host_id=self._host_id, incarnation=self._incarnation, online=online
        ).model_dump_json()
        await self._broker.publish(REPORTS, self._host_id, body.encode(), message_type=REPORTS_TYPE)
        log.info("host.online", incarnation=self._incarnation, containers=len(containers))
        return containers

    async def _containers(self) -> list[ContainerFacts]:
        failures = 0
        while True:
            try:
                return [facts for facts in await self._runtime.list_own() if facts.labels]
            except EngineUnavailableError as error:
                failures += 1
                if failures == 1:
                    log.warning("engine.waiting", error=error.message)
                await asyncio.sleep(_ENGINE_RETRY_S)

    async def _engine(self) -> EngineFacts:
        ends_at = time.monotonic() + ENGINE_WAIT_S
        while True:
            try:
                return await self._runtime.facts()
            except EngineUnavailableError:
                if time.monotonic() >= ends_at:
                    raise
                await asyncio.sleep(_ENGINE_RETRY_S)

    async def _inventory(self, containers: list[ContainerFacts]) -> list[InventoryItem]:
        async with asyncio.TaskGroup() as tasks:
            items = [tasks.create_task(self._item(facts)) for facts in containers]
        return [item.result() for item in items]

    async def _item(self, facts: ContainerFacts) -> InventoryItem:
        labels = facts.labels
        if labels is None:
            raise ValueError("a container without our labels is not in the inventory")
        loaded = False
        if facts.address is not None and labels.ready_path is not None:
            loaded = await self._server.answers(facts.address, labels.ready_path)
        return InventoryItem(
            container_id=facts.id,
            job_id=labels.job_id,
            generation=labels.generation,
            operation_id=labels.operation_id,
            running=facts.running,
            loaded=loaded,
        )
