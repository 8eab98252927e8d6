"""From sections to the table of goals."""

from collections.abc import Sequence
from dataclasses import replace

from bench.goals import Measured, row_of_memory, rows
from bench.measuring import Section
from bench.report import Row


def section(
    system: str, what: str, rate: float, latencies_s: Sequence[float] = (), accepted: float = 0
) -> Section:
    """Return a section of 1,000 operations with this rate."""
    return Section(
        system=system,
        what=what,
        operations=1_000,
        seconds=1_000 / rate,
        cpu_ms={"gateway": 1.0 if what == "batches" else 2.0},
        rss_mib={"gateway": 100.0},
        accepted_seconds=1_000 / accepted if accepted else None,
        latencies_s=latencies_s,
    )


def measured(*, batches: float = 900, p50_s: float = 0.010, p99_s: float = 0.020) -> Measured:
    """Return two rounds; Taskiq makes 300/s, Celery 150/s and 5 ms one at a time."""
    latencies = [p50_s] * 98 + [p99_s] * 2
    one_round = [
        section("modelyard", "batches", batches),
        section("taskiq", "throughput", 300),
        section("celery", "throughput", 150),
        section("modelyard", "singles", 500, accepted=800),
        section("modelyard", "accepted", 900, accepted=900),
        section("bare", "accepted", 2_000, accepted=2_000),
        section("celery", "one at a time", 200, [0.005] * 100),
        section("modelyard", "one at a time", 90, latencies),
        section("modelyard", "constant rate", 90, latencies),
    ]
    return Measured(one_round * 2, model_p50_s=0.001, model_rate=9_000)


def row(table: Sequence[Row], goal: str) -> Row:
    """Return the row with this goal."""
    return next(one for one in table if one.goal == goal)


def test_ratios_are_taken_within_a_round_and_their_median_decides() -> None:
    table = rows(measured(batches=900))

    against_taskiq = row(table, ">= 3x Taskiq")
    assert against_taskiq.met is True
    assert against_taskiq.reached.startswith("3.00 (3.00-3.00)x Taskiq: 900")
    assert row(table, ">= 6x Celery").met is True
    assert row(rows(measured(batches=899)), ">= 3x Taskiq").met is False
    assert row(table, ">= 2x Taskiq").met is False


def test_the_models_own_time_is_taken_from_both_sides() -> None:
    # (11 - 1) / (5 - 1) is 2.5; without the subtraction it would be 2.2.
    assert row(rows(measured(p50_s=0.011)), "<= 2.5x Celery").met is True
    assert row(rows(measured(p50_s=0.0115)), "<= 2.5x Celery").met is False


def test_the_tail_is_compared_with_the_median() -> None:
    assert row(rows(measured(p50_s=0.01, p99_s=0.03)), "<= 3x p50").met is True
    assert row(rows(measured(p50_s=0.01, p99_s=0.031)), "<= 3x p50").met is False


def test_acceptance_is_compared_with_the_bare_endpoint() -> None:
    alone, busy = [one for one in rows(measured()) if one.goal == ">= 0.4x bare"]

    assert (alone.met, busy.met) == (True, True)
    assert "0.45" in alone.reached
    assert "0.40" in busy.reached


def test_cpu_is_the_median_of_the_rounds_by_kind() -> None:
    cpu = measured().cpu_ms()

    assert cpu["batches"] == {"gateway": 1.0}
    assert cpu["taskiq"] == {"gateway": 2.0}
    assert cpu["celery, one"] == {"gateway": 2.0}


def test_the_figures_have_percentiles_instead_of_all_latencies() -> None:
    figures = measured().sections[7].figures()

    assert figures["latency_ms"] == {"p50": 10.0, "p90": 10.0, "p99": 20.0, "p100": 20.0}
    assert "latencies_s" not in figures


def test_memory_is_the_most_after_any_load_and_is_in_the_figures() -> None:
    few, most = section("modelyard", "batches", 900), section("modelyard", "constant rate", 90)
    sections = [
        replace(few, rss_mib={"gateway": 150.0, "dispatcher": 170.0, "celery": 90.0}),
        replace(most, rss_mib={"gateway": 161.4, "dispatcher": 160.0, "celery": 80.0}),
    ]

    assert row_of_memory(sections).reached == "gateway 161, dispatcher 170"
    assert Measured(sections, 0.001, 9_000).figures()["memory_mib"] == {
        "gateway": 161.4,
        "dispatcher": 170.0,
        "celery": 90.0,
    }
