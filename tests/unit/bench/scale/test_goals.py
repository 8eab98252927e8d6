"""The smallest size is compared with the worst of the larger ones, at the same rate."""

from bench.report import Row
from bench.scale.goals import (
    rows_at_same_rate,
    rows_of_costs,
    rows_of_hosts,
    rows_of_takeovers,
    rows_of_waiting,
)
from bench.scale.measure import PACE_PER_S, Measurement, Paced, Takeover
from bench.scale.stack import ACTIVE

IDLE = {10: {ACTIVE: 0.01}, 200: {ACTIVE: 0.03}, 2_000: {ACTIVE: 0.2}}


def measured(
    *, cpu_ms: float = 2.0, per_s: float = 100.0, p50: float = 50.0, mib: float = 100.0
) -> Measurement:
    return Measurement(per_s, {ACTIVE: cpu_ms}, {ACTIVE: mib}, p50, 2 * p50)


def goals_in(rows: list[Row]) -> dict[str, tuple[str, bool | None]]:
    return {row.name: (row.reached, row.met) for row in rows if row.goal}


def at_same_rate(
    *, cpu_ms: float, less_idle: float = 1.0, per_s: float = PACE_PER_S, sent: float = PACE_PER_S
) -> Paced:
    return Paced(sent, per_s, {ACTIVE: cpu_ms}, {ACTIVE: less_idle})


def test_the_goal_is_held_against_all_that_an_operation_costs_at_the_same_rate() -> None:
    by_hosts = {10: measured(cpu_ms=0.5), 200: measured(), 2_000: measured(cpu_ms=9.0)}
    paced = {
        10: at_same_rate(cpu_ms=2.0, less_idle=1.0),
        200: at_same_rate(cpu_ms=2.5, less_idle=1.1),
        2_000: at_same_rate(cpu_ms=2.2, less_idle=1.3),
    }

    rows = rows_of_costs(paced, by_hosts)

    assert goals_in(rows) == {
        "10 -> 2,000 hosts: cost per operation, same rate": ("1.25x at 200", False)
    }
    assert [(row.name, row.reached, row.met) for row in rows[1:]] == [
        ("... without the idle cost", "1.30x at 2,000", None),
        ("... at the rate that each fleet reaches", "18.00x at 2,000", None),
    ]


def test_a_fleet_that_is_not_at_the_rate_does_not_meet_the_goal() -> None:
    paced = {10: at_same_rate(cpu_ms=2.0), 2_000: at_same_rate(cpu_ms=2.0, per_s=60.0)}

    [held, _] = rows_of_costs(paced, {})

    assert (held.reached, held.met) == ("1.00x at 2,000; not at this rate: 2,000", False)
    assert rows_at_same_rate(paced)[1].reached.endswith(f"{PACE_PER_S:.0f}/s sent, 60/s ended")


def test_a_smallest_fleet_that_costs_nothing_is_not_comparable() -> None:
    paced = {
        10: at_same_rate(cpu_ms=2.0, less_idle=-0.1),
        200: at_same_rate(cpu_ms=2.0, less_idle=0.5),
    }

    [_, without_idle] = rows_of_costs(paced, {})

    assert without_idle.reached == "not comparable"


def test_the_load_that_could_not_send_at_the_rate_is_named_with_what_it_sent() -> None:
    paced = {10: at_same_rate(cpu_ms=2.0), 200: at_same_rate(cpu_ms=2.0, sent=55.0, per_s=55.0)}

    [held, _] = rows_of_costs(paced, {})

    assert held.reached.endswith("not at this rate: 200")
    assert rows_at_same_rate(paced)[1].name == f"200 hosts at {PACE_PER_S:.0f}/s"
    assert rows_at_same_rate(paced)[1].reached.endswith("55/s sent, 55/s ended")


def test_one_fleet_alone_reaches_no_goal() -> None:
    assert goals_in(rows_of_hosts({10: measured()}, IDLE)) == {}
    assert rows_of_costs({10: at_same_rate(cpu_ms=1.0)}, {10: measured()}) == []
    assert goals_in(rows_of_waiting({1_000: measured()})) == {}
    assert rows_of_hosts({}, {}) == rows_of_waiting({}) == rows_of_takeovers(0, 0, []) == []
    assert rows_at_same_rate({}) == rows_of_costs({}, {}) == []


def test_throughput_latency_and_memory_are_compared_where_each_is_worst() -> None:
    rows = rows_of_waiting(
        {
            1_000: measured(per_s=120.0, p50=50.0, mib=100.0),
            10_000: measured(per_s=100.0, p50=40.0, mib=100.0),
            100_000: measured(per_s=130.0, p50=40.0, mib=155.0),
            1_000_000: measured(per_s=110.0, p50=80.0, mib=140.0),
        }
    )

    assert goals_in(rows) == {
        "1,000 -> 1,000,000 waiting: throughput": ("1.20x at 10,000", True),
        "1,000 -> 1,000,000 waiting: latency, p50": ("1.60x at 1,000,000", False),
        "1,000 -> 1,000,000 waiting: dispatcher memory": ("1.55x at 100,000", False),
    }


def test_a_larger_size_that_is_better_is_not_worse_by_anything() -> None:
    rows = rows_of_waiting({10: measured(per_s=100.0), 20: measured(per_s=125.0)})

    assert goals_in(rows)["10 -> 20 waiting: throughput"] == ("0.80x at 20", True)


def test_the_slowest_takeover_counts() -> None:
    takeovers = [Takeover(5.5, 5.9, 9.0), Takeover(4.5, 9.6, 12.0)]

    first, killed, _ = rows_of_takeovers(100_000, 2_000, takeovers)

    assert (first.reached, first.met) == ("0.4, 5.1 s", False)
    assert killed.reached == "5.9, 9.6 s"
