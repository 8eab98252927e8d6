"""The scheduling rules over traces: what they promise holds, and a broken rule is found."""

from random import Random

import pytest

from bench.simulator import traces
from bench.simulator.first_come import serve
from bench.simulator.rules import BrokenRuleError
from bench.simulator.traces import random_trace
from bench.simulator.world import World
from dispatcher.scheduling import making_room
from dispatcher.scheduling.making_room import RoomDecision
from modelyard.contract.capacity.ledger import DeviceRoom, Room
from modelyard.scheduling import leaving
from modelyard.scheduling.leaving import Stays
from modelyard.scheduling.survey import Rooms

SEEDS = range(50)
ONCE_BEYOND_THE_BOUND = (4342, 6857, 7045, 7223, 7777, 9179, 9520)
"""Traces in which loads waited for memory that they did not need, or that was kept for one that
lacked processors too, or for the turns of those that a more urgent one waited for, which the bound
did not count."""


@pytest.mark.parametrize("seed", [*SEEDS, *ONCE_BEYOND_THE_BOUND])
def test_no_rule_is_broken_in_random_traces(seed: int) -> None:
    outcome = World(random_trace(seed)).run()
    assert all(waited <= bound for waited, bound in outcome.room_waits)


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (World(random_trace(7)).run() for _ in range(2))
    assert (first.swaps, first.waits) == (second.swaps, second.waits)


@pytest.mark.parametrize("trace", [traces.steady, traces.one_hot])
def test_models_that_contend_are_swapped_far_less_than_first_come_first_served(
    trace: traces.Trace,
) -> None:
    scenario = trace(Random(1), 0.02)
    outcome = World(scenario).run()
    assert scenario.contended
    assert outcome.swaps <= 0.4 * serve(scenario, outcome.started).swaps
    assert all(waited <= bound for waited, bound in outcome.room_waits)


def _broken() -> bool:
    for seed in SEEDS:
        try:
            World(random_trace(seed)).run()
        except BrokenRuleError:
            return True
    return False


def test_a_room_that_is_too_large_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "has_devices", lambda *_, **__: True)
    monkeypatch.setattr(Rooms, "_with_devices", lambda _, rows, *__, **___: rows)
    monkeypatch.setattr(DeviceRoom, "takes", lambda *_: True)
    assert _broken()


def test_a_young_model_that_is_evicted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*asked: object) -> Stays | None:
        why = leaving.why_it_stays(*asked)  # type: ignore[arg-type]
        return None if why is Stays.YOUNG else why

    monkeypatch.setattr(making_room, "why_it_stays", careless)
    assert _broken()


def test_a_model_in_use_that_is_evicted_at_once_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*asked: object) -> Stays | None:
        why = leaving.why_it_stays(*asked)  # type: ignore[arg-type]
        return None if why is Stays.IN_USE else why

    monkeypatch.setattr(making_room, "why_it_stays", careless)
    assert _broken()


def test_an_operation_that_nobody_makes_room_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.simulator.world.decide", lambda *_, **__: RoomDecision())
    with pytest.raises(BrokenRuleError, match="never starts"):
        World(traces.one_hot(Random(1), 0.01)).run()
