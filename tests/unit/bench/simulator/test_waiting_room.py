"""Placements while much waits: they are those of a pass, over what it reads of the waiting room."""

from random import Random

import pytest

from bench.simulator.decisions import busy_fleet, keep_nothing
from bench.simulator.waiting_room import times_beside_waiting
from modelyard.scheduling.planning import URGENT


@pytest.mark.parametrize(("waiting", "looked_at"), [(0, 0), (20, 20), (1_000, URGENT)])
def test_each_pass_decides_on_the_most_urgent_ones_and_on_its_own(
    waiting: int, looked_at: int
) -> None:
    fleet = busy_fleet(20, 8, Random(1))
    times = times_beside_waiting(fleet, keep_nothing, waiting=waiting, passes=3)
    assert len(times.passes) == 3
    assert len(times.placements) == 3 * (looked_at + 1)
    assert all(took > 0 for took in times.passes)


def test_it_is_no_measure_if_what_is_to_be_placed_has_no_room() -> None:
    with pytest.raises(ValueError, match="should be placed"):
        times_beside_waiting(busy_fleet(1, 1, Random(1)), keep_nothing, waiting=10, passes=1)
