"""An unloaded job is created anew where its model has room, if it has none where it is.

Real dispatchers and workers, on a virtual clock. Where a dispatcher dies on the way, the next one
brings the job to its end, and at no write is anything given away twice.
"""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from modelyard.contract.states import Admission
from tests.statemachine import world as worlds
from tests.statemachine.loop import VirtualLoop
from tests.statemachine.virtual import virtual_machine
from tests.statemachine.yard import SOON_S, Yard
from worker.settings import DeclaredDevice

FIRST, SECOND, ON_H2 = "GPU-1", "GPU-2", "GPU-3"
ELSEWHERE = ["another device", "another host"]
LEAK_S = 20.0
"""Seconds within which the sweep has mended what a dead dispatcher left."""
TOLD_S = 15.0
"""Seconds within which a worker has told which images it has; it does with its inventory."""


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    """Give the test a dispatcher and host h1 with two devices; h2, with one, does not run yet."""
    devices = {
        "h1": tuple(DeclaredDevice(uuid=uuid, memory="8g") for uuid in (FIRST, SECOND)),
        "h2": (DeclaredDevice(uuid=ON_H2, memory="8g"),),
    }
    for host_id, there in devices.items():
        monkeypatch.setitem(worlds.DEVICES, host_id, there)
        monkeypatch.setitem(worlds.SLOTS, host_id, 3)
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    made: Yard | None = None

    def crash_point(name: str) -> None:
        if made is not None:
            made.world.crash_point(name)

    with virtual_machine(loop, crash_point) as log:
        made = Yard(loop)
        yield made
        sys.stdout.write("\n".join(log))  # pytest shows it if the test has failed
        assert made.world.died == []
        assert made.world.watching.wrong == []
        loop.finish()
    asyncio.set_event_loop(None)


def job(yard: Yard, job_id: str) -> dict[str, Any]:
    (found,) = [one for one in yard.world.database.documents("jobs") if one["_id"] == job_id]
    return found


def place(yard: Yard, job_id: str) -> tuple[str, list[str], int]:
    """Return host, devices and generation of a job; what it holds must be just that."""
    found = job(yard, job_id)
    held = [
        (host["_id"], one["devices"], one["generation"])
        for host in yard.world.database.documents("hosts")
        for one in host["reservations"]
        if one["job_id"] == job_id
    ]
    mine = (found["host_id"], found["devices"], found["generation"])
    assert held == [mine]
    return mine


def crowd(yard: Yard, *, model: str = "open", elsewhere: str = "another device") -> None:
    """Create j3 on a device whose memory a pinned model then takes.

    There is room on another device of the host, or only on another host.
    """
    yard.create("j1", "pinned")
    yard.create("j2", "pinned")
    yard.create("j3", model)
    assert place(yard, "j3") == ("h1", [FIRST], 1)
    yard.until_ended(yard.ask("j1", "DEPLOY_LOAD"))
    if elsewhere == "another host":
        yard.until_ended(yard.ask("j2", "DEPLOY_LOAD"))
        yard.world.start_worker("h2")
        yard.advance(SOON_S)


def expected(elsewhere: str) -> tuple[str, list[str], int]:
    return ("h1", [SECOND], 2) if elsewhere == "another device" else ("h2", [ON_H2], 2)


def containers(yard: Yard, job_id: str) -> list[tuple[str, str]]:
    """Return the containers of a job: host and name."""
    return [
        (host_id, one.name)
        for host_id in ("h1", "h2")
        for one in yard.world.containers(host_id)
        if one.name.startswith(f"modelyard-{job_id}-")
    ]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_load_without_room_is_brought_to_where_there_is_some(yard: Yard, elsewhere: str) -> None:
    crowd(yard, elsewhere=elsewhere)
    load = yard.ask("j3", "DEPLOY_LOAD")
    assert yard.until_ended(load) < 10.0
    assert yard.operation(load)["state"] == "SUCCEEDED"
    assert yard.ours("j3") == [("DEPLOY_CREATE", f"relocated_for:{load}", "SUCCEEDED")]
    assert place(yard, "j3") == expected(elsewhere)
    yard.advance(LEAK_S)
    host_id, _, _ = expected(elsewhere)
    assert containers(yard, "j3") == [(host_id, "modelyard-j3-2")], "the old one is removed"
    assert yard.state("j3") == "LOADED"


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_an_inference_is_answered_from_there(yard: Yard, elsewhere: str) -> None:
    crowd(yard, elsewhere=elsewhere)
    infer = yard.ask("j3", "INFER")
    yard.until_ended(infer)
    assert yard.operation(infer)["state"] == "SUCCEEDED"
    assert place(yard, "j3") == expected(elsewhere)


def test_a_job_that_may_not_be_relocated_waits_where_it_is_and_says_why(yard: Yard) -> None:
    crowd(yard, model="bound")
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.advance(40.0)
    assert yard.operation(load)["state"] == "QUEUED"
    (reason,) = yard.operation(load)["waiting_for"]
    assert reason == f"host h1 has less than 5 GiB free on the device {FIRST}"
    assert not any("created anew" in one for one in yard.explain(load).reasons)
    assert place(yard, "j3") == ("h1", [FIRST], 1)
    yard.until_ended(yard.ask("j1", "DEPLOY_UNLOAD"))
    yard.until_ended(load)


def idle_model(yard: Yard) -> None:
    """Create j3 on the device of a model that may be unloaded; j2 is on the other device."""
    yard.create("j1", "open")
    yard.create("j2", "pinned")
    yard.create("j3", "open")
    yard.until_ended(yard.ask("j1", "INFER"))
    yard.advance(SOON_S)


def test_no_model_has_to_leave_while_there_is_room_beside_it(yard: Yard) -> None:
    idle_model(yard)
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.until_ended(load)
    assert yard.state("j1") == "LOADED"
    assert place(yard, "j3") == ("h1", [SECOND], 2)


def test_an_idle_model_leaves_before_a_job_goes_where_its_image_has_to_be_fetched(
    yard: Yard,
) -> None:
    idle_model(yard)
    yard.until_ended(yard.ask("j2", "DEPLOY_LOAD"))
    engine = yard.world.engines["h2"]
    engine.registry["models/open"] = engine.images.pop("models/open")
    yard.world.start_worker("h2")
    yard.advance(TOLD_S)
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.until_ended(load)
    assert ("DEPLOY_UNLOAD", f"evicted_for:{load}", "SUCCEEDED") in yard.ours("j1")
    assert place(yard, "j3") == ("h1", [FIRST], 1)


def test_a_job_goes_to_a_host_that_has_its_image_before_an_idle_model_leaves(yard: Yard) -> None:
    idle_model(yard)
    yard.until_ended(yard.ask("j2", "DEPLOY_LOAD"))
    yard.world.start_worker("h2")
    yard.advance(TOLD_S)
    yard.until_ended(yard.ask("j3", "DEPLOY_LOAD"))
    assert yard.state("j1") == "LOADED"
    assert place(yard, "j3") == ("h2", [ON_H2], 2)


def test_nothing_is_relocated_to_a_place_without_room(yard: Yard) -> None:
    crowd(yard)
    yard.until_ended(yard.ask("j2", "DEPLOY_LOAD"))
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.advance(40.0)
    assert yard.operation(load)["state"] == "QUEUED"
    assert yard.ours("j3") == []
    yard.world.start_worker("h2")
    yard.until_ended(load)
    assert place(yard, "j3") == ("h2", [ON_H2], 2)


def test_a_cordoned_host_gets_no_new_container_of_its_own_job(yard: Yard) -> None:
    crowd(yard)
    yard.world.admit("h1", Admission.CORDONED)
    yard.world.start_worker("h2")
    yard.advance(SOON_S)
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.until_ended(load)
    assert place(yard, "j3") == ("h2", [ON_H2], 2)


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_an_explanation_says_that_the_job_goes_elsewhere(yard: Yard, elsewhere: str) -> None:
    crowd(yard, elsewhere=elsewhere)
    yard.world.traps["dispatcher.intake.after_record"] = False
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.advance(SOON_S)
    assert not yard.leader.alive
    host_id, (device,), _ = expected(elsewhere)
    said = yard.explain(load).reasons
    assert len(said) == 2, said
    first, then = said
    assert first.startswith("Its model has no room on host h1: it needs 5 GiB on 1 device; ")
    assert then == f"Its job is created anew on host {host_id}, on {device}, which has room."
    yard.world.start_dispatcher()
    yard.until_ended(load)
    assert yard.operation(load)["state"] == "SUCCEEDED"
    assert place(yard, "j3") == expected(elsewhere)


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("asked_after_s", range(10))
def test_an_inventory_on_the_way_does_not_take_a_relocated_job_for_one_without_a_container(
    yard: Yard, elsewhere: str, asked_after_s: int
) -> None:
    """Each step of the dispatcher takes so long that at some of these times one comes between."""
    crowd(yard, elsewhere=elsewhere)
    assert yard.leader.store is not None
    yard.leader.store.link.slow_s = 0.4
    yard.advance(float(asked_after_s))
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.until_ended(load)
    assert yard.operation(load)["state"] == "SUCCEEDED", yard.operation(load)
    assert place(yard, "j3") == expected(elsewhere)


POINTS = [
    "dispatcher.residency.after_create",
    "dispatcher.after_reserve",
    "dispatcher.after_hold",
    "dispatcher.after_assign",
    "dispatcher.after_claim",
    "dispatcher.after_publish",
    "dispatcher.recorder.after_jobs",
]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("point", POINTS)
def test_a_relocation_is_brought_to_its_end_when_the_dispatcher_dies(
    yard: Yard, point: str, elsewhere: str
) -> None:
    crowd(yard, elsewhere=elsewhere)
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.world.traps[point] = False
    while yard.leader.alive:
        yard.advance(0.1)
    yard.world.start_dispatcher()
    yard.until_ended(load)
    assert yard.operation(load)["state"] == "SUCCEEDED"
    yard.advance(LEAK_S)
    assert yard.state("j3") == "LOADED"
    assert place(yard, "j3")[:2] == expected(elsewhere)[:2]
    assert len(containers(yard, "j3")) == 1


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_what_a_relocation_has_reserved_that_a_client_then_cancels_is_given_back(
    yard: Yard, elsewhere: str
) -> None:
    crowd(yard, elsewhere=elsewhere)
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.world.traps["dispatcher.after_reserve"] = False
    while yard.leader.alive:
        yard.advance(0.1)
    for one in yard.world.database.documents("operations"):
        if one["job_id"] == "j3" and one["open"]:
            yard.world.loop.run(yard.world.front.cancel(one["_id"]))
    yard.world.start_dispatcher()
    yard.until_ended(load)
    yard.advance(LEAK_S)
    assert {state for _, _, state in yard.ours("j3")} == {"CANCELLED"}
    assert place(yard, "j3") == ("h1", [FIRST], 1)
    assert yard.state("j3") == "CREATED"


def test_a_job_whose_new_container_can_not_be_made_says_so(yard: Yard) -> None:
    crowd(yard)
    image = "models/open"
    del yard.world.engines["h1"].images[image]
    yard.world.engines["h1"].registry.pop(image, None)
    load = yard.ask("j3", "DEPLOY_LOAD")
    yard.until_ended(load, within_s=300.0)
    assert yard.operation(load)["state"] == "REJECTED"
    assert "image_not_found" in yard.operation(load)["error"]["message"]
    assert yard.state("j3") == "FAILED"
