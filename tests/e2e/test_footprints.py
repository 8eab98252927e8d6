"""Footprints through all parts: what a model takes is measured, learned and used as its need.

Memory of the host is what is scarce: it is the same everywhere, and no test machine needs a GPU.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.docker_engine import DockerEngine
from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Fleet, User, a_user_of
from tests.support.waiting import eventually

MIB = 1 << 20
HOST = "small"
TAKES = 120 * MIB
"""What the model really takes."""
LIMIT = 200 * MIB
HAS = 500 * MIB
"""What the host has for containers."""


@pytest.fixture
async def user(
    tmp_path: Path, amqp_url: str, mongo_url: str, engine: DockerEngine
) -> AsyncIterator[User]:
    """Give the test someone who uses a host with little memory."""
    settings = {
        "MODELYARD_WORKER_MEMORY": str(HAS),
        "MODELYARD_WORKER_RESERVED_MEMORY": "0",
    }
    fleet = Fleet(
        tmp_path,
        amqp_url=amqp_url,
        mongo_url=mongo_url,
        engines={HOST: engine},
        settings={f"worker-{HOST}": settings},
    )
    try:
        await asyncio.to_thread(fleet.start)
        async with a_user_of(fleet) as someone:
            yield someone
    finally:
        await asyncio.to_thread(fleet.stop)


async def put(user: User, residency: dict[str, Any] | None = None, **resources: object) -> str:
    """Put a model into the catalog that takes memory from its load to its unload."""
    name = f"holds-{uuid.uuid4().hex[:8]}"
    await user.put_model(
        name,
        **PROBES["probe-http"],
        image=PROBE,
        env={"PROBE_HOLD_BYTES": str(TAKES)},
        resources={"memory": LIMIT, "cpus": 0.1, **resources},
        residency=residency or {},
    )
    return name


async def allocated(user: User) -> int:
    view = (await user.http.get(f"/v1/hosts/{HOST}")).json()
    return int(view["memory"]["allocated"])


async def learned(user: User, model: str) -> list[dict[str, object]]:
    answer = await user.http.get(f"/v1/models/{model}/footprints")
    assert answer.is_success, answer.text
    found: list[dict[str, object]] = answer.json()["footprints"]
    return found


async def test_what_a_model_takes_is_learned_from_its_loads_and_is_its_need_from_then_on(
    user: User,
) -> None:
    model = await put(user, resident_memory="auto")
    assert await learned(user, model) == []
    first = user.job_id()
    await user.done("DEPLOY_CREATE", first, model=model)
    assert await allocated(user) == 0
    await user.done("DEPLOY_LOAD", first)
    assert await allocated(user) == LIMIT  # nothing is known of it yet
    for _ in range(2):
        await user.done("DEPLOY_UNLOAD", first)
        await user.done("DEPLOY_LOAD", first)
    (footprint,) = await learned(user, model)
    takes = footprint["memory"]
    assert isinstance(takes, int)
    assert takes == pytest.approx(TAKES, rel=0.05)
    assert (footprint["loads"], footprint["image"], footprint["device"]) == (3, PROBE, "")
    await user.done("TERMINATE", first)

    second, third, fourth = (user.job_id() for _ in range(3))
    for number, job in enumerate((second, third, fourth), start=1):
        await user.done("DEPLOY_CREATE", job, model=model)
        assert await allocated(user) == number * (LIMIT - takes)
    await user.done("DEPLOY_LOAD", second)
    await user.done("DEPLOY_LOAD", third)
    assert await allocated(user) == 3 * (LIMIT - takes) + 2 * takes
    load = await user.submit("DEPLOY_LOAD", fourth)

    async def waits() -> bool:
        return bool((await user.http.get(f"/v1/operations/{load}")).json()["waiting_for"])

    await eventually(waits, what="the reason")
    said = (await user.http.get(f"/v1/operations/{load}/explain")).json()
    assert f"it needs {takes / MIB:.4g} MiB of memory, and " in said["reasons"][0]
    await user.done("DEPLOY_UNLOAD", second)
    assert (await user.ended(load))["state"] == "SUCCEEDED"


async def test_a_model_that_takes_more_than_it_declares_needs_what_it_takes(user: User) -> None:
    model = await put(user, resident_memory=f"{TAKES // 2 // MIB}m")
    job, other = user.job_id(), user.job_id()
    await user.done("DEPLOY_CREATE", job, model=model)
    assert await allocated(user) == LIMIT - TAKES // 2
    await user.done("DEPLOY_LOAD", job)
    (footprint,) = await learned(user, model)
    await user.done("TERMINATE", job)
    await user.done("DEPLOY_CREATE", other, model=model)
    assert await allocated(user) == LIMIT - int(str(footprint["memory"]))
    await user.done("DEPLOY_LOAD", other)
    assert await allocated(user) == LIMIT


async def test_what_inferences_take_in_addition_is_learned_too(user: User) -> None:
    model, more = await put(user, resident_memory="auto"), 40 * MIB
    job = user.job_id()
    await user.done("DEPLOY_CREATE", job, model=model)
    await user.done("DEPLOY_LOAD", job)
    await user.done("INFER", job, input={"hold_bytes": more})
    await user.done("DEPLOY_UNLOAD", job)
    (footprint,) = await learned(user, model)
    assert footprint["memory"] == pytest.approx(TAKES + more, rel=0.05)
    assert footprint["loads"] == 1


async def test_nobody_has_measured_a_model_that_does_not_exist(user: User) -> None:
    answer = await user.http.get("/v1/models/none/footprints")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("verb", ["DEPLOY_CREATE", "TEMP"])
async def test_idle_models_leave_memory_for_what_is_placed_and_come_back(
    user: User, verb: str
) -> None:
    residency: dict[str, Any] = {"on_demand": True, "min_resident_s": 0.0}
    model = await put(user, residency, resident_memory=TAKES)
    idle = [user.job_id() for _ in range(2)]
    for job in idle:
        await user.done("DEPLOY_CREATE", job, model=model)
        await user.done("INFER", job, input={})
    assert await allocated(user) == 2 * LIMIT
    plain, job = await put(user), user.job_id()
    sent: dict[str, Any] = {"input": {}} if verb == "TEMP" else {}
    done = await user.done(verb, job, model=plain, **sent)
    states = {job_id: (await user.job(job_id))["state"] for job_id in idle}
    assert sorted(states.values()) == ["CREATED", "LOADED"], "one of them is enough"
    (left,) = [job_id for job_id, state in states.items() if state == "CREATED"]
    found = (await user.http.get("/v1/operations", params={"job_id": left})).json()
    reasons = [one["reason"] for one in found["operations"] if one["source"] == "system"]
    assert f"evicted_for:{done['operation_id']}" in reasons
    if verb == "DEPLOY_CREATE":
        await user.done("TERMINATE", job)
    await user.done("INFER", left, input={})
