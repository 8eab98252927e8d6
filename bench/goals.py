"""The goals for the speed of `make bench`, and the rows of its table; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from bench.report import Row
from bench.statistics import percentile, with_spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.measuring import Section

_MS = 1_000
_TIMES_TASKIQ_BATCHES = 3.0
_TIMES_CELERY_BATCHES = 6.0
_TIMES_TASKIQ_SINGLES = 2.0
_MOST_TIMES_CELERY_P50 = 2.5
_MOST_TIMES_P50 = 3.0
_SHARE_OF_BARE = 0.4
_LEAST_MODEL_RATE = 5_000
_OWN = ("gateway", "dispatcher", "worker", "mongod", "rabbitmq")


@dataclass(frozen=True, slots=True)
class Measured:
    """All that a run has measured."""

    sections: Sequence[Section]
    model_p50_s: float
    """What the model server itself takes for one request."""
    model_rate: float
    """Requests per second that the model servers answer alone."""

    def figures(self) -> dict[str, object]:
        """Return all raw figures; of latencies their percentiles."""
        return {
            "model_p50_s": self.model_p50_s,
            "model_rate": self.model_rate,
            "memory_mib": greatest_memory_mib(self.sections),
            "sections": [one.figures() for one in self.sections],
        }

    def cpu_ms(self) -> dict[str, dict[str, float]]:
        """Return the median CPU milliseconds per operation, by kind of section and service."""
        kinds = dict.fromkeys((one.system, one.what) for one in self.sections)
        return {_label(*kind): _medians([one.cpu_ms for one in self.of(*kind)]) for kind in kinds}

    def of(self, system: str, what: str) -> list[Section]:
        """Return the sections of a kind, one for each round."""
        return [one for one in self.sections if (one.system, one.what) == (system, what)]

    def rates(self, system: str, what: str) -> list[float]:
        """Return their operations per second."""
        return [one.rate for one in self.of(system, what)]

    def accepted_rates(self, system: str, what: str) -> list[float]:
        """Return their acceptances per second."""
        return [
            one.operations / one.accepted_seconds
            for one in self.of(system, what)
            if one.accepted_seconds
        ]

    def latencies_s(self, system: str, what: str) -> list[float]:
        """Return the latencies of all rounds together."""
        return [value for one in self.of(system, what) for value in one.latencies_s]


def rows(measured: Measured) -> list[Row]:
    """Return the table: each goal beside what was reached, then what has no goal."""
    batches = measured.rates("modelyard", "batches")
    singles = measured.rates("modelyard", "singles")
    taskiq = measured.rates("taskiq", "throughput")
    celery = measured.rates("celery", "throughput")
    bare = measured.accepted_rates("bare", "accepted")
    return [
        _at_least("End to end, batches of 500", batches, taskiq, _TIMES_TASKIQ_BATCHES, "Taskiq"),
        _at_least("End to end, batches of 500", batches, celery, _TIMES_CELERY_BATCHES, "Celery"),
        _at_least(
            "End to end, single requests, 64 at once",
            singles, taskiq, _TIMES_TASKIQ_SINGLES, "Taskiq",
        ),
        *_one_at_a_time(measured),
        _at_least(
            "Accepted, single requests, 64 at once",
            measured.accepted_rates("modelyard", "accepted"), bare, _SHARE_OF_BARE, "bare",
        ),
        _at_least(
            "Accepted, while the accepted work is done",
            measured.accepted_rates("modelyard", "singles"), bare, _SHARE_OF_BARE, "bare",
        ),
        _at_half_load(measured),
        row_of_memory(measured.sections),
        Row("Taskiq, 2 processes", with_spread(taskiq, "/s")),
        Row("Celery, 2 processes", with_spread(celery, "/s")),
        Row("Bare FastAPI endpoint", with_spread(bare, "/s")),
        Row("Model servers alone, 64 at once", f"{measured.model_rate:,.0f}/s", ">= 5,000/s",
            measured.model_rate >= _LEAST_MODEL_RATE),
    ]  # fmt: skip


def greatest_memory_mib(sections: Iterable[Section]) -> dict[str, float]:
    """Return the most resident memory that each service had at the end of a section."""
    greatest: dict[str, float] = {}
    for one in sections:
        for name, mib in one.rss_mib.items():
            greatest[name] = max(mib, greatest.get(name, 0.0))
    return greatest


def row_of_memory(sections: Iterable[Section]) -> Row:
    """Show the memory of Modelyard and its servers; the worker's includes its watchdog."""
    mib = greatest_memory_mib(sections)
    reached = ", ".join(f"{name} {mib[name]:.0f}" for name in _OWN if name in mib)
    return Row("Memory, the most after a load, MiB", reached)


def _at_least(
    name: str, reached: Sequence[float], other: Sequence[float], goal: float, whom: str
) -> Row:
    """Compare round by round; the median decides."""
    ratios = [mine / theirs for mine, theirs in zip(reached, other, strict=True)]
    middle = percentile(ratios, 50)
    return Row(
        name,
        f"{with_spread(ratios, 'x', digits=2)} {whom}: {with_spread(reached, '/s')}",
        f">= {goal:g}x {whom}",
        middle >= goal,
    )


def _one_at_a_time(measured: Measured) -> list[Row]:
    own = measured.latencies_s("modelyard", "one at a time")
    celery = measured.latencies_s("celery", "one at a time")
    p50, p99 = percentile(own, 50), percentile(own, 99)
    celery_p50 = percentile(celery, 50)
    ratio = (p50 - measured.model_p50_s) / (celery_p50 - measured.model_p50_s)
    tail = p99 / p50
    return [
        Row(
            "One at a time, p50 without the model's time",
            f"{ratio:.1f}x Celery: {p50 * _MS:.1f} ms, Celery {celery_p50 * _MS:.1f} ms, "
            f"model {measured.model_p50_s * _MS:.1f} ms",
            f"<= {_MOST_TIMES_CELERY_P50:g}x Celery",
            ratio <= _MOST_TIMES_CELERY_P50,
        ),
        Row(
            "One at a time, p99",
            f"{tail:.1f}x p50: {p99 * _MS:.1f} ms",
            f"<= {_MOST_TIMES_P50:g}x p50",
            tail <= _MOST_TIMES_P50,
        ),
    ]


def _at_half_load(measured: Measured) -> Row:
    latencies = measured.latencies_s("modelyard", "constant rate")
    p50, p99 = percentile(latencies, 50), percentile(latencies, 99)
    return Row("At half of the rate of singles", f"p50 {p50 * _MS:.0f} ms, p99 {p99 * _MS:.0f} ms")


def _label(system: str, what: str) -> str:
    if system == "modelyard":
        return what
    return f"{system}, one" if what == "one at a time" else system


def _medians(usages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(one.get(name, 0.0) for one in usages) for name in usages[0]}
