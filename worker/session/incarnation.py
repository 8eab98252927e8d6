"""One incarnation of a host's worker: from its boot until it shuts down or loses its lease.

The incarnation owns the lease, the registry and its attempts, the reporter, the consumers and the
heartbeats; they end with it. `WorkerParts` outlives it: the broker connection, the clients of the
engine and of the model servers, the job locks, and the containers that still have to be cleaned up.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import uuid_utils.compat

from modelyard.broker import Broker
from modelyard.contract.messages import Heartbeat
from modelyard.process.tasks import TaskGroup
from worker.attempts.job_locks import JobLocks
from worker.attempts.journal import AttemptJournal
from worker.attempts.registry import AttemptRegistry
from worker.containers.lifecycle import ContainerLifecycle
from worker.engine.protocol import ContainerRuntime
from worker.execution.deaths import ContainerDeaths
from worker.execution.discards import Discards
from worker.execution.executor import AttemptRunner
from worker.execution.verbs import VerbRunner
from worker.metrics import WorkerMetrics, WorkerReadings
from worker.model_server.client import ModelServer
from worker.session.acceptance import Acceptance
from worker.session.boot import BootRecovery
from worker.session.command_consumer import CommandConsumer
from worker.session.control_consumer import ControlConsumer
from worker.session.heartbeat import HeartbeatSender
from worker.session.host_channel import HostChannel
from worker.session.host_offer import HostOffer
from worker.session.inventory import InventoryBuilder
from worker.session.lease import Lease
from worker.session.relist import InventoryLoop
from worker.session.reporter import Reporter
from worker.session.transfers import PiecewiseTransfer
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

DRAIN_S = 14.0
"""Seconds that running attempts get at shutdown; the whole shutdown may take 25 seconds."""
LAST_REPORTS_S = 3.0
"""Seconds that the reporter then gets to deliver the last reports."""


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """The parts of a worker that outlive its incarnations."""

    settings: WorkerSettings
    broker: Broker
    runtime: ContainerRuntime
    server: ModelServer
    containers: ContainerLifecycle
    verbs: VerbRunner
    locks: JobLocks
    journal: AttemptJournal
    offer: HostOffer
    metrics: WorkerMetrics


class Incarnation:
    """One incarnation; `run` returns when it is over."""

    def __init__(self, parts: WorkerParts, lease: Lease) -> None:
        self._parts = parts
        self._lease = lease
        self.incarnation = str(uuid_utils.compat.uuid7())
        self._channel = HostChannel(parts.broker, parts.settings.host_id, self.incarnation)
        self._reporter = Reporter(self._channel)
        self._transfers = PiecewiseTransfer(self._channel)
        self._registry = AttemptRegistry(
            self._reporter.put,
            held=lease.held,
            phase_ended=parts.metrics.phase_ended,
            transfer=self._transfers,
        )
        self._registry.on_decided = parts.metrics.decided
        health = parts.containers.health
        deaths = ContainerDeaths(parts.runtime, health)
        self._builder = InventoryBuilder(parts.server, deaths, health)
        self._enrolled = asyncio.Event()
        """Set once this host's queues exist."""
        self._attached: Callable[[], bool] = lambda: False
        self._acceptance = Acceptance(self._reporter, parts.journal, self._registry)

    async def run(self, stop: asyncio.Event, *, engine_wait_s: float) -> None:
        """Work until `stop` is set or the lease is lost.

        After `stop` the running attempts get time to end, and containers keep running. After a lost
        lease all attempts are cancelled without another report, and containers whose work another
        host may be given are stopped. Raises what `BootRecovery.prepare` raises. A background task
        that fails ends the incarnation with its error.
        """
        async with TaskGroup() as tasks:
            self._parts.metrics.incarnation(self._readings)
            attempts = AttemptRunner(
                self._parts.verbs,
                self._registry,
                self._parts.locks,
                tasks,
            )
            attempts.on_ended = self._parts.metrics.attempt_ended
            discards = Discards(self._parts.containers, self._registry, self._parts.locks, tasks)
            reporting = tasks.create_task(self._reporter.run())
            control = self._control(discards)
            serving = tasks.create_task(self._serve(attempts, discards, control, engine_wait_s))
            listening = tasks.create_task(self._listen(control))
            ends = (
                tasks.create_task(stop.wait()),
                tasks.create_task(self._lease.until_lost()),
            )
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in (*ends, serving):
                end.cancel()
            if not stop.is_set():
                listening.cancel()
                log.warning(
                    "lease.lost", incarnation=self.incarnation, running=self._registry.running
                )
                await self._parts.verbs.give_up(await attempts.abandon())
            # Until then commands may still begin attempts.
            await asyncio.wait((serving,))
            discards.stop()
            if stop.is_set():
                # Attempts that transfer large content get their answers as control messages.
                await self._drain(attempts)
            listening.cancel()
            reporting.cancel()

    async def _drain(self, attempts: AttemptRunner) -> None:
        log.info("worker.stopping", running=self._registry.running)
        await attempts.drain(DRAIN_S)
        if not await self._reporter.drain(LAST_REPORTS_S):
            log.warning("reports.lost_at_shutdown")

    def _control(self, discards: Discards) -> ControlConsumer:
        return ControlConsumer(
            self._channel,
            reporter=self._reporter,
            registry=self._registry,
            discards=discards,
            lease=self._lease,
            transfers=self._transfers,
        )

    async def _listen(self, control: ControlConsumer) -> None:
        """Consume control messages, once their queue exists."""
        await self._enrolled.wait()
        await control.run()

    async def _serve(
        self,
        attempts: AttemptRunner,
        discards: Discards,
        control: ControlConsumer,
        engine_wait_s: float,
    ) -> None:
        """Boot, then consume commands, send heartbeats and publish inventories."""
        parts = self._parts
        recovery = BootRecovery(
            self._channel,
            runtime=parts.runtime,
            builder=self._builder,
            lease=self._lease,
            journal=parts.journal,
            offer=parts.offer,
        )
        await recovery.prepare(engine_wait_s=engine_wait_s)
        self._enrolled.set()
        announced = asyncio.Event()

        async def announce() -> None:
            found = await recovery.announce()
            self._registry.record_generations(
                (facts.labels.job_id, facts.labels.generation) for facts in found if facts.labels
            )
            announced.set()

        consumer = CommandConsumer(
            self._channel,
            acceptance=self._acceptance,
            registry=self._registry,
            attempts=attempts,
            announce=announce,
            held=self._lease.held,
        )
        self._attached = lambda: consumer.attached and control.attached
        heartbeat = HeartbeatSender(
            self._channel,
            runtime=parts.runtime,
            lease=self._lease,
            attached=self._attached,
            stuck_s=lambda: self._reporter.stuck_s,
            compose=self._heartbeat,
        )
        heartbeat.on_confirmed = parts.offer.record_told
        relist = InventoryLoop(
            runtime=parts.runtime,
            builder=self._builder,
            containers=parts.containers,
            registry=self._registry,
            discards=discards,
            reporter=self._reporter,
        )
        relist.on_looked = parts.metrics.inventory
        async with TaskGroup() as tasks:
            tasks.create_task(consumer.run())
            tasks.create_task(heartbeat.run(interval_s=self._lease.renewal_interval_s))
            await announced.wait()
            tasks.create_task(relist.run())

    def _readings(self) -> WorkerReadings:
        return WorkerReadings(
            attached=self._attached(),
            running_attempts=self._registry.running,
            lease_left_s=self._lease.left_s,
            reports_waiting=self._reporter.waiting,
            reports_stuck_s=self._reporter.stuck_s,
            devices=self._parts.offer.readings,
        )

    def _heartbeat(self) -> Heartbeat:
        return self._parts.offer.heartbeat(self.incarnation, running=self._registry.running)
