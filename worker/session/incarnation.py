"""One incarnation of a host's worker: from its announcement to its shutdown, or its lease's end.

What belongs to the incarnation lives here and ends with it: the lease, the desk and its attempts,
what waits to be reported, the consumers, the heart. What outlives it is the service's: the broker's
connection, the engine's client, the HTTP client, the locks of the jobs, and what is to be cleaned
up still.
"""

import asyncio
from dataclasses import dataclass

import structlog
import uuid_utils.compat

from modelyard.broker import Broker
from modelyard.contract.messages import Heartbeat
from modelyard.contract.topology import HEARTBEAT_INTERVAL_S
from modelyard.process.tasks import TaskGroup
from worker.attempts.job_locks import JobLocks
from worker.attempts.registry import AttemptRegistry
from worker.engine.protocol import ContainerRuntime
from worker.execution.discards import Discards
from worker.execution.executor import AttemptRunner
from worker.execution.verbs import VerbRunner
from worker.model_server.client import ModelServer
from worker.session.boot import BootRecovery
from worker.session.command_consumer import CommandConsumer
from worker.session.control_consumer import ControlConsumer
from worker.session.enrolment import EnrolmentClient
from worker.session.heartbeat import HeartbeatSender
from worker.session.lease import Lease
from worker.session.relist import InventoryLoop
from worker.session.reporter import Reporter
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

DRAIN_S = 14.0
"""Seconds that running operations get at shutdown, of the 25 that it may take in all."""
LAST_REPORTS_S = 3.0
"""Seconds that the last reports get after that."""


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What a worker keeps over all of its terms."""

    settings: WorkerSettings
    broker: Broker
    runtime: ContainerRuntime
    server: ModelServer
    operations: VerbRunner
    locks: JobLocks
    beat_s: float = HEARTBEAT_INTERVAL_S


class Incarnation:
    """One incarnation; `run` lasts as long as it does."""

    def __init__(self, parts: WorkerParts, lease: Lease) -> None:
        self._parts = parts
        self._lease = lease
        self._host_id = parts.settings.host_id
        self.incarnation = str(uuid_utils.compat.uuid7())
        self._enrolment = EnrolmentClient(parts.broker, self._host_id, self.incarnation)
        self._reporter = Reporter(
            parts.broker,
            host_id=self._host_id,
            incarnation=self.incarnation,
            ask_for_way=self._enrolment.say_hello,
        )
        self._registry = AttemptRegistry(self._reporter.put, held=lease.held)

    async def run(self, stop: asyncio.Event, *, engine_wait_s: float) -> None:
        """Work until `stop` is set or the lease is lost.

        At a stop what runs may end, and containers are left running. At a lost lease all attempts
        are stopped where they are and never heard of again, and what another host may be given is
        ended here. Raises what `BootRecovery.prepare` does; a side task that dies ends all of it.
        """
        async with TaskGroup() as tasks:
            attempts = AttemptRunner(
                self._parts.operations, self._registry, self._parts.locks, tasks
            )
            discards = Discards(
                self._parts.operations.containers, self._registry, self._parts.locks, tasks
            )
            reporting = tasks.create_task(self._reporter.run())
            serving = tasks.create_task(self._serve(attempts, discards, engine_wait_s))
            ends = (
                tasks.create_task(stop.wait()),
                tasks.create_task(self._lease.until_lost()),
            )
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in (*ends, serving):
                end.cancel()
            if not stop.is_set():
                log.warning(
                    "lease.lost", incarnation=self.incarnation, running=self._registry.running
                )
                await self._parts.operations.give_up(await attempts.abandon())
            # What serves may begin something as long as it has not ended.
            await asyncio.wait((serving,))
            discards.stop()
            if stop.is_set():
                await self._drain(attempts)
            reporting.cancel()

    async def _drain(self, attempts: AttemptRunner) -> None:
        log.info("worker.stopping", running=self._registry.running)
        await attempts.drain(DRAIN_S)
        if not await self._reporter.drain(LAST_REPORTS_S):
            log.warning("reports.lost_at_shutdown")

    async def _serve(
        self, attempts: AttemptRunner, discards: Discards, engine_wait_s: float
    ) -> None:
        """Boot, then take commands, beat and look around."""
        parts, settings = self._parts, self._parts.settings
        recovery = BootRecovery(
            broker=parts.broker,
            enrolment=self._enrolment,
            runtime=parts.runtime,
            server=parts.server,
            lease=self._lease,
            host_id=self._host_id,
            incarnation=self.incarnation,
            slots=settings.worker_slots,
            labels=settings.worker_labels,
        )
        await recovery.prepare(engine_wait_s=engine_wait_s)
        announced = asyncio.Event()

        async def announce() -> None:
            found = await recovery.announce()
            self._registry.saw_containers(
                (facts.labels.job_id, facts.labels.generation) for facts in found if facts.labels
            )
            announced.set()

        consumer = CommandConsumer(
            broker=parts.broker,
            enrolment=self._enrolment,
            reporter=self._reporter,
            registry=self._registry,
            attempts=attempts,
            announce=announce,
            held=self._lease.held,
            host_id=self._host_id,
            incarnation=self.incarnation,
        )
        control = ControlConsumer(
            broker=parts.broker,
            enrolment=self._enrolment,
            reporter=self._reporter,
            registry=self._registry,
            discards=discards,
            lease=self._lease,
            host_id=self._host_id,
            incarnation=self.incarnation,
        )
        heartbeat = HeartbeatSender(
            broker=parts.broker,
            runtime=parts.runtime,
            lease=self._lease,
            attached=lambda: consumer.attached and control.attached,
            stuck_s=lambda: self._reporter.stuck_s,
            compose=self._heartbeat,
        )
        relist = InventoryLoop(
            runtime=parts.runtime,
            server=parts.server,
            health=parts.operations.containers.health,
            registry=self._registry,
            discards=discards,
            reporter=self._reporter,
        )
        async with TaskGroup() as tasks:
            tasks.create_task(control.run())
            tasks.create_task(consumer.run())
            tasks.create_task(heartbeat.run(interval_s=parts.beat_s))
            await announced.wait()
            tasks.create_task(relist.run())

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            host_id=self._host_id,
            incarnation=self.incarnation,
            slots=self._parts.settings.worker_slots,
            labels=self._parts.settings.worker_labels,
            running=self._registry.running,
        )
