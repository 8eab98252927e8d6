"""Models come into memory when they are asked for, and leave it for others or when idle.

Real dispatchers and workers, on a virtual clock: what is said to take seconds takes them exactly.
"""

import asyncio
from collections.abc import Iterator

import pytest

from modelyard.scheduling.leaving import Stays
from tests.statemachine.catalog import MANNERS, MODELS
from tests.statemachine.engine import Manners
from tests.statemachine.loop import VirtualLoop
from tests.statemachine.virtual import virtual_machine
from tests.statemachine.yard import SOON_S, Yard

IDLE_S = 6.0
"""`idle_unload_s` of the model `http`."""
SWAP_WAIT_S = 30.0
TAKE_OVER_S = 10.0
PINNED, BY_HAND = str(Stays.PINNED), str(Stays.BY_HAND)


@pytest.fixture
def yard() -> Iterator[Yard]:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    made: Yard | None = None

    def crash_point(name: str) -> None:
        if made is not None:
            made.world.crash_point(name)

    with virtual_machine(loop, crash_point):
        made = Yard(loop)
        yield made
        assert made.world.died == []
        assert made.world.watching.wrong == []
        loop.finish()
    asyncio.set_event_loop(None)


def test_an_inference_has_its_model_loaded(yard: Yard) -> None:
    yard.create("j1", "open")
    first, second = yard.ask("j1", "INFER"), yard.ask("j1", "INFER")
    yard.until_ended(second)
    assert yard.operation(first)["state"] == yard.operation(second)["state"] == "SUCCEEDED"
    ((verb, reason, state),) = yard.ours("j1")
    assert (verb, state) == ("DEPLOY_LOAD", "SUCCEEDED")
    assert reason in {f"on_demand:{first}", f"on_demand:{second}"}
    assert yard.held == {"j1": 5 << 30}


def test_a_model_that_is_not_loaded_on_demand_is_not(yard: Yard) -> None:
    yard.create("j1", "steady")
    infer = yard.ask("j1", "INFER")
    yard.until_ended(infer)
    assert yard.operation(infer)["error"]["code"] == "invalid_job_state"
    assert yard.ours("j1") == []


def test_inferences_whose_model_can_not_be_loaded_say_why(yard: Yard) -> None:
    yard.create("j1", "refusing")
    for one in [yard.ask("j1", "INFER") for _ in range(2)]:
        yard.until_ended(one)
        ended = yard.operation(one)
        assert ended["state"] == "REJECTED"
        assert "job 'j1' is FAILED (load_failed: " in ended["error"]["message"]
    assert [(verb, state) for verb, _, state in yard.ours("j1")] == [("DEPLOY_LOAD", "FAILED")]
    assert yard.held == {}


def test_an_inference_whose_load_was_cancelled_ends_with_it(yard: Yard) -> None:
    yard.create("j1", "http")
    yard.create("j2", "pinned")
    yard.ask("j2", "DEPLOY_LOAD")
    yard.advance(SOON_S)
    first = yard.ask("j1", "INFER")
    yard.advance(SOON_S)
    (load,) = [one for one in yard.world.database.documents("operations")
               if one["job_id"] == "j1" and one["source"] == "system"]  # fmt: skip
    yard.world.loop.run(yard.world.front.cancel(load["_id"]))
    yard.until_ended(first)
    ended = yard.operation(first)
    assert (ended["state"], ended["error"]["code"]) == ("REJECTED", "cancelled")
    assert ended["error"]["message"].startswith("The model could not be loaded for it: ")
    assert yard.state("j1") == "CREATED"


def test_an_idle_model_is_unloaded_in_time(yard: Yard) -> None:
    yard.used("j1", "http")
    yard.advance(IDLE_S - 1.0)
    assert yard.state("j1") == "LOADED"
    yard.advance(1.0 + SOON_S)
    assert yard.state("j1") == "CREATED"
    assert ("DEPLOY_UNLOAD", "idle", "SUCCEEDED") in yard.ours("j1")
    assert yard.held == {}


def test_a_pinned_model_stays_although_its_entry_has_a_time_for_idle_ones(yard: Yard) -> None:
    pinned = MODELS["http"].model_copy(
        update={"residency": MODELS["http"].residency.model_copy(update={"pinned": True})}
    )
    yard.world.loop.run(yard.world.front.store.models.put(pinned))
    yard.used("j1", "http")
    yard.advance(5 * IDLE_S)
    assert yard.state("j1") == "LOADED"
    assert [verb for verb, _, _ in yard.ours("j1")] == ["DEPLOY_LOAD"]


def test_a_model_that_is_used_again_and_again_is_never_idle(yard: Yard) -> None:
    yard.used("j1", "http")
    for _ in range(5):
        yard.advance(IDLE_S - 2.0)
        yard.until_ended(yard.ask("j1", "INFER"))
        assert yard.state("j1") == "LOADED"


def test_a_new_leader_goes_by_when_the_model_was_used_last(yard: Yard) -> None:
    yard.used("j1", "http")
    yard.world.kill(yard.leader)
    yard.world.start_dispatcher()
    yard.advance(IDLE_S - 3.0)
    assert yard.state("j1") == "LOADED"
    yard.advance(3.0 + TAKE_OVER_S)
    assert yard.state("j1") == "CREATED"


def test_an_idle_model_makes_room_for_another_one(yard: Yard) -> None:
    yard.used("j1", "open")
    yard.create("j2", "open")
    infer = yard.ask("j2", "INFER")
    assert yard.until_ended(infer) < 10.0
    (load,) = [one for one in yard.world.database.documents("operations")
               if one["job_id"] == "j2" and one["source"] == "system"]  # fmt: skip
    assert ("DEPLOY_UNLOAD", f"evicted_for:{load['_id']}", "SUCCEEDED") in yard.ours("j1")
    assert yard.held == {"j2": 5 << 30}
    again = yard.ask("j1", "INFER")
    assert yard.until_ended(again) < 10.0
    assert yard.held == {"j1": 5 << 30}


def test_a_one_shot_run_has_room_made_for_it(yard: Yard) -> None:
    yard.used("j1", "open")
    temp = yard.ask("j2", "TEMP", model="open", input=1)
    assert yard.until_ended(temp) < 10.0
    assert yard.operation(temp)["state"] == "SUCCEEDED"
    assert yard.state("j1") == "CREATED"


def killed_at(yard: Yard, point: str, *, within_s: float = 20.0) -> None:
    """Have the leader die at a point, and another one lead after it."""
    yard.world.traps[point] = False
    began = yard.world.loop.time()
    while yard.leader.alive:
        assert yard.world.loop.time() - began < within_s, f"it never comes to {point}"
        yard.advance(0.1)
    yard.world.start_dispatcher()


def test_a_load_that_a_dead_leader_recorded_is_made_once(yard: Yard) -> None:
    yard.create("j1", "open")
    infer = yard.ask("j1", "INFER")
    killed_at(yard, "dispatcher.residency.after_load")
    yard.until_ended(infer)
    assert yard.operation(infer)["state"] == "SUCCEEDED"
    assert yard.ours("j1") == [("DEPLOY_LOAD", f"on_demand:{infer}", "SUCCEEDED")]
    assert yard.held == {"j1": 5 << 30}


def test_an_eviction_that_a_dead_leader_recorded_is_made_once(yard: Yard) -> None:
    yard.used("j1", "open")
    yard.create("j2", "open")
    infer = yard.ask("j2", "INFER")
    killed_at(yard, "dispatcher.residency.after_unload")
    yard.until_ended(infer)
    assert yard.operation(infer)["state"] == "SUCCEEDED"
    unloads = [state for verb, _, state in yard.ours("j1") if verb == "DEPLOY_UNLOAD"]
    assert unloads == ["SUCCEEDED"]
    assert yard.held == {"j2": 5 << 30}


def test_an_idle_unload_that_a_dead_leader_recorded_is_made_once(yard: Yard) -> None:
    yard.used("j1", "http")
    killed_at(yard, "dispatcher.idle.after_unload")
    yard.advance(TAKE_OVER_S + SOON_S)
    unloads = [(why, state) for verb, why, state in yard.ours("j1") if verb == "DEPLOY_UNLOAD"]
    assert unloads == [("idle", "SUCCEEDED")]
    assert (yard.state("j1"), yard.held) == ("CREATED", {})


@pytest.mark.parametrize(("model", "stays"), [("pinned", PINNED), ("steady", BY_HAND)])
def test_what_is_pinned_or_was_loaded_by_hand_stays(yard: Yard, model: str, stays: str) -> None:
    yard.create("j1", model)
    yard.ask("j1", "DEPLOY_LOAD")
    yard.advance(SOON_S)
    yard.create("j2", "http")
    infer = yard.ask("j2", "INFER")
    yard.advance(2 * SWAP_WAIT_S)
    assert yard.state("j1") == "LOADED"
    (load,) = [one for one in yard.world.database.documents("operations")
               if one["job_id"] == "j2" and one["source"] == "system"]  # fmt: skip
    behind = yard.explain(infer)
    assert (behind.ahead_in_line, behind.next_in_line) == (1, load["_id"])
    (verdict,) = yard.explain(load["_id"]).hosts
    assert [(it.job_id, it.stays) for it in verdict.holders] == [("j1", stays)]
    assert yard.ours("j1") == []
    assert yard.operation(infer)["state"] == "QUEUED"
    yard.ask("j1", "TERMINATE")
    yard.until_ended(infer)
    assert yard.operation(infer)["state"] == "SUCCEEDED"


def test_what_is_always_in_use_makes_room_after_a_bounded_wait(yard: Yard) -> None:
    yard.create("j1", "open")
    yard.create("j2", "open")
    asked = [yard.ask("j1", "INFER") for _ in range(4)]
    yard.advance(3.0)
    other = yard.ask("j2", "INFER")
    began = yard.world.loop.time()
    while yard.operation(other)["state"] != "SUCCEEDED":
        asked.append(yard.ask("j1", "INFER"))  # there is always one in line
        yard.advance(0.4)
        assert yard.world.loop.time() - began < SWAP_WAIT_S + 15.0
    assert yard.world.loop.time() - began > SWAP_WAIT_S - 2.0
    yard.advance(120.0)
    ended = [yard.operation(one)["state"] for one in (*asked, other)]
    assert set(ended) == {"SUCCEEDED"}, "nobody is refused or interrupted by it"


def test_a_model_stays_for_its_least_time(yard: Yard) -> None:
    yard.used("j1", "open")
    yard.create("j2", "open")
    (before,) = [one for one in yard.world.database.documents("jobs") if one["_id"] == "j1"]
    infer = yard.ask("j2", "INFER")
    yard.until_ended(infer)
    unload = next(
        one for one in yard.world.database.documents("operations")
        if one["job_id"] == "j1" and one["verb"] == "DEPLOY_UNLOAD"
    )  # fmt: skip
    assert (unload["accepted_at"] - before["loaded_at"]).total_seconds() >= 1.0


def test_what_takes_a_model_away_does_not_wait_behind_its_load(yard: Yard) -> None:
    yard.create("j1", "pinned")
    yard.ask("j1", "DEPLOY_LOAD")
    yard.create("j2", "open")
    load = yard.ask("j2", "DEPLOY_LOAD")
    yard.advance(SOON_S)
    assert yard.operation(load)["state"] == "QUEUED"
    end = yard.ask("j2", "TERMINATE")
    assert yard.until_ended(end) < 5.0
    assert yard.operation(load)["state"] == "CANCELLED"
    assert yard.state("j2") == "TERMINATED"


def test_a_load_for_an_inference_that_was_cancelled_is_withdrawn(yard: Yard) -> None:
    yard.create("j1", "pinned")
    yard.ask("j1", "DEPLOY_LOAD")
    yard.create("j2", "open")
    infer = yard.ask("j2", "INFER")
    yard.advance(SOON_S)
    assert [state for _, _, state in yard.ours("j2")] == ["QUEUED"]
    yard.world.loop.run(yard.world.front.cancel(infer))
    yard.advance(6.0)
    assert [state for _, _, state in yard.ours("j2")] == ["CANCELLED"]
    assert yard.state("j2") == "CREATED"


def test_an_eviction_that_was_cancelled_is_tried_again(yard: Yard) -> None:
    yard.create("j1", "open")
    busy = [yard.ask("j1", "INFER") for _ in range(30)]
    yard.create("j2", "open")
    infer = yard.ask("j2", "INFER")
    while not any(verb == "DEPLOY_UNLOAD" for verb, _, _ in yard.ours("j1")):
        busy.append(yard.ask("j1", "INFER"))
        yard.advance(0.3)
    unloads = [one for one in yard.world.database.documents("operations")
               if one["job_id"] == "j1" and one["verb"] == "DEPLOY_UNLOAD"]  # fmt: skip
    for one in unloads:
        yard.world.loop.run(yard.world.front.cancel(one["_id"]))
    yard.until_ended(infer, within_s=120.0)
    assert yard.operation(infer)["state"] == "SUCCEEDED"


def test_room_that_was_made_is_not_taken_back_by_who_made_it(yard: Yard) -> None:
    """Two small models are in use, and a large one needs the place of both."""
    for job in ("j1", "j2"):
        yard.create(job, "small")
    for job in ("j1", "j2"):
        yard.until_ended(yard.ask(job, "INFER"))
    yard.ask("j2", "TERMINATE")
    yard.advance(SOON_S)
    yard.create("j3", "http")
    large = yard.ask("j3", "INFER")
    began = yard.world.loop.time()
    while yard.operation(large)["state"] != "SUCCEEDED":
        yard.ask("j1", "INFER")
        yard.advance(0.4)
        assert yard.world.loop.time() - began < SWAP_WAIT_S + 20.0


def test_a_server_that_keeps_its_memory_is_stopped_and_started_again_for_the_next_inference(
    yard: Yard,
) -> None:
    yard.world.manners["small"].keeps = True
    yard.used("j1", "small")
    (container,) = yard.world.containers("h1")
    unload = yard.ask("j1", "DEPLOY_UNLOAD")
    yard.advance(5.0)
    assert yard.operation(unload)["state"] == "RUNNING"
    assert yard.held == {"j1": 2 << 30}, "its memory is not free yet"
    yard.until_ended(unload)
    ended = yard.operation(unload)
    assert (ended["state"], ended["error"]["code"]) == ("FAILED", "memory_not_freed")
    assert not container.running
    assert (yard.state("j1"), yard.held) == ("CREATED", {})
    again = yard.ask("j1", "INFER")
    yard.until_ended(again)
    assert yard.operation(again)["state"] == "SUCCEEDED"
    assert container.running


def test_a_server_that_keeps_its_memory_makes_room_all_the_same(yard: Yard) -> None:
    yard.world.manners["small"].keeps = True
    yard.used("j1", "small")
    yard.create("j2", "http")  # it needs the whole device
    infer = yard.ask("j2", "INFER")
    yard.until_ended(infer)
    assert yard.operation(infer)["state"] == "SUCCEEDED"
    assert [state for _, reason, state in yard.ours("j1") if reason.startswith("evicted")] == [
        "FAILED"
    ]
    assert yard.state("j1") == "CREATED"


def test_what_models_take_is_learned(yard: Yard) -> None:
    for _ in range(3):
        yard.until_ended(yard.ask("j1", "TERMINATE"))
        yard.used("j1", "small")
    (footprint,) = yard.world.database.documents("footprints")
    assert footprint["loads"] == 3
    assert {one["memory"] for one in footprint["peaks"]} == {600 << 20}


def begins_to_load(yard: Yard, load: str, *, epoch: int) -> None:
    """Advance until this attempt loads the model."""
    began = yard.world.loop.time()
    while (found := yard.operation(load)).get("phase") != "loading" or found["epoch"] != epoch:
        assert yard.world.loop.time() - began < 60.0, found
        yard.advance(0.1)


@pytest.mark.parametrize("ends", ["fails", "cancelled"])
def test_the_memory_of_a_load_that_was_cut_short_is_held_until_its_container_is_stopped(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setitem(MANNERS, "bound", Manners(takes_s=600.0))
    yard.create("j1", "bound")
    yard.create("j2", "pinned")
    load = yard.ask("j1", "DEPLOY_LOAD")
    for epoch in range(1, 4 if ends == "fails" else 2):
        begins_to_load(yard, load, epoch=epoch)
        yard.world.kill(yard.world.workers["h1"])
        if ends == "cancelled":
            yard.world.loop.run(yard.world.front.cancel(load))
        yard.world.start_worker("h1")
    yard.until_ended(load)
    assert yard.operation(load)["state"] == ("FAILED" if ends == "fails" else "CANCELLED")
    (container,) = [one for one in yard.world.containers("h1") if "-j1-" in one.name]
    assert container.running, "what it loaded may be in memory"
    other = yard.ask("j2", "DEPLOY_LOAD")
    began = yard.world.loop.time()
    while container.running:
        assert yard.held == {"j1": 5 << 30}
        assert yard.world.loop.time() - began < 30.0
        yard.advance(0.1)
    yard.until_ended(other)
    assert yard.ours("j1") == [("DEPLOY_UNLOAD", "load_cut_short", "SUCCEEDED")]
    assert yard.held == {"j2": 5 << 30}
    assert yard.state("j1") == "CREATED"
