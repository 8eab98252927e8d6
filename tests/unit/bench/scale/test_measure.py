"""What an operation costs, with the idle cost and without."""

import pytest

from bench.scale.load import NotEndedError, Throughput
from bench.scale.measure import PACE_PER_S, paced


def test_the_idle_cost_of_the_same_seconds_is_taken_off() -> None:
    found = paced(
        Throughput(operations=1_500, seconds=20.0, submitted=1_490),
        used={"dispatcher": 3.0, "load": 0.15},
        idle_cpu={"dispatcher": 0.075},
    )

    assert found.cpu_ms == {"dispatcher": 2.0, "load": 0.1}
    assert found.cpu_ms_less_idle == {"dispatcher": 1.0, "load": 0.1}
    assert found.submitted_per_s == 74.5
    assert found.at_rate


@pytest.mark.parametrize(
    ("share", "at_rate"), [(0.96, True), (0.94, False), (1.04, True), (1.2, False)]
)
def test_a_fleet_is_at_the_rate_if_about_as_many_operations_are_sent_and_end(
    share: float, *, at_rate: bool
) -> None:
    at_pace, other = round(PACE_PER_S * 20), round(PACE_PER_S * share * 20)

    assert paced(Throughput(other, 20.0, submitted=at_pace), {}, {}).at_rate is at_rate
    assert paced(Throughput(at_pace, 20.0, submitted=other), {}, {}).at_rate is at_rate


def test_without_operations_nothing_is_divided() -> None:
    with pytest.raises(NotEndedError):
        paced(Throughput(operations=0, seconds=20.0, submitted=0), {"dispatcher": 1.0}, {})
