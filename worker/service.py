"""The worker process: it runs one incarnation after another until it is asked to stop."""

import asyncio
import math
from collections.abc import Callable
from contextlib import aclosing

import structlog
from prometheus_client import CollectorRegistry

from modelyard.broker import Broker
from modelyard.process.tasks import TaskGroup
from worker.attempts.job_locks import JobLocks
from worker.attempts.journal import AttemptJournal
from worker.containers.datasets import Datasets
from worker.containers.disk import DiskWatch
from worker.containers.given_back import GivenBack, MemoryWatch, UnloadRules
from worker.containers.images import Images
from worker.containers.lifecycle import ContainerLifecycle
from worker.containers.memory_meter import MemoryMeter
from worker.containers.planning import PlanRules
from worker.devices.declared import DeclaredDevices
from worker.devices.holders import DeviceHolders
from worker.devices.nvml import NvmlDevices
from worker.devices.protocol import DeviceInventory
from worker.devices.taints import DeviceTaints
from worker.devices.watch import DeviceWatch
from worker.engine.image_references import AllowList
from worker.engine.protocol import ContainerRuntime
from worker.execution.batch import Batch
from worker.execution.cleanup import RETRY_S, Cleanup
from worker.execution.failures import FailureOutcomes
from worker.execution.large_contents import LargeContents
from worker.execution.models import Models
from worker.execution.verbs import VerbRunner
from worker.metrics import WorkerMetrics
from worker.model_server.client import ModelServer
from worker.model_server.results import ResultReader
from worker.session.boot import ENGINE_WAIT_S
from worker.session.host_offer import HostOffer
from worker.session.incarnation import Incarnation, WorkerParts
from worker.session.lease import Lease
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)


class Worker:
    """The worker of one host; `run` lasts as long as the process."""

    def __init__(  # noqa: PLR0913 - what is made before a worker, each by its own package
        self,
        settings: WorkerSettings,
        *,
        broker: Broker,
        runtime: ContainerRuntime,
        server: ModelServer,
        journal: AttemptJournal,
        new_lease: Callable[[], Lease] = Lease,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        """Wire the parts; nothing starts before `run`. Each incarnation gets a lease of its own.

        Without `metrics` what is counted is not to be seen.
        """
        self._new_lease = new_lease
        self._results = ResultReader()
        inventory: DeviceInventory = (
            NvmlDevices()
            if settings.worker_devices is None
            else DeclaredDevices(settings.worker_devices)
        )
        containers = build_containers(
            runtime,
            server,
            Datasets(runtime, settings.worker_dataset_roots, settings.worker_allowed_volumes),
            rules=settings.plan_rules(),
            allowed=AllowList(settings.worker_allowed_images),
            memory=build_memory_watch(runtime, inventory, settings.unload_rules()),
        )
        self._disk = DiskWatch(runtime, containers.health)
        self._devices = DeviceWatch(inventory, containers.taints)
        self._parts = WorkerParts(
            settings=settings,
            broker=broker,
            runtime=runtime,
            server=server,
            containers=containers,
            verbs=build_verbs(runtime, server, self._results, containers),
            locks=JobLocks(),
            journal=journal,
            offer=HostOffer(settings, self._devices),
            metrics=metrics or WorkerMetrics(CollectorRegistry()),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then end running attempts; containers keep running.

        A lost lease ends the incarnation, and the worker begins a new one. Raises what
        `BootRecovery.prepare` raises. A background task that fails ends the process.
        """
        async with aclosing(self._results):
            await self._run_incarnations(stop)
        log.info("worker.stopped")

    async def _run_incarnations(self, stop: asyncio.Event) -> None:
        engine_wait_s = ENGINE_WAIT_S
        async with TaskGroup() as tasks:
            cleaning = tasks.create_task(self._parts.verbs.clean_up())
            measuring = tasks.create_task(self._disk.run())
            watching = tasks.create_task(self._parts.containers.running.run())
            reading = tasks.create_task(self._devices.run())
            metering = tasks.create_task(self._parts.containers.meter.run())
            looking = tasks.create_task(self._parts.containers.local_content.run())
            while not stop.is_set():
                incarnation = Incarnation(self._parts, self._new_lease())
                await incarnation.run(stop, engine_wait_s=engine_wait_s)
                # The engine has worked before, so the next incarnation waits until it is back.
                engine_wait_s = math.inf
            cleaning.cancel()
            measuring.cancel()
            watching.cancel()
            reading.cancel()
            metering.cancel()
            looking.cancel()


def build_containers(
    runtime: ContainerRuntime,
    server: ModelServer,
    datasets: Datasets,
    *,
    rules: PlanRules,
    allowed: AllowList,
    memory: MemoryWatch,
) -> ContainerLifecycle:
    """Return the container steps over this engine; tests pass a fake engine."""
    return ContainerLifecycle(runtime, Images(runtime, allowed), datasets, server, rules, memory)


def build_memory_watch(
    runtime: ContainerRuntime, inventory: DeviceInventory, rules: UnloadRules
) -> MemoryWatch:
    """Return what watches the memory of this host; tests pass fakes."""
    meter = MemoryMeter(runtime, DeviceHolders(inventory))
    taints = DeviceTaints(inventory, within_s=rules.within_s)
    return MemoryWatch(meter, GivenBack(meter, rules), taints)


def build_verbs(
    runtime: ContainerRuntime,
    server: ModelServer,
    results: ResultReader,
    containers: ContainerLifecycle,
    *,
    cleanup_retry_s: float = RETRY_S,
) -> VerbRunner:
    """Return what executes commands over this engine; tests pass a fake engine."""
    cleanup = Cleanup(containers, retry_s=cleanup_retry_s)
    return VerbRunner(
        containers,
        Models(runtime, containers, server, results),
        Batch(runtime, containers, results, LargeContents()),
        FailureOutcomes(runtime, containers, cleanup),
        cleanup,
    )
