"""Unloads are verified: a server that keeps its memory is stopped, and comes back on demand."""

from typing import Any

from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Engine, User

MIB = 1 << 20
ON_H1 = {"host_labels": {"name": "h1"}}


async def put(user: User, **env: str) -> str:
    name = f"keeps-{user.job_id()}"
    spec: dict[str, Any] = {
        **PROBES["probe-http"],
        "env": {"PROBE_HOLD_BYTES": str(100 * MIB), **env},
        "resources": {"memory": "160m", "cpus": 0.1, "resident_memory": "auto"},
        "residency": {"on_demand": True},
    }
    await user.put_model(name, image=PROBE, **ON_H1, **spec)
    return name


async def held(user: User) -> int:
    view = (await user.http.get("/v1/hosts/h1")).json()
    return int(view["memory"]["allocated"])


async def test_a_server_that_gives_its_memory_back_goes_on_running(
    user: User, engines: dict[str, Engine]
) -> None:
    job = user.job_id()
    created = await user.done("DEPLOY_CREATE", job, model=await put(user))
    await user.done("DEPLOY_LOAD", job)
    await user.done("DEPLOY_UNLOAD", job)
    assert (await engines["h1"].inspect(created["container_id"]))["State"]["Running"]
    await user.done("TERMINATE", job)


async def test_a_server_that_keeps_its_memory_is_stopped_and_the_next_inference_starts_it(
    user: User, engines: dict[str, Engine]
) -> None:
    job = user.job_id()
    created = await user.done("DEPLOY_CREATE", job, model=await put(user, PROBE_KEEPS="1"))
    before = await held(user)
    await user.done("INFER", job, input={"text": "one"})
    assert await held(user) > before
    unload = await user.do("DEPLOY_UNLOAD", job)
    assert (unload["state"], unload["error"]["code"]) == ("FAILED", "memory_not_freed")
    assert "of the host's memory" in unload["error"]["message"]
    assert (await user.job(job))["state"] == "CREATED"
    assert await held(user) == before
    state = (await engines["h1"].inspect(created["container_id"]))["State"]
    assert not state["Running"]
    again = await user.done("INFER", job, input={"text": "two"})
    assert again["container_id"] == created["container_id"]
    await user.done("TERMINATE", job)
