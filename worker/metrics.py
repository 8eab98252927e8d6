"""What a worker measures. docs/monitoring.md has a line on each metric."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from modelyard.contract.capacity.offers import DeviceReading
from modelyard.contract.states import Phase, Verb
from modelyard.metrics.process import FAST_BUCKETS, WORK_BUCKETS

NO_CODE = "none"
"""The code of an attempt that ended without an error."""
BEFORE = "accepted"
"""The phase of an attempt before its first one: it waits for its job's lock."""


@dataclass(frozen=True, slots=True)
class WorkerReadings:
    """What a worker is at, as read when somebody scrapes."""

    attached: bool
    """True while commands come in."""
    running_attempts: int
    lease_left_s: float | None
    """Seconds until the lease is lost if it is not renewed; None before it begins."""
    reports_waiting: int
    reports_stuck_s: float
    devices: tuple[DeviceReading, ...]


class WorkerMetrics:
    """Counters of one worker, and gauges of its present incarnation."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "modelyard_worker_attempts_ended_total",
            "Attempts that have ended on this host.",
            ["verb", "state", "code"],
            registry=registry,
        )
        self._phases = Histogram(
            "modelyard_worker_phase_seconds",
            "Time of attempts in each of their phases.",
            ["verb", "phase"],
            buckets=WORK_BUCKETS,
            registry=registry,
        )
        self._phase_of: dict[tuple[str, str], Histogram] = {}
        self._commands = Counter(
            "modelyard_worker_commands_total",
            "Commands by what was decided about them.",
            ["decision"],
            registry=registry,
        )
        self._inventory_seconds = Histogram(
            "modelyard_worker_inventory_seconds",
            "Time to list the containers and to ask their model servers.",
            ["outcome"],
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self._incarnations = Counter(
            "modelyard_worker_incarnations_total",
            "Incarnations that this process has begun; more than one: its lease was lost.",
            registry=registry,
        )
        self._containers: dict[str, int] = {"running": 0, "stopped": 0}
        self._readings: Callable[[], WorkerReadings] | None = None
        registry.register(_Present(self))

    def incarnation(self, readings: Callable[[], WorkerReadings]) -> None:
        """Count a new incarnation, and read its gauges from now on."""
        self._incarnations.inc()
        self._readings = readings

    def phase_ended(self, verb: Verb, phase: Phase | None, seconds: float) -> None:
        """Count that an attempt has left a phase."""
        key = (verb.value, phase.value if phase else BEFORE)
        histogram = self._phase_of.get(key)
        if histogram is None:
            histogram = self._phase_of[key] = self._phases.labels(*key)
        histogram.observe(seconds)

    def attempt_ended(self, verb: str, state: str, code: str | None) -> None:
        """Count an attempt that has ended."""
        self._ended.labels(verb, state, code or NO_CODE).inc()

    def decided(self, decision: str) -> None:
        """Count a command by what was decided about it."""
        self._commands.labels(decision).inc()

    def inventory(self, seconds: float, found: tuple[int, int] | None) -> None:
        """Count an inventory with its running and stopped containers; None: the engine is away."""
        self._inventory_seconds.labels("failed" if found is None else "listed").observe(seconds)
        if found is not None:
            self._containers["running"], self._containers["stopped"] = found

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; for the registry."""
        containers = GaugeMetricFamily(
            "modelyard_worker_containers",
            "Containers of Modelyard on this host, in its last inventory.",
            labels=["state"],
        )
        for state, count in self._containers.items():
            containers.add_metric([state], count)
        yield containers
        if self._readings is None:
            return
        now = self._readings()
        yield GaugeMetricFamily(
            "modelyard_worker_attached",
            "1 while this worker receives commands, else 0.",
            value=float(now.attached),
        )
        yield GaugeMetricFamily(
            "modelyard_worker_attempts_running", "Attempts that run.", value=now.running_attempts
        )
        if now.lease_left_s is not None:
            yield GaugeMetricFamily(
                "modelyard_worker_lease_left_seconds",
                "Time until this worker gives up its host if no heartbeat is confirmed.",
                value=now.lease_left_s,
            )
        yield GaugeMetricFamily(
            "modelyard_worker_reports_waiting",
            "Reports that RabbitMQ has not confirmed yet.",
            value=now.reports_waiting,
        )
        yield GaugeMetricFamily(
            "modelyard_worker_reports_stuck_seconds",
            "For how long reports have been waiting without any confirmation.",
            value=now.reports_stuck_s,
        )
        used = GaugeMetricFamily(
            "modelyard_worker_device_memory_used_bytes",
            "Memory of a device in use by anyone, as measured.",
            labels=["device"],
        )
        tainted = GaugeMetricFamily(
            "modelyard_worker_device_tainted",
            "1 while memory of a container that has ended is still taken, else 0.",
            labels=["device"],
        )
        for device in now.devices:
            used.add_metric([device.uuid], device.memory_used)
            tainted.add_metric([device.uuid], float(device.tainted is not None))
        yield used
        yield tainted


class _Present(Collector):
    """Reads the gauges at each scrape."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("modelyard_worker_containers", "")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        return self._metrics.read()
