"""A simulated host: a worker's real session, and verbs that take effect in memory only.

Everything that a worker says and hears is real: `Incarnation` boots, takes commands, reports, sends
heartbeats and inventories. What its verbs would do to containers is only remembered.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, cast

from prometheus_client import CollectorRegistry

from bench.scale.engine import SimulatedEngine
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from worker.attempts.attempt import Attempt, Outcome
from worker.attempts.cancellation import AttemptCancelledError
from worker.attempts.job_locks import JobLocks
from worker.containers.datasets import Datasets
from worker.devices.declared import DeclaredDevices
from worker.devices.watch import DeviceWatch
from worker.engine.image_references import AllowList
from worker.execution.batch import Batch
from worker.execution.cleanup import Cleanup
from worker.execution.failures import FailureOutcomes
from worker.execution.large_contents import LargeContents
from worker.execution.models import Models
from worker.execution.verbs import VerbRunner
from worker.metrics import WorkerMetrics
from worker.model_server.results import ResultReader
from worker.service import build_containers, build_memory_watch
from worker.session.host_offer import HostOffer
from worker.session.incarnation import Incarnation, WorkerParts
from worker.session.lease import Lease
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from modelyard.broker import Broker
    from worker.attempts.journal import AttemptJournal
    from worker.engine.protocol import ContainerRuntime
    from worker.model_server.client import ModelServer

HELD = "held-"
"""How the ids of jobs begin whose loads never end, so that operations wait behind them."""
RESULT = '{"outputs":[]}'

_LEADS_TO = {
    Verb.DEPLOY_CREATE: JobState.CREATED,
    Verb.DEPLOY_LOAD: JobState.LOADED,
    Verb.DEPLOY_UNLOAD: JobState.CREATED,
    Verb.TERMINATE: JobState.TERMINATED,
    Verb.TEMP: JobState.TERMINATED,
}


class SimulatedVerbs(VerbRunner):
    """Verbs that succeed at once, except loads of held jobs, which last until they are cancelled.

    An INFER takes no time: what is measured is all that is around it.
    """

    def __init__(
        self, engine: SimulatedEngine, server: ModelServer, settings: WorkerSettings
    ) -> None:
        """Wire what a worker has; of all that only the engine is ever used."""
        self._engine = engine
        runtime, results = cast("ContainerRuntime", engine), ResultReader()
        containers = build_containers(
            runtime,
            server,
            Datasets(runtime, ()),
            rules=settings.plan_rules(),
            allowed=AllowList(("*",)),
            memory=build_memory_watch(runtime, DeclaredDevices(()), settings.unload_rules()),
        )
        cleanup = Cleanup(containers)
        super().__init__(
            containers,
            Models(runtime, containers, server, results),
            Batch(runtime, containers, results, LargeContents()),
            FailureOutcomes(runtime, containers, cleanup),
            cleanup,
        )

    async def perform(self, attempt: Attempt) -> Outcome:
        """Return the outcome of a verb that had no difficulty."""
        command = attempt.command
        if command.verb is Verb.DEPLOY_LOAD and command.job_id.startswith(HELD):
            return await _hold(attempt)
        container_id = self._engine.create(command)
        if command.verb is Verb.INFER:
            attempt.report(Phase.INFERRING, container_id=container_id)
        if command.verb in {Verb.TERMINATE, Verb.TEMP}:
            self._engine.remove(command)
        return Outcome(
            OperationState.SUCCEEDED,
            _LEADS_TO.get(command.verb),
            container_id,
            result_json=RESULT if command.verb in {Verb.INFER, Verb.TEMP} else None,
        )


async def _hold(attempt: Attempt) -> Outcome:
    attempt.report(Phase.LOADING)
    try:
        async with attempt.cancellation.scope():
            await asyncio.Event().wait()
    except AttemptCancelledError as cancellation:
        return Outcome(OperationState.CANCELLED, JobState.CREATED, error=cancellation.info())
    raise AssertionError("An event that nobody sets was set.")


async def run_host(
    broker: Broker, server: ModelServer, journal: AttemptJournal, host_id: str, *, slots: int
) -> None:
    """Run the worker of a simulated host until cancelled; a lost lease begins a new incarnation.

    No request is ever sent to `server`, which all hosts may share.
    """
    settings = WorkerSettings(host_id=host_id, worker_slots=slots, worker_devices=())
    engine = SimulatedEngine(host_id)
    verbs = SimulatedVerbs(engine, server, settings)
    parts = WorkerParts(
        settings=settings,
        broker=broker,
        runtime=cast("ContainerRuntime", engine),
        server=server,
        containers=verbs.containers,
        verbs=verbs,
        locks=JobLocks(),
        journal=journal,
        offer=HostOffer(settings, DeviceWatch(DeclaredDevices(()), verbs.containers.taints)),
        metrics=WorkerMetrics(CollectorRegistry()),
    )
    while True:
        await Incarnation(parts, Lease()).run(asyncio.Event(), engine_wait_s=math.inf)
