"""Model servers that are busy, flood or are odd: what they are themselves, and nobody else."""

import asyncio
import json
import time
from typing import Any

import httpx2
import pytest

from tests.e2e.fleet import Engine
from tests.faults.harness.checked_fleet import CheckedFleet, Json
from tests.faults.table import BUSY, FLOODS, KEEPS, ODD
from tests.support.invariants.processes import grown
from tests.support.waiting import eventually

HOST = "h1"
HERE: dict[str, Any] = {"host_labels": {"name": HOST}}
BUSY_S = 60
"""Longer than the half minute after which a model that says no is unhealthy."""
ALL_AT_ONCE = 100
NEIGHBOUR_P95_S = 1.0
KINDS = ("continue", "headers", "body", "chunks", "trickle", "bomb")
HOSTILE_TIMEOUT_S = 20
REFUSED = {"cpus": 0.5, "memory": "512m"}
"""What the flooding container may use: it shares the machine with what is measured."""

pytestmark = pytest.mark.faults


def error_of(one: Json) -> Json:
    error: Json = one["error"]
    return error


async def counted(fleet: CheckedFleet, job: Json) -> Json:
    """Return what the job's probe has counted; it is asked past Modelyard."""
    engine = Engine(fleet.servers.engines[job["host_id"]].url)
    try:
        return await engine.stats_page(job["container_id"])
    finally:
        await engine.close()


async def abandoned(fleet: CheckedFleet, job_id: str, seconds: float) -> None:
    """Leave the server at work on an inference for which nobody waits any more."""
    wish = {"sleep": seconds, "tag": job_id}
    one = await fleet.do("INFER", job_id, input=wish, timeout_s=1)
    assert one["state"] == "TIMED_OUT", one


async def answers_silently(fleet: CheckedFleet, job_id: str, since: float) -> None:
    """Look that the job is LOADED for as long as its server is busy."""
    while time.monotonic() - since < BUSY_S - 15:
        assert (await fleet.job(job_id))["state"] == "LOADED"
        await asyncio.sleep(1)


@pytest.mark.fault(BUSY)
async def test_a_busy_server_keeps_its_job_over_looks_and_a_restart_and_is_really_unloaded(
    fleet: CheckedFleet,
) -> None:
    await fleet.put_probe("one-thread", env={"PROBE_THREADS": "1"}, **HERE)
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id, model="one-thread")
    await abandoned(fleet, job_id, BUSY_S)
    since = time.monotonic()
    await fleet.restart(f"worker-{HOST}")
    await fleet.online(f"worker-{HOST}")
    await answers_silently(fleet, job_id, since)
    unload = await fleet.submit("DEPLOY_UNLOAD", job_id)
    one = await fleet.ended(unload, within_s=BUSY_S)
    assert one["state"] == "SUCCEEDED", one
    assert time.monotonic() - since > BUSY_S - 10, "it waited for its turn"
    stats = await counted(fleet, job)
    assert (stats["unload_calls"], stats["loaded"]) == (1, False)
    await fleet.done("DEPLOY_LOAD", job_id)
    await fleet.done("INFER", job_id, input={})
    await fleet.holds()


@pytest.mark.fault(BUSY)
async def test_the_unload_of_a_server_that_stays_busy_does_not_succeed(fleet: CheckedFleet) -> None:
    await fleet.put_probe("one-thread", env={"PROBE_THREADS": "1"}, **HERE)
    job_id = fleet.job_id()
    job = await fleet.loaded(job_id, model="one-thread")
    await abandoned(fleet, job_id, 20)
    one = await fleet.do("DEPLOY_UNLOAD", job_id, timeout_s=3)
    assert one["state"] in {"TIMED_OUT", "FAILED"}, one
    assert (await fleet.job(job_id))["state"] == "LOADED"

    async def it_was_sent() -> bool:
        try:
            return bool((await counted(fleet, job))["unload_calls"] == 1)
        except httpx2.TimeoutException:
            return False

    # What was sent is done when the server gets to it, whoever waits for that.
    await eventually(it_was_sent, within_s=60)
    await fleet.done("TERMINATE", job_id)
    await fleet.holds()


@pytest.mark.fault(KEEPS)
@pytest.mark.parametrize("killed", [False, True], ids=["", "the worker is killed meanwhile"])
async def test_a_server_that_keeps_its_memory_is_stopped_and_comes_back_on_demand(
    fleet: CheckedFleet, *, killed: bool
) -> None:
    await fleet.put_probe(
        "keeper",
        env={"PROBE_HOLD_BYTES": str(100 << 20), "PROBE_KEEPS": "1"},
        resources={"memory": "160m", "resident_memory": "100m"},
        residency={"on_demand": True},
        **HERE,
    )
    job_id = fleet.job_id()
    await fleet.loaded(job_id, model="keeper")
    unload = await fleet.submit("DEPLOY_UNLOAD", job_id)
    if killed:
        await fleet.running_state(unload)
        await fleet.kill(f"worker-{HOST}")
        await fleet.launch(f"worker-{HOST}")
        await fleet.online(f"worker-{HOST}")
    one = await fleet.ended(unload)
    assert (one["state"], error_of(one)["code"]) == ("FAILED", "memory_not_freed"), one
    assert (await fleet.job(job_id))["state"] == "CREATED"
    (held,) = [it for it in (await fleet.host(HOST))["reservations"] if it["job_id"] == job_id]
    assert held["resident"] is None
    await fleet.done("INFER", job_id, input={})
    await fleet.done("TERMINATE", job_id)
    await fleet.holds()


@pytest.mark.fault(FLOODS)
@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS], ids=["continue", "all kinds"])
async def test_a_hundred_floods_at_once_are_felt_by_nobody_else(
    fleet: CheckedFleet, kinds: tuple[str, ...]
) -> None:
    await fleet.put_probe("hostile", max_concurrency=ALL_AT_ONCE, resources=REFUSED, **HERE)
    await fleet.put_probe("honest", **HERE)
    hostile, honest = fleet.job_id(), fleet.job_id()
    await fleet.loaded(hostile, model="hostile")
    await fleet.loaded(honest, model="honest")
    incarnation = (await fleet.host(HOST))["incarnation"]
    floods = await asyncio.gather(
        *(
            fleet.submit(
                "INFER",
                hostile,
                input={"flood": kinds[n % len(kinds)]},
                timeout_s=HOSTILE_TIMEOUT_S,
            )
            for n in range(ALL_AT_ONCE)
        )
    )
    took_s: list[float] = []
    until = time.monotonic() + HOSTILE_TIMEOUT_S
    while time.monotonic() < until:
        began = time.monotonic()
        await fleet.done("INFER", honest, input={})
        took_s.append(time.monotonic() - began)
        host = await fleet.host(HOST)
        assert (host["liveness"], host["incarnation"]) == ("ONLINE", incarnation)
    took_s.sort()
    assert took_s[int(len(took_s) * 0.95) - 1] < NEIGHBOUR_P95_S, took_s[-10:]
    ends = [await fleet.ended(one) for one in floods]
    assert {one["state"] for one in ends} <= {"FAILED", "TIMED_OUT"}
    assert {(await fleet.job(job_id))["state"] for job_id in (hostile, honest)} == {"LOADED"}

    async def nothing_is_kept_of_it() -> bool:
        # A hundred attempts asked the engine at once; idle connections to it last 15 s.
        return not list(grown(fleet.holdings.first, fleet.holdings.now()))

    await eventually(nothing_is_kept_of_it, within_s=60)
    await fleet.holds()


@pytest.mark.fault(ODD)
@pytest.mark.parametrize(
    ("env", "wish", "code", "says"),
    [
        ({}, {"empty": 204}, "bad_result", "answered 204 to POST /infer without content"),
        ({}, {"not_json": True}, "bad_result", "application/json"),
        ({}, {"image": True}, None, ""),
        ({}, {"close": True}, "inference_failed", "closed without an answer"),
        ({"PROBE_ENCODING": "gzip"}, {}, "bad_result", "gzip"),
        ({"PROBE_ENCODING": "Identity"}, {}, None, ""),
        ({"PROBE_ENCODING": "gzip", "PROBE_ENCODING_ON": "load,unload,ready,alive"}, {}, None, ""),
        ({"PROBE_EARLY": "1"}, {"blob": "x" * 100_000}, None, ""),
        ({"PROBE_IDLE_SECONDS": "0.1"}, {}, None, ""),
    ],
    ids=["204", "text", "image", "closes", "gzip", "Identity", "gzip-hooks", "early", "idle"],
)
async def test_an_odd_answer_is_a_result_or_an_error_that_says_what_came(
    fleet: CheckedFleet, env: dict[str, str], wish: Json, code: str | None, says: str
) -> None:
    name = f"odd-{'-'.join(env.values()) or 'usual'}".replace(".", "-").replace(",", "-").lower()
    await fleet.put_probe(name, env=env)
    job_id = fleet.job_id()
    await fleet.loaded(job_id, model=name)
    one = await fleet.do("INFER", job_id, input=wish)
    if code is None:
        assert one["state"] == "SUCCEEDED", one
    else:
        assert (one["state"], error_of(one)["code"]) == ("FAILED", code), one
        assert says in json.dumps(error_of(one)), one
    assert (await fleet.job(job_id))["state"] == "LOADED"
    await fleet.done("DEPLOY_UNLOAD", job_id)
    await fleet.holds()


@pytest.mark.fault(ODD)
@pytest.mark.parametrize("status", ["404", "501"])
async def test_a_server_that_loads_itself_is_loaded_and_unloaded_whenever_that_is_asked(
    fleet: CheckedFleet, status: str
) -> None:
    env = {"PROBE_NO_REPOSITORY": status, "PROBE_SELF_LOAD_SECONDS": "4"}
    await fleet.put_probe("loads-itself", base="probe-open-inference", env=env)
    early, late = fleet.job_id(), fleet.job_id()
    await fleet.loaded(early, model="loads-itself")
    created = await fleet.done("DEPLOY_CREATE", late, model="loads-itself")

    async def it_is_loaded() -> bool:
        return bool((await counted(fleet, await fleet.job(late)))["loaded"])

    assert created
    await eventually(it_is_loaded, within_s=20)
    await fleet.done("DEPLOY_LOAD", late)
    for job_id in (early, late):
        await fleet.done("INFER", job_id, input={})
        await fleet.done("DEPLOY_UNLOAD", job_id)
        job = await fleet.job(job_id)
        listed = await fleet.engines[job["host_id"]].containers()
        (found,) = [one for one in listed if one["Id"] == job["container_id"]]
        assert found["State"] == "exited", "nothing of the model is in memory"
        await fleet.done("DEPLOY_LOAD", job_id)
        await fleet.done("INFER", job_id, input={})
    await fleet.holds()


@pytest.mark.fault(ODD)
@pytest.mark.parametrize(
    "odd",
    [{"env": {"PROBE_LISTEN": "127.0.0.1"}}, {"env": {"PROBE_PORT": "8081"}}],
    ids=["loopback", "port"],
)
async def test_a_server_that_can_not_be_reached_says_what_was_asked_and_what_to_do(
    fleet: CheckedFleet, odd: dict[str, Any]
) -> None:
    await fleet.put_probe("unreachable", start_timeout_s=3, **odd)
    one = await fleet.do("DEPLOY_CREATE", fleet.job_id(), model="unreachable")
    error = error_of(one)
    assert (one["state"], error["code"]) == ("FAILED", "not_ready"), one
    assert "GET /alive on the container's port 8080" in error["message"]
    assert "0.0.0.0" in error["message"]
    await fleet.holds()


@pytest.mark.fault(ODD)
async def test_a_server_that_never_loads_itself_says_both_answers(fleet: CheckedFleet) -> None:
    env = {"PROBE_NO_REPOSITORY": "404"}
    await fleet.put_probe("never", base="probe-open-inference", env=env, load_timeout_s=2)
    job_id = fleet.job_id()
    await fleet.done("DEPLOY_CREATE", job_id, model="never")
    one = await fleet.do("DEPLOY_LOAD", job_id)
    assert (one["state"], error_of(one)["code"]) == ("FAILED", "not_ready"), one
    assert "answered 404" in error_of(one)["message"]
    assert "503" in error_of(one)["message"]
    await fleet.holds()
