"""The scheduling rules over traces: what they promise holds, and a broken rule is found."""

from datetime import datetime
from random import Random

import pytest

from bench.simulator import traces, world
from bench.simulator.first_come import serve
from bench.simulator.outcome import Totals
from bench.simulator.rules import BrokenRuleError
from bench.simulator.traces import random_trace
from bench.simulator.world import World
from dispatcher.scheduling import making_room
from dispatcher.scheduling.making_room import RoomDecision
from modelyard.contract.capacity.ledger import DeviceRoom, Room
from modelyard.scheduling import leaving
from modelyard.scheduling.leaving import Stays
from modelyard.scheduling.survey import Rooms
from modelyard.store.records import JobLine, JobRecord

SEEDS = range(50)
IDLE_LATE_S = 2.0
ONCE_BEYOND_THE_BOUND = (4342, 6857, 7045, 7223, 7777, 9179, 9520)
"""Traces in which loads waited for memory that they did not need, or that was kept for one that
lacked processors too, or for the turns of those that a more urgent one waited for, which the bound
did not count."""


@pytest.mark.parametrize("seed", SEEDS)
def test_no_rule_is_broken_in_random_traces(seed: int) -> None:
    outcome = World(random_trace(seed)).run()
    assert outcome.breaches == 0
    assert all(0.0 <= late <= IDLE_LATE_S for late in outcome.idle_late_s)


@pytest.mark.parametrize("seed", ONCE_BEYOND_THE_BOUND)
def test_no_load_waits_beyond_its_bound_where_one_once_did(seed: int) -> None:
    assert World(random_trace(seed, all_may_leave=True)).run().breaches == 0


def test_random_traces_have_models_that_must_stay_and_models_that_leave_when_idle() -> None:
    models = [one.spec.residency for seed in SEEDS for one in random_trace(seed).models]
    pinned, by_hand = (one.pinned for one in models), (not one.on_demand for one in models)
    assert 0.1 * len(models) < sum(pinned) < 0.2 * len(models)
    assert 0.1 * len(models) < sum(by_hand) < 0.2 * len(models)
    totals = Totals()
    for seed in SEEDS:
        totals.add(World(random_trace(seed)).run())
    assert totals.had_to_stay > 100
    assert totals.idle_unloads > 10


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
    assert outcome.breaches == 0


def _broken(rule: str) -> bool:
    """Tell whether a random trace finds that this rule is broken, whatever else it finds."""
    for seed in SEEDS:
        try:
            World(random_trace(seed)).run()
        except BrokenRuleError as error:
            if rule in str(error):
                return True
    return False


def _careless(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Have the dispatcher's rules take each model for one with this residency."""

    def taken_for(job: JobRecord) -> JobRecord:
        if job.spec is None:
            return job
        residency = job.spec.residency.model_copy(update=changes)
        spec = job.spec.model_copy(update={"residency": residency})
        return job.model_copy(update={"spec": spec})

    def why_it_stays(line: JobLine, now: datetime) -> Stays | None:
        taken = line.model_copy(update={"job": taken_for(line.job)})
        return leaving.why_it_stays(taken, now)

    def is_idle(job: JobRecord, now: datetime, *, unused_s: float) -> bool:
        return leaving.is_idle(taken_for(job), now, unused_s=unused_s)

    monkeypatch.setattr(making_room, "why_it_stays", why_it_stays)
    monkeypatch.setattr(world, "is_idle", is_idle)


def test_a_room_that_is_too_large_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "has_devices", lambda *_, **__: True)
    monkeypatch.setattr(Rooms, "_with_devices", lambda _, rows, *__, **___: rows)
    monkeypatch.setattr(DeviceRoom, "takes", lambda *_: True)
    assert _broken("gives more than it has")


@pytest.mark.parametrize(
    "changes", [{"min_resident_s": 0.0}, {"pinned": False}, {"on_demand": True}]
)
def test_a_model_that_is_evicted_though_it_is_young_or_pinned_or_loaded_by_hand_is_found(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    _careless(monkeypatch, **changes)
    assert _broken("had to stay in memory and was evicted")


def test_a_pinned_model_that_is_unloaded_as_idle_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _careless(monkeypatch, pinned=False)
    assert _broken("had to stay in memory and was unloaded as idle")


def test_an_idle_model_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "is_idle", lambda *_, **__: False)
    assert _broken("is idle and stays in memory")


def test_a_model_in_use_that_is_evicted_at_once_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*asked: object) -> Stays | None:
        why = leaving.why_it_stays(*asked)  # type: ignore[arg-type]
        return None if why is Stays.IN_USE else why

    monkeypatch.setattr(making_room, "why_it_stays", careless)
    assert _broken("is in use and was evicted too early")


def test_an_operation_that_nobody_makes_room_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.simulator.world.decide", lambda *_, **__: RoomDecision())
    with pytest.raises(BrokenRuleError, match="never starts"):
        World(traces.one_hot(Random(1), 0.01)).run()
