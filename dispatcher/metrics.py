"""What the dispatcher measures. docs/monitoring.md has a line on each metric.

Operations are counted from the events that the event log did not have yet: once each, whoever of
several dispatchers appends them, and however often a message comes again.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from modelyard.contract.messages import Event
from modelyard.contract.states import TERMINAL_STATES, SystemReason
from modelyard.metrics.process import FAST_BUCKETS, SIZE_BUCKETS, WORK_BUCKETS

NO_VERB = "none"
"""The verb of a request that could not be read."""
NO_CODE = "none"
"""The code of an operation that ended without an error."""
NOT_BEGUN = "not_begun"
"""The cause of another attempt after one that no worker had begun."""
OTHER_REASON = "other"
REASONS = frozenset(SystemReason)

PHASES = ("waiting", "starting", "running", "total")

Families = Iterable[GaugeMetricFamily]


class DispatcherMetrics:
    """Counters of one dispatcher, and gauges of what it holds in memory while it leads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "modelyard_operations_ended_total",
            "Operations that have ended.",
            ["verb", "state", "code"],
            registry=registry,
        )
        self._phases = Histogram(
            "modelyard_operation_phase_seconds",
            "Time of operations that have ended: waiting for their last dispatch, starting from "
            "there, running, and in total.",
            ["verb", "phase"],
            buckets=WORK_BUCKETS,
            registry=registry,
        )
        self._attempts = Counter(
            "modelyard_attempts_total",
            "Attempts that were dispatched to a host.",
            ["verb"],
            registry=registry,
        )
        self._retries = Counter(
            "modelyard_attempt_retries_total",
            "Attempts that were followed by another one, by the code of what had failed.",
            ["verb", "cause"],
            registry=registry,
        )
        self._own = Counter(
            "modelyard_own_operations_ended_total",
            "Operations of Modelyard itself that have ended, by why it made them: evictions, loads "
            "on demand, idle unloads, moves, recoveries.",
            ["verb", "reason", "state"],
            registry=registry,
        )
        self._fenced_off = Counter(
            "modelyard_reports_fenced_off_total",
            "Reports of workers that came too late to count.",
            ["reason"],
            registry=registry,
        )
        self._hosts_lost = Counter(
            "modelyard_hosts_lost_total", "Hosts that were given up.", registry=registry
        )
        self._corrections = Counter(
            "modelyard_job_corrections_total",
            "Jobs whose container was found to be otherwise than recorded.",
            ["state", "code"],
            registry=registry,
        )
        self._dead_letters = Counter(
            "modelyard_dead_letters_total",
            "Messages that were recorded as dead letters.",
            registry=registry,
        )
        self._sizes = Histogram(
            "modelyard_batch_size",
            "Messages, or events, that were handled with one write.",
            ["queue"],
            buckets=SIZE_BUCKETS,
            registry=registry,
        )
        self._seconds = Histogram(
            "modelyard_batch_seconds",
            "Time until a batch was durable, with all waiting for RabbitMQ and MongoDB.",
            ["queue"],
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self._sweep_failures = Counter(
            "modelyard_sweep_failures_total",
            "Repairs of the sweep that found MongoDB unavailable.",
            ["repair"],
            registry=registry,
        )
        self._sweeps = Histogram(
            "modelyard_sweep_seconds",
            "Time of one round of all repairs.",
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        # Looking up the series of labels costs as much as counting, so those of each end are kept.
        self._ended_of: dict[tuple[str, str, str], Counter] = {}
        self._phases_of: dict[str, tuple[Histogram, ...]] = {}
        self._counted: Mapping[str, Callable[[Event], None]] = {
            **{f"operation.{state.lower()}": self._operation_ended for state in TERMINAL_STATES},
            "operation.dispatched": self._dispatched,
            "operation.queued": self._queued,
            "operation.stale_report": self._fenced_off_one,
            "host.stale_report": self._fenced_off_one,
            "host.lost": lambda _: self._hosts_lost.inc(),
            "job.failed": self._job_corrected,
            "job.created": self._job_corrected,
        }
        self._leader: tuple[int, Callable[[], Families]] | None = None
        registry.register(_Leading(lambda: self._leader))

    def lead(self, term: int, gauges: Callable[[], Families]) -> Callable[[], None]:
        """Show this dispatcher as the leader, with these gauges; return how to end that."""
        leader = (term, gauges)
        self._leader = leader

        def end() -> None:
            if self._leader is leader:
                self._leader = None

        return end

    def recorded(self, events: Iterable[Event], new: Collection[str]) -> None:
        """Count the events whose ids are `new` to the event log."""
        for event in events:
            if event.event_id not in new:
                continue
            count = self._counted.get(event.type)
            if count is not None:
                count(event)

    def _operation_ended(self, event: Event) -> None:
        verb, state = event.verb or NO_VERB, str(event.state)
        code = event.error.code.value if event.error else NO_CODE
        key = (verb, state, code)
        ended = self._ended_of.get(key)
        if ended is None:
            ended = self._ended_of[key] = self._ended.labels(*key)
        ended.inc()
        if (reason := event.detail.get("reason")) is not None:
            first = str(reason).partition(":")[0]
            known = first if first in REASONS else OTHER_REASON
            self._own.labels(verb, known, state).inc()
        phases = self._phases_of.get(verb)
        if phases is None:
            phases = tuple(self._phases.labels(verb, phase) for phase in PHASES)
            self._phases_of[verb] = phases
        times = (
            (event.accepted_at, event.dispatched_at or event.finished_at),
            (event.dispatched_at, event.started_at),
            (event.started_at, event.finished_at),
            (event.accepted_at, event.finished_at),
        )
        for phase, (begun, over) in zip(phases, times, strict=True):
            if begun is not None and over is not None:
                phase.observe(_between(begun, over))

    def _dispatched(self, event: Event) -> None:
        self._attempts.labels(event.verb or NO_VERB).inc()

    def _queued(self, event: Event) -> None:
        """Count what is queued again: it had an attempt before."""
        if event.epoch:
            cause = event.error.code.value if event.error else NOT_BEGUN
            self._retries.labels(event.verb or NO_VERB, cause).inc()

    def _fenced_off_one(self, event: Event) -> None:
        self._fenced_off.labels(str(event.detail.get("why"))).inc()

    def _job_corrected(self, event: Event) -> None:
        """Count what no report of an operation said."""
        if event.operation_id is None:
            code = event.error.code.value if event.error else NO_CODE
            self._corrections.labels(str(event.state), code).inc()

    def dead_letters(self, count: int) -> None:
        """Count dead letters that were recorded."""
        self._dead_letters.inc(count)

    def handled(self, queue: str, size: int, seconds: float) -> None:
        """Count a batch of messages of a queue, or of events."""
        self._sizes.labels(queue).observe(size)
        self._seconds.labels(queue).observe(seconds)

    def swept(self, seconds: float) -> None:
        """Count a round of the sweep."""
        self._sweeps.observe(seconds)

    def repair_failed(self, name: str) -> None:
        """Count a repair that could not use MongoDB."""
        self._sweep_failures.labels(name).inc()


class _Leading(Collector):
    """Tells at each scrape whether this dispatcher leads, and if so, what it holds in memory."""

    def __init__(self, leader: Callable[[], tuple[int, Callable[[], Families]] | None]) -> None:
        self._leader = leader

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("modelyard_dispatcher_leading", "")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        leader = self._leader()
        yield GaugeMetricFamily(
            "modelyard_dispatcher_leading",
            "1 while this dispatcher leads, 0 while it stands by.",
            value=float(leader is not None),
        )
        if leader is not None:
            term, gauges = leader
            yield GaugeMetricFamily(
                "modelyard_dispatcher_term", "The number of the leader's term.", value=term
            )
            yield from gauges()


def _between(begun: datetime, ended: datetime) -> float:
    """Return seconds; the clocks of two processes may differ by a little."""
    return max(0.0, (ended - begun).total_seconds())
