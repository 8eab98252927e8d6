"""Model servers that are busy, flood or are odd: what they are themselves, and nobody else."""

import asyncio
import json
import time
from typing import Any

import httpx2
import pytest

from tests.e2e.fleet import Engine
from tests.faults.table import BUSY, FLOODS, ODD
from tests.faults.yard import Json, Yard
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


async def counted(yard: Yard, job: Json) -> Json:
    """Return what the job's probe has counted; it is asked past Modelyard."""
    engine = Engine(yard.servers.engines[job["host_id"]].url)
    try:
        return await engine.stats_page(job["container_id"])
    finally:
        await engine.close()


async def abandoned(yard: Yard, job_id: str, seconds: float) -> None:
    """Leave the server at work on an inference for which nobody waits any more."""
    wish = {"sleep": seconds, "tag": job_id}
    one = await yard.do("INFER", job_id, input=wish, timeout_s=1)
    assert one["state"] == "TIMED_OUT", one


async def answers_silently(yard: Yard, job_id: str, since: float) -> None:
    """Look that the job is LOADED for as long as its server is busy."""
    while time.monotonic() - since < BUSY_S - 15:
        assert (await yard.job(job_id))["state"] == "LOADED"
        await asyncio.sleep(1)


@pytest.mark.fault(BUSY)
async def test_a_busy_server_keeps_its_job_over_looks_and_a_restart_and_is_really_unloaded(
    yard: Yard,
) -> None:
    await yard.put_probe("one-thread", env={"PROBE_THREADS": "1"}, **HERE)
    job_id = yard.job_id()
    job = await yard.loaded(job_id, model="one-thread")
    await abandoned(yard, job_id, BUSY_S)
    since = time.monotonic()
    await yard.restart(f"worker-{HOST}")
    await yard.online(f"worker-{HOST}")
    await answers_silently(yard, job_id, since)
    unload = await yard.submit("DEPLOY_UNLOAD", job_id)
    one = await yard.ended(unload, within_s=BUSY_S)
    assert one["state"] == "SUCCEEDED", one
    assert time.monotonic() - since > BUSY_S - 10, "it waited for its turn"
    stats = await counted(yard, job)
    assert (stats["unload_calls"], stats["loaded"]) == (1, False)
    await yard.done("DEPLOY_LOAD", job_id)
    await yard.done("INFER", job_id, input={})
    await yard.holds()


@pytest.mark.fault(BUSY)
async def test_the_unload_of_a_server_that_stays_busy_does_not_succeed(yard: Yard) -> None:
    await yard.put_probe("one-thread", env={"PROBE_THREADS": "1"}, **HERE)
    job_id = yard.job_id()
    job = await yard.loaded(job_id, model="one-thread")
    await abandoned(yard, job_id, 20)
    one = await yard.do("DEPLOY_UNLOAD", job_id, timeout_s=3)
    assert one["state"] in {"TIMED_OUT", "FAILED"}, one
    assert (await yard.job(job_id))["state"] == "LOADED"

    async def it_was_sent() -> bool:
        try:
            return bool((await counted(yard, job))["unload_calls"] == 1)
        except httpx2.TimeoutException:
            return False

    # What was sent is done when the server gets to it, whoever waits for that.
    await eventually(it_was_sent, within_s=60)
    await yard.done("TERMINATE", job_id)
    await yard.holds()


@pytest.mark.fault(FLOODS)
@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS], ids=["continue", "all kinds"])
async def test_a_hundred_floods_at_once_are_felt_by_nobody_else(
    yard: Yard, kinds: tuple[str, ...]
) -> None:
    await yard.put_probe("hostile", max_concurrency=ALL_AT_ONCE, resources=REFUSED, **HERE)
    await yard.put_probe("honest", **HERE)
    hostile, honest = yard.job_id(), yard.job_id()
    await yard.loaded(hostile, model="hostile")
    await yard.loaded(honest, model="honest")
    incarnation = (await yard.host(HOST))["incarnation"]
    floods = await asyncio.gather(
        *(
            yard.submit(
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
        await yard.done("INFER", honest, input={})
        took_s.append(time.monotonic() - began)
        host = await yard.host(HOST)
        assert (host["liveness"], host["incarnation"]) == ("ONLINE", incarnation)
    took_s.sort()
    assert took_s[int(len(took_s) * 0.95) - 1] < NEIGHBOUR_P95_S, took_s[-10:]
    ends = [await yard.ended(one) for one in floods]
    assert {one["state"] for one in ends} <= {"FAILED", "TIMED_OUT"}
    assert {(await yard.job(job_id))["state"] for job_id in (hostile, honest)} == {"LOADED"}

    async def nothing_is_kept_of_it() -> bool:
        # A hundred attempts asked the engine at once; idle connections to it last 15 s.
        return not list(grown(yard.holdings.first, yard.holdings.now()))

    await eventually(nothing_is_kept_of_it, within_s=60)
    await yard.holds()


@pytest.mark.fault(ODD)
@pytest.mark.parametrize(
    ("env", "wish", "code", "says"),
    [
        ({}, {"empty": 204}, "bad_result", "answered 204 to POST /infer without content"),
        ({}, {"not_json": True}, "bad_result", "text/plain"),
        ({}, {"image": True}, "bad_result", "image/png"),
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
    yard: Yard, env: dict[str, str], wish: Json, code: str | None, says: str
) -> None:
    name = f"odd-{'-'.join(env.values()) or 'usual'}".replace(".", "-").replace(",", "-").lower()
    await yard.put_probe(name, env=env)
    job_id = yard.job_id()
    await yard.loaded(job_id, model=name)
    one = await yard.do("INFER", job_id, input=wish)
    if code is None:
        assert one["state"] == "SUCCEEDED", one
    else:
        assert (one["state"], error_of(one)["code"]) == ("FAILED", code), one
        assert says in json.dumps(error_of(one)), one
    assert (await yard.job(job_id))["state"] == "LOADED"
    await yard.done("DEPLOY_UNLOAD", job_id)
    await yard.holds()


@pytest.mark.fault(ODD)
@pytest.mark.parametrize("status", ["404", "501"])
async def test_a_server_that_loads_itself_is_loaded_and_unloaded_whenever_that_is_asked(
    yard: Yard, status: str
) -> None:
    env = {"PROBE_NO_REPOSITORY": status, "PROBE_SELF_LOAD_SECONDS": "4"}
    await yard.put_probe("loads-itself", base="probe-open-inference", env=env)
    early, late = yard.job_id(), yard.job_id()
    await yard.loaded(early, model="loads-itself")
    created = await yard.done("DEPLOY_CREATE", late, model="loads-itself")

    async def it_is_loaded() -> bool:
        return bool((await counted(yard, await yard.job(late)))["loaded"])

    assert created
    await eventually(it_is_loaded, within_s=20)
    await yard.done("DEPLOY_LOAD", late)
    for job_id in (early, late):
        await yard.done("INFER", job_id, input={})
        await yard.done("DEPLOY_UNLOAD", job_id)
        job = await yard.job(job_id)
        listed = await yard.engines[job["host_id"]].containers()
        (found,) = [one for one in listed if one["Id"] == job["container_id"]]
        assert found["State"] == "exited", "nothing of the model is in memory"
        await yard.done("DEPLOY_LOAD", job_id)
        await yard.done("INFER", job_id, input={})
    await yard.holds()


@pytest.mark.fault(ODD)
@pytest.mark.parametrize(
    "odd",
    [{"env": {"PROBE_LISTEN": "127.0.0.1"}}, {"env": {"PROBE_PORT": "8081"}}],
    ids=["loopback", "port"],
)
async def test_a_server_that_can_not_be_reached_says_what_was_asked_and_what_to_do(
    yard: Yard, odd: dict[str, Any]
) -> None:
    await yard.put_probe("unreachable", start_timeout_s=3, **odd)
    one = await yard.do("DEPLOY_CREATE", yard.job_id(), model="unreachable")
    error = error_of(one)
    assert (one["state"], error["code"]) == ("FAILED", "not_ready"), one
    assert "GET /alive on the container's port 8080" in error["message"]
    assert "0.0.0.0" in error["message"]
    await yard.holds()


@pytest.mark.fault(ODD)
async def test_a_server_that_never_loads_itself_says_both_answers(yard: Yard) -> None:
    env = {"PROBE_NO_REPOSITORY": "404"}
    await yard.put_probe("never", base="probe-open-inference", env=env, load_timeout_s=2)
    job_id = yard.job_id()
    await yard.done("DEPLOY_CREATE", job_id, model="never")
    one = await yard.do("DEPLOY_LOAD", job_id)
    assert (one["state"], error_of(one)["code"]) == ("FAILED", "not_ready"), one
    assert "answered 404" in error_of(one)["message"]
    assert "503" in error_of(one)["message"]
    await yard.holds()
