"""The inventory loop: lists this host's containers again and again and reports them.

The worker only reports. The dispatcher, which has the record, decides what follows from it.
"""

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from modelyard.broker import backoff_s
from modelyard.contract.messages import Inventory
from modelyard.contract.topology import INVENTORY_INTERVAL_S
from modelyard.process.tasks import TaskGroup
from worker.attempts.registry import AttemptRegistry
from worker.containers.lifecycle import ContainerLifecycle
from worker.engine.listing import list_containers
from worker.engine.protocol import ContainerRuntime, EngineUnavailableError
from worker.execution.discards import Discards
from worker.session.inventory import InventoryBuilder
from worker.session.reporter import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

HASTE_S = 1.0
"""Least seconds from the start of one inventory to the next, however much changes."""
REST_S = 0.2
"""Least seconds from the end of an inventory to the next: it may take longer than `HASTE_S`."""
STEADY_S = 10.0
"""Seconds that the engine's event stream must last; a failure after that restarts the backoff."""


class InventoryLoop:
    """Takes an inventory every `INVENTORY_INTERVAL_S`, and soon after an event of the engine."""

    def __init__(
        self,
        *,
        runtime: ContainerRuntime,
        builder: InventoryBuilder,
        containers: ContainerLifecycle,
        registry: AttemptRegistry,
        discards: Discards,
        reporter: Reporter,
    ) -> None:
        self.on_looked: Callable[[float, tuple[int, int] | None], None] = lambda _s, _found: None
        """Called after each inventory with its seconds, and how many containers were running and
        stopped; None if the engine is away."""
        self._runtime = runtime
        self._builder = builder
        self._containers = containers
        self._running = containers.running
        self._registry = registry
        self._discards = discards
        self._reporter = reporter
        self._silent = False
        self._changed = asyncio.Event()

    async def run(self, *, interval_s: float = INVENTORY_INTERVAL_S) -> None:
        """Take inventories until cancelled; `interval_s` is the time from start to start."""
        async with TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._keep_looking(interval_s))

    async def _keep_looking(self, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._changed.clear()
            await self.look()
            await asyncio.sleep(max(REST_S, began + HASTE_S - loop.time()))
            with suppress(TimeoutError):
                async with asyncio.timeout_at(began + interval_s):
                    await self._changed.wait()

    async def _watch(self) -> None:
        """Set `_changed` at each event of the engine; without events only the interval counts."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                await self._runtime.watch(self._changed.set)
            except EngineUnavailableError as error:
                log.debug("changes.unheard", error=error.message)
            failures = failures + 1 if loop.time() - began < STEADY_S else 1
            await asyncio.sleep(backoff_s(failures))

    async def look(self) -> bool:
        """Take one inventory and queue it in the reporter; return false if the engine is away.

        A job with an open attempt at any time during the inventory is listed as `busy`. The
        inventory is queued at the moment it is composed, so every later report is sent after it.
        A container in state `dead` is left out and removed.
        """
        known = self._containers.known
        began = time.monotonic()
        with self._registry.busy_jobs() as busy:
            try:
                listed = await list_containers(self._runtime)
            except EngineUnavailableError as error:
                if not self._silent:
                    log.warning("inventory.silent", reason=error.message)
                self._silent = True
                self.on_looked(time.monotonic() - began, None)
                return False
            for facts in listed:
                if facts.dead and facts.labels is not None:
                    self._discards.finish(facts.id, facts.labels.job_id)
            containers = [facts for facts in listed if not facts.dead]
            self._running.compare(containers)
            for gone in known - {facts.id for facts in containers}:
                self._containers.record_removed(gone)
            items = await self._builder.build(containers, busy=busy)
            self._reporter.put_inventory(
                Inventory(
                    items=tuple(items),
                    busy=tuple(sorted(busy)),
                    local=self._containers.local_content.latest(),
                )
            )
        self._silent = False
        running = sum(one.running for one in items)
        self.on_looked(time.monotonic() - began, (running, len(items) - running))
        return True
