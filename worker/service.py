"""One worker from boot to shutdown: who runs, in which order, and how it ends."""

import asyncio

import structlog
import uuid_utils.compat

from modelyard.broker import Broker
from modelyard.contract.messages import Heartbeat
from worker.aftermath import Aftermath
from worker.attempts import Attempts
from worker.batch import Batch
from worker.cleanup import RETRY_S, Cleanup
from worker.consumer import Consumer
from worker.container_plan import PlanRules
from worker.containers import Containers
from worker.datasets import Datasets
from worker.desk import Desk
from worker.heartbeat import HeartbeatSender
from worker.hooks import ModelServer
from worker.images import Images
from worker.models import Models
from worker.operations import Operations
from worker.recovery import Recovery, declare_topology
from worker.references import AllowList
from worker.reporter import Reporter
from worker.runtime import ContainerRuntime
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

DRAIN_S = 20.0
"""Seconds that running operations get at shutdown."""
LAST_REPORTS_S = 4.0
"""Seconds that the last reports get after that."""


class Service:
    """The worker of one host; `run` lasts as long as the process."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        broker: Broker,
        runtime: ContainerRuntime,
        server: ModelServer,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._runtime = runtime
        self._server = server
        self._incarnation = str(uuid_utils.compat.uuid7())

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then end what runs; containers are left running.

        Raises what `Recovery.prepare` does. A side task that dies takes the process with it.
        """
        host_id = self._settings.host_id
        reporter = Reporter(
            self._broker,
            host_id=host_id,
            incarnation=self._incarnation,
            redeclare=lambda: declare_topology(self._broker, host_id),
        )
        desk = Desk(reporter.put)
        async with asyncio.TaskGroup() as tasks:
            operations = self._operations()
            attempts = Attempts(operations, desk, tasks)
            cleaning = tasks.create_task(operations.clean_up())
            reporting = tasks.create_task(reporter.run())
            serving = tasks.create_task(self._serve(reporter, desk, attempts))
            await stop.wait()
            log.info("worker.stopping", running=desk.running)
            serving.cancel()
            await asyncio.wait((serving,))
            await attempts.drain(DRAIN_S)
            if not await reporter.drain(LAST_REPORTS_S):
                log.warning("reports.lost_at_shutdown")
            reporting.cancel()
            cleaning.cancel()
        log.info("worker.stopped")

    async def _serve(self, reporter: Reporter, desk: Desk, attempts: Attempts) -> None:
        """Boot, then take commands and beat."""
        settings = self._settings
        recovery = Recovery(
            broker=self._broker,
            runtime=self._runtime,
            server=self._server,
            host_id=settings.host_id,
            incarnation=self._incarnation,
            slots=settings.worker_slots,
            labels=settings.worker_labels,
        )
        await recovery.prepare()

        async def announce() -> None:
            found = await recovery.announce()
            desk.saw_containers(
                (facts.labels.job_id, facts.labels.generation) for facts in found if facts.labels
            )

        consumer = Consumer(
            broker=self._broker,
            reporter=reporter,
            desk=desk,
            attempts=attempts,
            announce=announce,
            host_id=settings.host_id,
            incarnation=self._incarnation,
        )
        heartbeat = HeartbeatSender(
            broker=self._broker,
            runtime=self._runtime,
            attached=lambda: consumer.attached,
            stuck_s=lambda: reporter.stuck_s,
            compose=lambda: self._heartbeat(desk.running),
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(consumer.run())
            tasks.create_task(heartbeat.run())

    def _heartbeat(self, running: int) -> Heartbeat:
        return Heartbeat(
            host_id=self._settings.host_id,
            incarnation=self._incarnation,
            slots=self._settings.worker_slots,
            labels=self._settings.worker_labels,
            running=running,
        )

    def _operations(self) -> Operations:
        settings = self._settings
        return build_operations(
            self._runtime,
            self._server,
            rules=settings.plan_rules(),
            allowed=AllowList(settings.worker_allowed_images),
            dataset_roots=settings.worker_dataset_roots,
        )


def build_operations(  # noqa: PLR0913 - all that operations are wired from
    runtime: ContainerRuntime,
    server: ModelServer,
    *,
    rules: PlanRules,
    allowed: AllowList,
    dataset_roots: tuple[str, ...],
    cleanup_retry_s: float = RETRY_S,
) -> Operations:
    """Wire what performs commands; also for tests, over a fake engine."""
    datasets = Datasets(runtime, dataset_roots)
    containers = Containers(runtime, Images(runtime, allowed), datasets, server, rules)
    cleanup = Cleanup(containers, retry_s=cleanup_retry_s)
    return Operations(
        containers,
        Models(runtime, containers, server),
        Batch(runtime, containers),
        Aftermath(runtime, containers, cleanup),
        cleanup,
    )
