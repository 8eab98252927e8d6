"""Making room: for whom which models would have to leave."""

from datetime import timedelta
from typing import Any

import pytest

from dispatcher.scheduling.making_room import (
    KeptRoom,
    RoomDecision,
    decide,
    hosts_for,
    residents_of,
)
from dispatcher.scheduling.usage import Usage
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.states import JobState, Verb
from modelyard.scheduling.placement import FreeCapacity
from modelyard.scheduling.planning import Crowded, make_plan
from modelyard.store.records import HostRecord, JobLine
from tests.support.scheduling import GIB, NOW, A, catalog, host, job, operation, spec

RESIDENCY = {"on_demand": True, "min_resident_s": 0.0}


def loaded(job_id: str, memory: int, **residency: object) -> JobLine:
    """Return an idle job whose model holds so many GiB of the host while it is loaded."""
    model = spec(
        resources={"memory": (memory + 1) * GIB, "resident_memory": memory * GIB},
        residency={**RESIDENCY, **residency},
    )
    held = job(job_id=job_id, spec=model, loaded_at=NOW - timedelta(hours=1), load_s=memory)
    return JobLine(job=held, operations=())


def full(*memories: int, besides: tuple[Allocation, ...] = ()) -> HostRecord:
    """Return a host of 32 GiB with models in memory; each container holds one GiB besides."""
    return host(
        *besides,
        *(
            Allocation(
                job_id=f"r{index}",
                generation=1,
                memory=GIB,
                resident=ResidentAllocation(memory=memory * GIB),
            )
            for index, memory in enumerate(memories)
        ),
    )


def crowded(there: HostRecord, verb: Verb, model: ModelSpec) -> list[Crowded]:
    """Return what a pass over one operation would make room for."""
    one = operation(verb, state="QUEUED", accepted_at=NOW)
    line = JobLine(job=job(JobState.NONE, host_id=None, generation=0, spec=None), operations=(one,))
    plan = make_plan([line], catalog(model), FreeCapacity({there.host_id: there}))
    assert plan.dispatches == []
    return plan.crowded


def decided(one: Crowded, there: HostRecord, *lines: JobLine) -> RoomDecision:
    named = {line.job.job_id: line for line in lines}
    hosts = hosts_for(one, {there.host_id: there})
    offers = [(it, [named[key] for key in residents_of(it, besides=one)]) for it in hosts]
    usage = Usage(clock=lambda: 0.0)
    return decide(one, offers, NOW, swap_wait_s=30.0, usage=usage)


@pytest.mark.parametrize("verb", [Verb.DEPLOY_CREATE, Verb.TEMP])
@pytest.mark.parametrize("needs", [{}, {"gpus": 1, "gpu_memory": "1g"}])
def test_the_cheapest_idle_models_leave_memory_for_what_is_placed(
    verb: Verb, needs: dict[str, Any]
) -> None:
    there = full(8, 12, 4)  # 5 GiB are left
    (one,) = crowded(there, verb, spec(resources={"memory": "9g", **needs}))
    lines = [loaded(f"r{index}", memory) for index, memory in enumerate((8, 12, 4))]
    way = decided(one, there, *lines).way
    assert way is not None
    assert (way.jobs, way.devices) == (
        ("r2",), (A,) if needs and verb is Verb.TEMP else ()
    )  # fmt: skip


def test_room_is_kept_for_what_is_placed_until_it_is_there() -> None:
    there = full(24)
    (one,) = crowded(there, Verb.DEPLOY_CREATE, spec(resources={"memory": "9g"}))
    waits = True
    kept = KeptRoom(lambda: 0.0, lambda _: waits)
    kept.follow(one, decided(one, there, loaded("r0", 24)))
    (room,) = kept.on("h")
    assert (room.host_id, room.need.memory, room.devices) == ("h", 9 * GIB, ())
    waits = False
    assert kept.on("h") == []


@pytest.mark.parametrize(
    ("residency", "comes_later"),
    [({"pinned": True}, False), ({"on_demand": False}, False), ({"min_resident_s": 7200.0}, True)],
)
def test_no_model_leaves_for_what_is_placed_that_may_not(
    residency: dict[str, Any], *, comes_later: bool
) -> None:
    there = full(24)
    (one,) = crowded(there, Verb.DEPLOY_CREATE, spec(resources={"memory": "9g"}))
    decision = decided(one, there, loaded("r0", 24, **residency))
    assert (decision.way, decision.later is not None) == (None, comes_later)


def test_no_room_is_made_where_models_hold_none_of_what_is_lacking() -> None:
    memory = {"memory": "9g"}
    container = Allocation(job_id="other", generation=1, memory=28 * GIB)
    assert crowded(host(container), Verb.DEPLOY_CREATE, spec(resources=memory)) == []
    processors = Allocation(job_id="busy", generation=1, millicpus=8_000, memory=GIB)
    there = full(24, besides=(processors,))
    assert crowded(there, Verb.DEPLOY_CREATE, spec(resources=memory)) == []


def without_room(images: frozenset[str], *, leaves: bool) -> RoomDecision:
    """Decide about a load whose host is full of a model, beside an empty host with some images."""
    model = spec(resources={"memory": "10g", "resident_memory": "9g"})
    there = full(24, besides=(Allocation(job_id="j", generation=1, memory=GIB),))
    free = host(host_id="g", images=images)
    load = operation(Verb.DEPLOY_LOAD, state="QUEUED", accepted_at=NOW)
    line = JobLine(job=job(JobState.CREATED, spec=model), operations=(load,))
    plan = make_plan([line], catalog(model), FreeCapacity({"h": there, "g": free}))
    (one,) = plan.crowded
    other = loaded("r0", 24)
    unload = operation(Verb.DEPLOY_UNLOAD, 1, job_id="r0", reason="evicted_for:op-9")
    other = other.model_copy(update={"operations": (unload,)}) if leaves else other
    return decided(one, there, other)


def test_no_model_leaves_while_its_place_is_free_on_a_host_that_has_the_image() -> None:
    decision = without_room(frozenset({"docker.io/x/y:latest"}), leaves=False)
    assert decision.way is None
    assert decision.elsewhere is not None
    assert decision.elsewhere.host.host_id == "g"


@pytest.mark.parametrize(
    ("images", "leaves"), [(frozenset[str](), False), (frozenset({"docker.io/x/y:latest"}), True)]
)
def test_a_load_stays_where_a_model_leaves_already_or_if_an_image_would_have_to_be_fetched(
    images: frozenset[str], *, leaves: bool
) -> None:
    decision = without_room(images, leaves=leaves)
    assert decision.elsewhere is None
    assert decision.way is not None
    assert decision.way.jobs == ("r0",)
