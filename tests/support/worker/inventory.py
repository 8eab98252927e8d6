"""The inventory of a worker over the fake engine, for unit tests: each look is made by hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelyard.contract.messages import Inventory, InventoryItem
from modelyard.process.tasks import TaskGroup
from tests.support.waiting import eventually
from tests.support.worker.broker import FakeBroker, reporter_on
from tests.support.worker.harness import VerbHarness
from worker.attempts.job_locks import JobLocks
from worker.attempts.registry import AttemptRegistry
from worker.execution.deaths import ContainerDeaths
from worker.execution.discards import Discards
from worker.model_server.client import ModelServer
from worker.session.inventory import InventoryBuilder
from worker.session.relist import InventoryLoop


def inventory_builder(harness: VerbHarness) -> InventoryBuilder:
    """Return what makes the items of inventories over a fake engine."""
    health = harness.operations.containers.health
    server = ModelServer(harness.runtime.model_servers)
    return InventoryBuilder(server, ContainerDeaths(harness.runtime, health), health)


class InventoryHarness:
    """A relist over a fake engine and a fake broker; looks are made by hand."""

    def __init__(self, tasks: TaskGroup, harness: VerbHarness | None = None) -> None:
        self.harness = harness or VerbHarness()
        self.broker = FakeBroker()
        self.reporter = reporter_on(self.broker)
        self.registry = AttemptRegistry(self.reporter.put)
        self.now = 0.0
        containers = self.harness.operations.containers
        health = containers.health
        health._clock = lambda: self.now
        self.relist = InventoryLoop(
            runtime=self.harness.runtime,
            builder=inventory_builder(self.harness),
            containers=containers,
            registry=self.registry,
            discards=Discards(containers, self.registry, JobLocks(), tasks),
            reporter=self.reporter,
        )

    async def look(self) -> Inventory:
        """Return what one look has told, 10 seconds after the last one."""
        self.now += 10.0
        before = len(self.broker.messages)
        assert await self.relist.look()

        async def told() -> Inventory | None:
            return next(
                (it.inventory for it in self.broker.messages[before:] if it.inventory), None
            )

        return await eventually(told)

    async def item(self) -> InventoryItem:
        return (await self.look()).items[0]


@asynccontextmanager
async def inventory_harness(harness: VerbHarness | None = None) -> AsyncIterator[InventoryHarness]:
    async with asyncio.timeout(20), TaskGroup() as tasks:
        made = InventoryHarness(tasks, harness)
        reporting = tasks.create_task(made.reporter.run())
        yield made
        reporting.cancel()
