"""Devices through all parts: who sees which, who may use how much, and who waits for whom.

The devices are declared, since the test's machine has none: the engines bind them all the same.
"""

import asyncio
import json
import time
import uuid
from typing import Any

from modelyard.contract.catalog.images import full_reference
from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Engine, Json, User
from tests.support.command_line import run
from tests.support.waiting import eventually

GIB = 1 << 30
ON_H1 = {"host_labels": {"name": "h1"}}
_WHAT_IT_SEES = """
import json, os, time
began = time.time()
time.sleep(0.5)
print(json.dumps({"sees": os.environ.get("NVIDIA_VISIBLE_DEVICES", ""),
                  "began": began, "ended": time.time()}))
"""


async def put(user: User, spec: dict[str, Any], **resources: Any) -> str:
    """Put a model with these needs on h1 into the catalog; return its name."""
    name = f"device-{uuid.uuid4().hex[:8]}"
    needs = {"memory": "256m", "cpus": 0.1, **resources}
    await user.put_model(name, image=PROBE, **ON_H1, **spec, resources=needs)
    return name


async def seen(user: User, **resources: Any) -> Json:
    """Run a batch with these needs; return what it saw, and when."""
    spec = {"profile": "batch", "command": ["python3", "-c", _WHAT_IT_SEES]}
    done = await user.done("TEMP", user.job_id(), model=await put(user, spec, **resources))
    found: Json = await user.result(done["operation_id"])
    return found


async def waiting(user: User, operation_id: str) -> list[str] | None:
    """Return why an operation waits, once a dispatcher has looked at it."""
    view = (await user.http.get(f"/v1/operations/{operation_id}")).json()
    reasons: list[str] = view.get("waiting_for", [])
    return None if "a dispatcher, to take it in" in reasons else reasons or None


async def devices(user: User) -> dict[str, Json]:
    """Return the devices of h1 by uuid."""
    view = (await user.http.get("/v1/hosts/h1")).json()
    return {one["uuid"]: one for one in view["devices"]}


async def test_a_container_sees_the_devices_that_are_bound_to_it_and_no_others(user: User) -> None:
    assert (await seen(user, gpus=2))["sees"] == "GPU-h1-1,GPU-h1-0"
    assert (await seen(user, gpus=1, gpu_memory="6g"))["sees"] == "GPU-h1-0"
    assert (await seen(user))["sees"] == ""


async def test_models_that_work_at_the_same_time_never_hold_more_than_a_device_has(
    user: User,
) -> None:
    runs = await asyncio.gather(*(seen(user, gpus=1, gpu_memory="3g") for _ in range(8)))
    most = {"GPU-h1-0": 2, "GPU-h1-1": 1}
    for one in runs:
        here = [it for it in runs if it["sees"] == one["sees"]]
        at_once = sum(it["began"] <= one["began"] < it["ended"] for it in here)
        assert at_once <= most[one["sees"]]
    assert {one["sees"] for one in runs} == set(most)
    assert all(one["allocated"] == 0 for one in (await devices(user)).values())


async def test_a_loaded_model_keeps_others_out_until_it_is_unloaded(
    user: User, engines: dict[str, Engine]
) -> None:
    model = await put(user, PROBES["probe-http"], gpus=1, gpu_memory="6g")
    first, second = user.job_id(), user.job_id()
    for job in (first, second):
        await user.done("DEPLOY_CREATE", job, model=model)
        (container,) = await engines["h1"].containers(job)
        asked = (await engines["h1"].inspect(container["Id"]))["HostConfig"]["DeviceRequests"]
        assert [one["DeviceIDs"] for one in asked] == [["GPU-h1-0"]]
    await user.done("DEPLOY_LOAD", first)
    held = (await devices(user))["GPU-h1-0"]
    assert held["resident"] == {first: 6 * GIB}
    assert set(held["jobs"]) == {first, second}
    assert held["allocated"] == 6 * GIB

    load = await user.submit("DEPLOY_LOAD", second)
    reasons = await eventually(lambda: waiting(user, load), what="the reason")
    assert reasons == ["host h1 has less than 6 GiB free on the device GPU-h1-0"]
    began = time.monotonic()
    said = (await user.http.get(f"/v1/operations/{load}/explain")).json()
    assert time.monotonic() - began < 0.5
    assert said["reasons"][0] == (
        "Its model has no room on host h1: it needs 6 GiB on 1 device; GPU-h1-0 has 2 GiB of 8 GiB "
        "free."
    )
    (holder,) = said["hosts"][0]["holders"]
    assert (holder["job_id"], holder["frees"]) == (first, {"GPU-h1-0": 6 * GIB})
    await user.done("DEPLOY_UNLOAD", first)
    assert (await user.ended(load))["state"] == "SUCCEEDED"
    assert (await devices(user))["GPU-h1-0"]["resident"] == {second: 6 * GIB}
    for job in (first, second):
        await user.done("TERMINATE", job)
    left = (await devices(user))["GPU-h1-0"]
    assert (left["resident"], left["jobs"], left["allocated"]) == ({}, [], 0)


async def test_a_dry_run_foretells_the_devices_and_who_holds_them(
    user: User, engines: dict[str, Engine]
) -> None:
    model = await put(user, PROBES["probe-http"], gpus=1, gpu_memory="6g")
    first, second = user.job_id(), user.job_id()

    async def said(verb: str, job: str, **fields: Any) -> Json:
        body = json.dumps({"job_id": job, "operation_type": verb, **fields})
        ran = await run(user.fleet.url, "--json", "submit", "-", "--dry-run", stdin=body)
        assert ran.code == 0, ran.err
        found: Json = json.loads(ran.out)
        return found

    for job in (first, second):
        found = await said("DEPLOY_CREATE", job, model=model)
        assert (found["outcome"], found["host_id"]) == ("starts", "h1")
        await user.done("DEPLOY_CREATE", job, model=model)
        (container,) = await engines["h1"].containers(job)
        asked = (await engines["h1"].inspect(container["Id"]))["HostConfig"]["DeviceRequests"]
        assert [one["DeviceIDs"] for one in asked] == [found["devices"]]
    await user.done("DEPLOY_LOAD", first)
    found = await said("DEPLOY_LOAD", second)
    assert found["outcome"] == "waits"
    ((holder,),) = [one["holders"] for one in found["hosts"]]
    assert (holder["job_id"], holder["frees"]) == (first, {"GPU-h1-0": 6 * GIB})
    assert "not loaded on demand" in holder["stays"]
    await user.done("TERMINATE", first)
    assert (await said("DEPLOY_LOAD", second))["outcome"] == "starts"
    await user.done("DEPLOY_LOAD", second)
    await user.done("TERMINATE", second)


async def test_what_no_host_can_hold_says_so(user: User) -> None:
    model = await put(user, PROBES["probe-http"], gpus=1, gpu_memory="9g")
    job = user.job_id()
    create = await user.submit("DEPLOY_CREATE", job, model=model)
    reasons = await eventually(lambda: waiting(user, create), what="the reason")
    assert set(reasons) == {
        "1 host does not have the label name=h1",
        "1 host has no device with 9 GiB",
    }
    await user.done("TERMINATE", job)


async def test_more_models_than_fit_are_loaded_as_they_are_asked_for(
    user: User, engines: dict[str, Engine]
) -> None:
    """Three models share one device of 8 GiB, on which one of them fits at a time."""
    residency = {"on_demand": True, "min_resident_s": 0.0}
    spec = {**PROBES["probe-http"], "residency": residency}
    jobs = [user.job_id() for _ in range(3)]
    for job in jobs:
        model = await put(user, spec, gpus=1, gpu_memory="6g")
        await user.done("DEPLOY_CREATE", job, model=model)
    for job in (*jobs, *jobs):
        done = await user.done("INFER", job, input={"text": job})
        assert await user.result(done["operation_id"])
        assert (await devices(user))["GPU-h1-0"]["resident"] == {job: 6 * GIB}
    found = (await user.http.get("/v1/operations", params={"job_id": jobs[0]})).json()
    reasons = [one["reason"] for one in found["operations"] if one["source"] == "system"]
    kinds = [reason.partition(":")[0] for reason in reasons]
    assert sorted(kinds) == ["evicted_for", "evicted_for", "on_demand", "on_demand"]
    for job in jobs:
        await user.done("TERMINATE", job)
        assert not await engines["h1"].containers(job)


async def test_an_idle_model_leaves_memory_by_itself(user: User) -> None:
    residency = {"on_demand": True, "idle_unload_s": 2.0, "min_resident_s": 0.0}
    model = await put(user, {**PROBES["probe-http"], "residency": residency}, gpus=1)
    job = user.job_id()
    await user.done("DEPLOY_CREATE", job, model=model)
    await user.done("INFER", job, input={})
    began = time.monotonic()

    async def unloaded() -> bool:
        return str((await user.job(job))["state"]) == "CREATED"

    await eventually(unloaded, what="the unload")
    assert 1.0 < time.monotonic() - began < 6.0

    async def nobody_is_resident() -> bool:  # it is freed after its job has become CREATED
        return all(not one["resident"] for one in (await devices(user)).values())

    await eventually(nobody_is_resident, what="the memory to be free")
    await user.done("TERMINATE", job)


async def relocated(user: User, engines: dict[str, Engine], job: str) -> tuple[str, list[str]]:
    """Load a job that has no room where it is; return its host and devices after that.

    The engines have its new container alone.
    """
    load = await user.submit("DEPLOY_LOAD", job)
    assert (await user.ended(load))["state"] == "SUCCEEDED"
    listed = (await user.http.get("/v1/operations", params={"job_id": job})).json()
    ours = [one for one in listed["operations"] if one["source"] == "system"]
    assert [(one["operation_type"], one["reason"], one["state"]) for one in ours] == [
        ("DEPLOY_CREATE", f"relocated_for:{load}", "SUCCEEDED")
    ]
    view = (await user.http.get(f"/v1/jobs/{job}")).json()
    assert (view["state"], view["generation"]) == ("LOADED", 2)

    async def old_is_gone() -> Json | None:
        there = [(name, one) for name, it in engines.items() for one in await it.containers(job)]
        return there[0][1] if len(there) == 1 else None

    container = await eventually(old_is_gone, what="the old container's end")
    assert container["Id"] == view["container_id"]
    inspected = await engines[view["host_id"]].inspect(container["Id"])
    (asked,) = inspected["HostConfig"]["DeviceRequests"]
    return view["host_id"], asked["DeviceIDs"]


async def test_a_job_whose_device_is_taken_is_created_anew_on_the_other_one(
    user: User, engines: dict[str, Engine]
) -> None:
    small = await put(user, PROBES["probe-http"], gpus=1, gpu_memory="3g")
    large = await put(user, PROBES["probe-http"], gpus=1, gpu_memory="6g")
    mine, other = user.job_id(), user.job_id()
    await user.done("DEPLOY_CREATE", mine, model=small)
    await user.done("DEPLOY_CREATE", other, model=large)
    await user.done("DEPLOY_LOAD", other)
    assert mine in (await devices(user))["GPU-h1-0"]["jobs"]
    assert await relocated(user, engines, mine) == ("h1", ["GPU-h1-1"])
    held = await devices(user)
    assert held["GPU-h1-1"]["resident"] == {mine: 3 * GIB}
    assert mine not in held["GPU-h1-0"]["jobs"]
    await user.done("INFER", mine, input={"x": 1})
    for job in (mine, other):
        await user.done("TERMINATE", job)


async def test_a_job_whose_host_is_full_is_created_anew_on_another_host(
    user: User, engines: dict[str, Engine]
) -> None:
    small = f"device-{uuid.uuid4().hex[:8]}"
    needs = {"memory": "256m", "cpus": 0.1, "gpus": 1, "gpu_memory": "3g"}
    await user.put_model(small, image=PROBE, **PROBES["probe-http"], resources=needs)
    whole = await put(user, PROBES["probe-http"], gpus=2)
    mine, other = user.job_id(), user.job_id()
    (await user.http.post("/v1/hosts/h2/cordon")).raise_for_status()
    try:
        await user.done("DEPLOY_CREATE", mine, model=small)
    finally:
        (await user.http.post("/v1/hosts/h2/uncordon")).raise_for_status()
    await user.done("DEPLOY_CREATE", other, model=whole)
    await user.done("DEPLOY_LOAD", other)
    host_id, (device,) = await relocated(user, engines, mine)
    assert host_id == "h2"
    assert device in {"GPU-h2-0", "GPU-h2-1"}
    await user.done("INFER", mine, input={"x": 1})
    for job in (mine, other):
        await user.done("TERMINATE", job)


async def test_a_host_tells_the_images_that_its_engine_has(user: User) -> None:
    async def told() -> list[str] | None:
        images: list[str] = (await user.http.get("/v1/hosts/h1")).json()["images"]
        return images or None

    assert full_reference(PROBE) in await eventually(told, what="the images")
