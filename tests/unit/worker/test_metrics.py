"""What a worker measures of its attempts, its containers and its devices."""

import asyncio

from prometheus_client import CollectorRegistry

from modelyard.contract.capacity.offers import DeviceReading, DeviceTaint
from modelyard.contract.states import Verb
from modelyard.process.tasks import TaskGroup
from tests.support.metrics import value
from tests.support.worker.harness import VerbHarness
from worker.attempts.job_locks import JobLocks
from worker.attempts.registry import AttemptRegistry
from worker.execution.executor import AttemptRunner
from worker.metrics import WorkerMetrics, WorkerReadings


class Measured:
    """A worker's way from a command to its end, measured."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.registry = CollectorRegistry()
        metrics = WorkerMetrics(self.registry)
        self.harness = VerbHarness()
        self.attempts = AttemptRegistry(lambda _: None, phase_ended=metrics.phase_ended)
        self.attempts.on_decided = metrics.decided
        self.runner = AttemptRunner(self.harness.operations, self.attempts, JobLocks(), tasks)
        self.ended: asyncio.Queue[str] = asyncio.Queue()

        def on_ended(verb: str, state: str, code: str | None) -> None:
            metrics.attempt_ended(verb, state, code)
            self.ended.put_nowait(state)

        self.runner.on_ended = on_ended

    async def do(self, verb: Verb, **more: object) -> str:
        command = self.harness.command(verb, **more)  # type: ignore[arg-type]
        taken = self.attempts.take(command)
        assert taken.attempt is not None
        self.runner.start(taken.attempt)
        self.attempts.take(command)  # comes again
        async with asyncio.timeout(20):
            return await self.ended.get()

    def value(self, name: str, **labels: str) -> float:
        return value(self.registry, name, **labels)


async def test_attempts_are_counted_by_how_they_ended_with_the_time_in_each_phase() -> None:
    async with TaskGroup() as tasks:
        one = Measured(tasks)
        assert await one.do(Verb.DEPLOY_CREATE) == "SUCCEEDED"
        assert await one.do(Verb.DEPLOY_LOAD) == "SUCCEEDED"
        assert await one.do(Verb.INFER, input=1, job="other") == "FAILED"
    ended = "modelyard_worker_attempts_ended_total"
    assert one.value(ended, verb="DEPLOY_LOAD", state="SUCCEEDED", code="none") == 1
    assert one.value(ended, verb="INFER", state="FAILED", code="container_missing") == 1
    phases = "modelyard_worker_phase_seconds_count"
    assert one.value(phases, verb="DEPLOY_CREATE", phase="accepted") == 1
    assert one.value(phases, verb="DEPLOY_CREATE", phase="creating") == 1
    assert one.value(phases, verb="DEPLOY_LOAD", phase="loading") == 1
    commands = "modelyard_worker_commands_total"
    assert one.value(commands, decision="new") == 3
    assert one.value(commands, decision="repeated") == 3


def test_the_present_incarnation_is_read_when_somebody_scrapes() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    assert value(registry, "modelyard_worker_containers", state="running") == 0
    taint = DeviceTaint(memory=5, job_id="j-1")
    readings = [
        WorkerReadings(
            attached=True,
            running_attempts=2,
            lease_left_s=41.5,
            reports_waiting=3,
            reports_stuck_s=0.5,
            devices=(DeviceReading(uuid="GPU-1", memory_used=9, tainted=taint),),
        )
    ]
    metrics.incarnation(lambda: readings[-1])
    metrics.inventory(0.2, (4, 1))
    assert value(registry, "modelyard_worker_containers", state="running") == 4
    assert value(registry, "modelyard_worker_containers", state="stopped") == 1
    assert value(registry, "modelyard_worker_attached") == 1
    assert value(registry, "modelyard_worker_attempts_running") == 2
    assert value(registry, "modelyard_worker_lease_left_seconds") == 41.5
    assert value(registry, "modelyard_worker_reports_waiting") == 3
    assert value(registry, "modelyard_worker_device_memory_used_bytes", device="GPU-1") == 9
    assert value(registry, "modelyard_worker_device_tainted", device="GPU-1") == 1
    assert value(registry, "modelyard_worker_incarnations_total") == 1


def test_an_engine_that_is_away_leaves_the_last_counts() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    metrics.inventory(0.2, (4, 1))
    metrics.inventory(0.2, None)
    assert value(registry, "modelyard_worker_containers", state="running") == 4
    failed = "modelyard_worker_inventory_seconds_count"
    assert value(registry, failed, outcome="failed") == 1
