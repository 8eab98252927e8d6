"""The worker process: it runs one incarnation after another until it is asked to stop."""

import asyncio
import math
from collections.abc import Callable
from contextlib import aclosing

import structlog

from modelyard.broker import Broker
from modelyard.contract.topology import HEARTBEAT_INTERVAL_S
from modelyard.process.tasks import TaskGroup
from worker.attempts.job_locks import JobLocks
from worker.containers.datasets import Datasets
from worker.containers.disk import DiskWatch
from worker.containers.images import Images
from worker.containers.lifecycle import ContainerLifecycle
from worker.engine.image_references import AllowList
from worker.engine.plan import PlanRules
from worker.engine.protocol import ContainerRuntime
from worker.execution.batch import Batch
from worker.execution.cleanup import RETRY_S, Cleanup
from worker.execution.failures import FailureOutcomes
from worker.execution.models import Models
from worker.execution.verbs import VerbRunner
from worker.model_server.client import ModelServer
from worker.model_server.results import ResultReader
from worker.session.boot import ENGINE_WAIT_S
from worker.session.incarnation import Incarnation, WorkerParts
from worker.session.lease import FENCE_S, Lease
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)


class Worker:
    """The worker of one host; `run` lasts as long as the process."""

    def __init__(  # noqa: PLR0913 - the clients and time limits of a process
        self,
        settings: WorkerSettings,
        *,
        broker: Broker,
        runtime: ContainerRuntime,
        server: ModelServer,
        on_renewal: Callable[[float], None] = lambda _: None,
        fence_s: float = FENCE_S,
        beat_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        """Wire the parts; nothing starts before `run`.

        A lease lasts `fence_s` seconds, and a heartbeat renews it every `beat_s` seconds. Each
        renewal calls `on_renewal` with its time by `uptime_s`.
        """
        self._fence_s = fence_s
        self._on_renewal = on_renewal
        self._results = ResultReader()
        operations = build_operations(
            runtime,
            server,
            self._results,
            rules=settings.plan_rules(),
            allowed=AllowList(settings.worker_allowed_images),
            dataset_roots=settings.worker_dataset_roots,
            allowed_volumes=settings.worker_allowed_volumes,
        )
        self._disk = DiskWatch(runtime, operations.containers.health)
        self._parts = WorkerParts(
            settings=settings,
            broker=broker,
            runtime=runtime,
            server=server,
            operations=operations,
            locks=JobLocks(),
            beat_s=beat_s,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then end running attempts; containers keep running.

        A lost lease ends the incarnation, and the worker begins a new one. Raises what
        `BootRecovery.prepare` raises. A background task that fails ends the process.
        """
        async with aclosing(self._results):
            await self._run_terms(stop)
        log.info("worker.stopped")

    async def _run_terms(self, stop: asyncio.Event) -> None:
        engine_wait_s = ENGINE_WAIT_S
        async with TaskGroup() as tasks:
            cleaning = tasks.create_task(self._parts.operations.clean_up())
            measuring = tasks.create_task(self._disk.run())
            while not stop.is_set():
                lease = Lease(seconds=self._fence_s, on_renewal=self._on_renewal)
                await Incarnation(self._parts, lease).run(stop, engine_wait_s=engine_wait_s)
                # The engine has worked before, so the next incarnation waits until it is back.
                engine_wait_s = math.inf
            cleaning.cancel()
            measuring.cancel()


def build_operations(  # noqa: PLR0913 - everything that a VerbRunner needs
    runtime: ContainerRuntime,
    server: ModelServer,
    results: ResultReader,
    *,
    rules: PlanRules,
    allowed: AllowList,
    dataset_roots: tuple[str, ...],
    allowed_volumes: tuple[str, ...] = (),
    cleanup_retry_s: float = RETRY_S,
) -> VerbRunner:
    """Return a `VerbRunner` over this engine; tests pass a fake engine."""
    datasets = Datasets(runtime, dataset_roots, allowed_volumes)
    containers = ContainerLifecycle(runtime, Images(runtime, allowed), datasets, server, rules)
    cleanup = Cleanup(containers, retry_s=cleanup_retry_s)
    return VerbRunner(
        containers,
        Models(runtime, containers, server, results),
        Batch(runtime, containers, results),
        FailureOutcomes(runtime, containers, cleanup),
        cleanup,
    )
