"""What an operation waits for is said within three seconds, in lists too.

Real dispatchers and workers on a virtual clock, and the gateway's own way to make a list.
"""

import asyncio
from collections.abc import Iterator

import pytest

from modelyard.contract.states import OperationState
from tests.statemachine.checks import listed_reasons
from tests.statemachine.loop import VirtualLoop
from tests.statemachine.virtual import virtual_machine
from tests.statemachine.yard import Yard

SAID_WITHIN_S = 3.0
LONG_S = 60.0
"""Seconds that an inference takes here, so that others wait for it all the time."""


@pytest.fixture
def yard() -> Iterator[Yard]:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    with virtual_machine(loop, lambda _: None):
        made = Yard(loop)
        yield made
        assert made.world.died == []
        assert made.world.watching.wrong == []
        loop.finish()
    asyncio.set_event_loop(None)


def runs_long(yard: Yard, job_id: str, model: str) -> str:
    """Return an inference that has just begun, and will run for long."""
    yard.used(job_id, model)
    yard.world.manners[model].takes_s = LONG_S
    runs = yard.ask(job_id, "INFER")
    yard.advance(1.0)
    assert yard.operation(runs)["state"] == "RUNNING"
    return runs


def test_an_inference_behind_an_unload_names_it_and_not_its_models_concurrency(yard: Yard) -> None:
    runs = runs_long(yard, "j1", "open")
    unload = yard.ask("j1", "DEPLOY_UNLOAD")
    yard.advance(0.5)
    infer = yard.ask("j1", "INFER")
    yard.advance(SAID_WITHIN_S)
    assert yard.listed(unload) == (f"INFER {runs} (RUNNING), the first of its job's line",)
    assert yard.listed(infer) == (f"DEPLOY_UNLOAD {unload} (QUEUED), before it in its job's line",)


def test_inferences_beyond_what_a_model_takes_say_how_many_that_is(yard: Yard) -> None:
    runs = runs_long(yard, "j1", "open")
    more = [yard.ask("j1", "INFER") for _ in range(2)]
    yard.advance(SAID_WITHIN_S)
    (third,) = [one for one in more if yard.operation(one)["state"] == "QUEUED"]
    (said,) = yard.listed(third)
    assert said == (
        f"INFER {runs} (RUNNING), the first of its job's line; its model takes 2 at the same time "
        "(max_concurrency)"
    )


def test_an_unload_that_makes_room_says_which_inference_ends_before_it(yard: Yard) -> None:
    runs = runs_long(yard, "j1", "open")
    yard.create("j2", "open")
    load = yard.ask("j2", "DEPLOY_LOAD")
    began = yard.world.loop.time()
    while not (evictions := [one for one in yard.ours("j1") if one[0] == "DEPLOY_UNLOAD"]):
        assert yard.world.loop.time() - began < LONG_S
        yard.advance(0.5)
    assert evictions == [("DEPLOY_UNLOAD", f"evicted_for:{load}", "QUEUED")]
    yard.advance(SAID_WITHIN_S)
    (unload,) = [
        one["_id"]
        for one in yard.world.database.documents("operations")
        if one["reason"] == f"evicted_for:{load}"
    ]
    assert yard.operation(runs)["state"] == "RUNNING"
    assert yard.listed(unload) == (f"INFER {runs} (RUNNING), which ends before it",)


def test_all_kinds_of_waiting_have_their_reason_within_three_seconds(yard: Yard) -> None:
    """Behind others of the job, for memory of a device, for a slot, and for a host."""
    runs_long(yard, "j1", "open")
    yard.create("j2", "open")  # the second and last slot
    waiting = [
        *(yard.ask("j1", "INFER") for _ in range(3)),
        yard.ask("j2", "DEPLOY_LOAD"),
        yard.ask("j2", "INFER"),
        yard.ask("j3", "DEPLOY_CREATE", model="process"),
        yard.ask("j3", "DEPLOY_LOAD"),
        yard.ask("j4", "TEMP", model="process", input=1),
    ]
    yard.advance(SAID_WITHIN_S)
    queued = [one for one in waiting if yard.operation(one)["state"] == OperationState.QUEUED]
    said = listed_reasons(yard.world)
    assert set(said) == set(queued)
    assert len(queued) == len(waiting) - 1, "of the inferences one more runs"
    assert {key: reasons for key, reasons in said.items() if not reasons} == {}
