"""Faults while models come into memory and leave it: nothing is leaked, nothing is given twice.

The devices are declared, so the ledger is all that keeps models apart. The sampler looks at it all
the time (I5): at processors, memory of the host and of each device, and at what is held for each
loaded model.
"""

import json
import uuid
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from modelyard.process.crash_points import VARIABLE
from tests.faults.dispatcher.test_dispatcher import KILLED
from tests.faults.harness.casualties import HOST, LOST_WITHIN_S, back, incarnation
from tests.faults.harness.checked_fleet import DISPATCHERS, CheckedFleet, Json, points
from tests.faults.table import BACK, EVICTS, FORGOTTEN, LOADS, VANISHES
from tests.support.invariants.checker import LOST_HEAL_WITHIN_S
from tests.support.waiting import eventually

MIB, GIB = 1 << 20, 1 << 30
WORKER = f"worker-{HOST}"
LARGE, SMALL = f"GPU-{HOST}-0", f"GPU-{HOST}-1"
"""Devices of 8 and of 4 GiB."""
FILLS = 6 * GIB
"""Fits on the large device alone, and once."""
HOLDS = 100 * MIB
HERE: dict[str, Any] = {"host_labels": {"name": HOST}}
ON_DEMAND = {"on_demand": True, "min_resident_s": 0.0}
FULL: Json = {"gpus": 1, "gpu_memory": "6g", "memory": "160m", "resident_memory": "100m"}
DECLARES = "MODELYARD_WORKER_DEVICES"

RELOCATES = "dispatcher.residency.after_create"
IDLE = "dispatcher.idle.after_unload"
IDLE_S = 3.0
NOT_PASSED = {"dispatcher.after_reserve", "dispatcher.recorder.after_release", RELOCATES}
"""Nothing is placed or removed."""
EVICTION_POINTS = sorted(
    {*points("dispatcher", "dispatcher.recorder", "dispatcher.residency")} - NOT_PASSED
)
"""What the leader comes to from the LOAD that needs room to its end."""

pytestmark = pytest.mark.faults


async def put(fleet: CheckedFleet, *, env: dict[str, str] | None = None, **changes: Any) -> str:
    """Put a model into the catalog that fills the large device of the host; return its name."""
    name = f"fills-{uuid.uuid4().hex[:8]}"
    held = {"PROBE_HOLD_BYTES": str(HOLDS), **(env or {})}
    await fleet.put_probe(name, env=held, **{"resources": FULL, **HERE, **changes})
    return name


async def created(fleet: CheckedFleet, **changes: Any) -> str:
    """Create a job whose model fills the large device; return its name."""
    job_id = fleet.job_id()
    await fleet.done("DEPLOY_CREATE", job_id, model=await put(fleet, **changes))
    return job_id


async def resident(fleet: CheckedFleet) -> dict[str, Json]:
    """Return what the host holds for models in memory, by job."""
    reservations = (await fleet.host(HOST))["reservations"]
    return {one["job_id"]: one["resident"] for one in reservations if one["resident"]}


async def nothing_resident(fleet: CheckedFleet) -> None:
    """Return once the host holds nothing for models in memory."""

    async def it_is() -> bool:
        return await resident(fleet) == {}

    await eventually(it_is, within_s=40, what="nothing held for models in memory")


async def loading(fleet: CheckedFleet, operation_id: str, *, epoch: int = 1) -> None:
    """Return once this attempt of an operation loads its model."""

    async def it_is() -> bool:
        one = await fleet.running_state(operation_id)
        return (one["epoch"], one.get("phase")) == (epoch, "loading")

    await eventually(it_is, within_s=30, what=f"{operation_id} loading in attempt {epoch}")


async def waits(fleet: CheckedFleet, operation_id: str, reason: str) -> None:
    """Return once an operation says that it waits for this reason."""

    async def it_does() -> bool:
        (one,) = await fleet.database.all("operations", {"_id": operation_id})
        return one["state"] == "QUEUED" and any(reason in it for it in one.get("waiting_for", ()))

    await eventually(it_does, within_s=30, what=f"{operation_id} waiting because it {reason}")


@pytest.mark.fault(LOADS)
async def test_a_worker_killed_while_it_loads_keeps_the_memory_for_its_next_attempt_and_no_other(
    fleet: CheckedFleet,
) -> None:
    first = await created(fleet, env={"PROBE_LOAD_SECONDS": "6"})
    second = await created(fleet)
    load = await fleet.submit("DEPLOY_LOAD", first)
    await loading(fleet, load)
    other = await fleet.submit("DEPLOY_LOAD", second)
    await fleet.kill(WORKER)
    (held,) = (await resident(fleet)).items()
    assert (held[0], held[1]["devices"], held[1]["memory"]) == (first, {LARGE: FILLS}, HOLDS)
    await fleet.launch(WORKER)
    await fleet.online(WORKER)
    await fleet.succeeded([(await fleet.ended(load))["_id"]])
    await waits(fleet, other, f"less than 6 GiB free on the device {LARGE}")
    assert set(await resident(fleet)) == {first}
    await fleet.done("DEPLOY_UNLOAD", first)
    await fleet.succeeded([(await fleet.ended(other))["_id"]])
    await fleet.holds()
    assert set(await resident(fleet)) == {second}


@pytest.mark.fault(LOADS)
async def test_a_load_whose_worker_dies_each_time_gives_its_memory_back(
    fleet: CheckedFleet,
) -> None:
    job_id = await created(fleet, env={"PROBE_LOAD_SECONDS": "inf"})
    load = await fleet.submit("DEPLOY_LOAD", job_id)
    for epoch in (1, 2, 3):
        # What the attempt before reported may still be recorded.
        await loading(fleet, load, epoch=epoch)
        await fleet.kill(WORKER)
        await fleet.launch(WORKER)
        await fleet.online(WORKER)
    end = await fleet.ended(load)
    assert (end["state"], end["error"]["code"]) == ("FAILED", "worker_interrupted"), end
    await nothing_resident(fleet)
    (container,) = await fleet.engines[HOST].labelled(HOST)
    assert container.state == "exited"
    (unload,) = await fleet.database.all("operations", {"job_id": job_id, "source": "system"})
    assert (unload["reason"], unload["state"]) == ("load_cut_short", "SUCCEEDED")
    await fleet.holds()
    next_one = await created(fleet)
    await fleet.done("DEPLOY_LOAD", next_one)
    await fleet.holds()


@pytest.mark.fault(VANISHES)
async def test_a_device_that_vanishes_keeps_its_model_and_takes_none_until_it_is_back(
    fleet: CheckedFleet,
) -> None:
    loaded, waiting = await created(fleet), await created(fleet)
    await fleet.done("DEPLOY_LOAD", loaded)
    await fleet.stop(WORKER)
    await fleet.launch(WORKER, **{DECLARES: json.dumps([{"uuid": SMALL, "memory": "4g"}])})
    await fleet.online(WORKER)
    assert (await fleet.job(loaded))["state"] == "LOADED"
    await fleet.done("INFER", loaded, input={})
    assert (await resident(fleet))[loaded]["devices"] == {LARGE: FILLS}
    load = await fleet.submit("DEPLOY_LOAD", waiting)
    await waits(fleet, load, f"does not have the device {LARGE} any more")
    create = await fleet.submit("DEPLOY_CREATE", fleet.job_id(), model=await put(fleet))
    await waits(fleet, create, "has no device with 6 GiB")
    # It may leave memory; nothing can come into it.
    await fleet.done("DEPLOY_UNLOAD", loaded)
    assert await resident(fleet) == {}
    await waits(fleet, load, f"does not have the device {LARGE} any more")
    await fleet.stop(WORKER)
    await fleet.launch(WORKER)
    await fleet.online(WORKER)
    await fleet.succeeded([(await fleet.ended(one))["_id"] for one in (load, create)])
    await fleet.holds()
    assert set(await resident(fleet)) == {waiting}


@pytest.mark.fault(BACK)
@pytest.mark.timeout(420)
async def test_a_host_that_is_back_after_it_was_lost_holds_nothing_for_what_it_had_in_memory(
    fleet: CheckedFleet,
) -> None:
    loaded, idle = await created(fleet), await created(fleet)
    await fleet.done("DEPLOY_LOAD", loaded)
    former = await incarnation(fleet)
    await fleet.kill(WORKER)
    await fleet.liveness(HOST, "LOST", within_s=LOST_WITHIN_S)

    async def nothing_is_held() -> bool:
        return not (await fleet.host(HOST))["reservations"]

    await eventually(nothing_is_held, within_s=20, what="an empty ledger")
    for job_id in (loaded, idle):
        assert (await fleet.job(job_id))["state"] == "LOST"
    # What was in memory there still is: nobody has stopped what no other host may be given.
    (there,) = [one for one in await fleet.engines[HOST].labelled(HOST) if one.job_id == loaded]
    assert there.state == "running"
    await fleet.launch(WORKER)
    await back(fleet, former)
    job_id = await created(fleet)
    await fleet.done("DEPLOY_LOAD", job_id)
    assert (await resident(fleet))[job_id]["devices"] == {LARGE: FILLS}
    left = [one.job_id for one in await fleet.engines[HOST].labelled(HOST)]
    assert loaded not in left, "its device was given away while it was still there"
    await fleet.holds(within_s=LOST_HEAL_WITHIN_S)


@pytest.mark.fault(FORGOTTEN)
async def test_what_was_learned_is_forgotten_and_what_is_declared_counts_again(
    fleet: CheckedFleet,
) -> None:
    limit = 200 * MIB
    resources = {"memory": limit, "resident_memory": 40 * MIB}
    model = await put(fleet, resources=resources)
    learning, after = fleet.job_id(), fleet.job_id()
    await fleet.done("DEPLOY_CREATE", learning, model=model)
    await fleet.done("DEPLOY_LOAD", learning)
    assert (await fleet.database.count("footprints", {"model": model})) == 1
    await fleet.done("DEPLOY_CREATE", after, model=model)
    assert await container_memory(fleet, after) < limit - 90 * MIB, "as it was measured"
    before = await resident(fleet)
    await forget_footprints(fleet)
    await fleet.restart(*DISPATCHERS)
    forgotten = fleet.job_id()
    await fleet.done("DEPLOY_CREATE", forgotten, model=model)
    assert await container_memory(fleet, forgotten) == limit - 40 * MIB, "as it is declared"
    await fleet.done("DEPLOY_LOAD", forgotten)
    held = await resident(fleet)
    assert held[learning] == before[learning]
    assert held[forgotten]["memory"] == 40 * MIB
    # Both parts together are the container's limit, whatever was known when it was created.
    await fleet.done("DEPLOY_LOAD", after)
    assert await container_memory(fleet, after) + (await resident(fleet))[after]["memory"] == limit
    await fleet.holds()


@pytest.mark.fault(FORGOTTEN)
async def test_a_model_of_which_nothing_is_declared_or_learned_has_its_device_for_itself(
    fleet: CheckedFleet,
) -> None:
    auto = {"gpus": 1, "gpu_memory": "auto"}
    model = await put(fleet, resources=auto)
    jobs = [fleet.job_id() for _ in range(3)]
    for job_id in jobs:
        await fleet.done("DEPLOY_CREATE", job_id, model=model)
    loads = [await fleet.submit("DEPLOY_LOAD", job_id) for job_id in jobs]
    await fleet.succeeded([(await fleet.ended(one))["_id"] for one in loads[:2]])
    held = await resident(fleet)
    assert set(held) == set(jobs[:2])
    taken = [one["devices"] for one in held.values()]
    assert sorted(taken, key=str) == [{LARGE: 8 * GIB}, {SMALL: 4 * GIB}]
    await fleet.restart(*DISPATCHERS)
    await waits(fleet, loads[2], "for one model alone")
    await fleet.done("TERMINATE", jobs[0])
    await fleet.done("TERMINATE", jobs[1])
    await fleet.succeeded([(await fleet.ended(loads[2]))["_id"]])
    await fleet.holds()


@pytest.mark.fault(EVICTS)
@pytest.mark.parametrize("point", EVICTION_POINTS)
async def test_a_leader_killed_between_an_eviction_and_its_load_brings_the_model_into_memory(
    fleet: CheckedFleet, point: str
) -> None:
    leaves, comes = [await created(fleet, residency=ON_DEMAND) for _ in range(2)]
    await fleet.done("INFER", leaves, input={})
    await fleet.stop(*DISPATCHERS)
    await fleet.launch("dispatcher", **{VARIABLE: point})
    infer = await fleet.submit("INFER", comes, input={})
    await fleet.died_at("dispatcher", point)
    for name in reversed(DISPATCHERS):
        await fleet.launch(name)
    await fleet.succeeded([(await fleet.ended(infer))["_id"]])
    await fleet.holds()
    assert {job_id: one["devices"] for job_id, one in (await resident(fleet)).items()} == {
        comes: {LARGE: FILLS}
    }
    ours = await fleet.database.all("operations", {"source": "system", "job_id": leaves})
    unloads = [one for one in ours if one["verb"] == "DEPLOY_UNLOAD"]
    assert [one["state"] for one in unloads] == ["SUCCEEDED"], "it left once"


@pytest.mark.fault(KILLED)
async def test_a_leader_killed_once_it_has_recorded_a_relocation_leaves_it_to_the_next_one(
    fleet: CheckedFleet,
) -> None:
    goes = await created(fleet, resources={**FULL, "gpu_memory": "3g"})
    stays = await created(fleet, residency={**ON_DEMAND, "pinned": True})
    await fleet.done("DEPLOY_LOAD", stays)
    async with fleet.dispatcher_dies_at(RELOCATES):
        load = await fleet.submit("DEPLOY_LOAD", goes)
    await fleet.succeeded([(await fleet.ended(load))["_id"]])
    await fleet.holds()
    held = {job_id: one["devices"] for job_id, one in (await resident(fleet)).items()}
    assert held == {stays: {LARGE: FILLS}, goes: {SMALL: 3 * GIB}}
    ours = await fleet.database.all("operations", {"source": "system", "job_id": goes})
    assert [(one["verb"], one["state"]) for one in ours] == [("DEPLOY_CREATE", "SUCCEEDED")]


@pytest.mark.fault(KILLED)
async def test_a_leader_killed_once_it_has_recorded_an_idle_unload_leaves_it_to_the_next_one(
    fleet: CheckedFleet,
) -> None:
    job_id = await created(fleet, residency={**ON_DEMAND, "idle_unload_s": IDLE_S})
    async with fleet.dispatcher_dies_at(IDLE):
        await fleet.done("INFER", job_id, input={})
    await nothing_resident(fleet)
    await fleet.holds()
    ours = await fleet.database.all("operations", {"source": "system", "job_id": job_id})
    unloads = [(one["reason"], one["state"]) for one in ours if one["verb"] == "DEPLOY_UNLOAD"]
    assert unloads == [("idle", "SUCCEEDED")]


async def container_memory(fleet: CheckedFleet, job_id: str) -> int:
    """Return the bytes of host memory that a job's container holds."""
    reservations = (await fleet.host(HOST))["reservations"]
    (held,) = [one for one in reservations if one["job_id"] == job_id]
    memory: int = held["memory"]
    return memory


async def forget_footprints(fleet: CheckedFleet) -> None:
    """Delete all that was learned, as an operator could."""
    client: AsyncMongoClient[Json] = AsyncMongoClient(fleet.processes.mongo_url)
    try:
        await client.get_default_database()["footprints"].delete_many({})
    finally:
        await client.close()
