"""Faults of a host's Docker Engine: restarted, frozen, slow, silent."""

import asyncio
import time

import pytest

from modelyard.process.crash_points import VARIABLE
from tests.faults.harness.casualties import only
from tests.faults.harness.checked_fleet import CheckedFleet, Json, lasts
from tests.faults.harness.load import Mix
from tests.faults.harness.proxied_fleet import ProxiedFleet
from tests.support.servers.engines import die_at_removing
from tests.support.waiting import eventually

DOCKERD = "dockerd restarted, frozen, slow (30 s a call), its event stream dropped"
CALL_S = 30.0
"""Seconds after which the worker gives up a call of the engine, a create excepted."""
REPAIRED_S = 20.0
ELSEWHERE_S = 120.0
"""Seconds until what a host that is given up had in hand has ended elsewhere."""
CREATES_AT = "worker.before_create"
REMOVES_AT = "worker.before_remove"
EVENTS = b"/events"
pytestmark = [pytest.mark.faults, pytest.mark.fault(DOCKERD)]


async def on_h1(fleet: CheckedFleet) -> str:
    """Bring a job to LOADED on the first host."""
    await fleet.put_probe("on-h1", host_labels={"name": "h1"})
    job_id = fleet.job_id()
    await fleet.loaded(job_id, model="on-h1")
    return job_id


async def test_a_frozen_engine_makes_its_host_suspect_and_no_container_exit(
    fleet: CheckedFleet,
) -> None:
    job_id = await on_h1(fleet)
    engine = fleet.servers.engines["h1"]
    engine.pause()
    try:
        await fleet.liveness("h1", "SUSPECT", within_s=40)
        other = await fleet.done("TEMP", fleet.job_id(), model="load-http", input={})
        assert other["host_id"] == "h2"
    finally:
        engine.resume()
        fleet.invariants.disturbed()
    await fleet.liveness("h1", "ONLINE", within_s=30)
    assert (await fleet.job(job_id))["state"] == "LOADED"
    await fleet.done("INFER", job_id, input={})
    await fleet.holds()


@pytest.mark.parametrize("verb", ["DEPLOY_CREATE", "TEMP"])
async def test_what_waits_for_an_engine_that_froze_ends_elsewhere(
    fleet: CheckedFleet, verb: str
) -> None:
    """The engine still does when it thaws what it was asked; that container is nobody's then."""
    await fleet.stop("worker-h1")
    await fleet.launch("worker-h1", **{VARIABLE: f"{CREATES_AT}:freeze"})
    await fleet.online("worker-h1")
    fields: Json = {"input": {}} if verb == "TEMP" else {}
    engine = fleet.servers.engines["h1"]
    try:
        async with only(fleet, "h1"):
            asked = await fleet.submit(verb, fleet.job_id(), model="load-http", **fields)
            await fleet.came_to("worker-h1", CREATES_AT)
            engine.pause()
            fleet.service("worker-h1").resume()
            hanging = await fleet.running_state(asked)
            assert (hanging["host_id"], hanging["epoch"]) == ("h1", 1)
        end = await fleet.ended(asked, within_s=ELSEWHERE_S)
    finally:
        engine.resume()
        fleet.invariants.disturbed()
    assert (end["state"], end["host_id"]) == ("SUCCEEDED", "h2"), end
    assert end["epoch"] > 1
    await fleet.liveness("h1", "ONLINE", within_s=60)
    await fleet.holds()


async def test_a_call_that_the_engine_never_answers_times_out_and_is_made_again(
    proxied: ProxiedFleet,
) -> None:
    """All other calls are answered, so that nothing but the call's own deadline can end it."""
    fleet = proxied.fleet
    async with only(fleet, "h1"):
        proxied.worker_docker.hush(b"/start")
        asked = await fleet.submit("TEMP", fleet.job_id(), model="load-http", input={})
        await _waits_for_the_engine(proxied)
        began = time.monotonic()
    failed_once = await _attempted_again(fleet, asked)
    assert time.monotonic() - began > CALL_S - 5
    assert failed_once["error"]["code"] == "engine_unavailable", failed_once
    assert (await fleet.host("h1"))["liveness"] == "ONLINE"
    await fleet.succeeded([(await fleet.ended(asked))["_id"]])
    await proxied.worker_docker.heal()
    fleet.invariants.disturbed()
    await fleet.holds()


async def _waits_for_the_engine(proxied: ProxiedFleet) -> None:
    """Return once an answer of the engine has been swallowed."""

    async def it_does() -> bool:
        return proxied.worker_docker.lossy > 0

    await eventually(it_does, what="an answer that is swallowed")


async def _attempted_again(fleet: CheckedFleet, operation_id: str) -> Json:
    """Return an operation's document once its first attempt has failed and it is to have another.

    Its end would have another cause, or none.
    """

    async def it_is() -> Json | None:
        (one,) = await fleet.database.all("operations", {"_id": operation_id})
        return one if one["state"] == "QUEUED" and one.get("error") else None

    return await eventually(it_is, within_s=CALL_S + 15, what="the end of the first attempt")


async def test_a_slow_engine_makes_its_host_suspect_and_no_container_exit(
    proxied: ProxiedFleet,
) -> None:
    fleet = proxied.fleet
    job_id = await on_h1(fleet)
    proxied.worker_docker.slow(CALL_S / 2)
    await fleet.liveness("h1", "SUSPECT", within_s=60)
    load = await fleet.load()
    ids = await load.run()
    await lasts(CALL_S)
    assert (await fleet.job(job_id))["state"] == "LOADED"
    await proxied.worker_docker.heal()
    fleet.invariants.disturbed()
    await fleet.liveness("h1", "ONLINE", within_s=40)
    await fleet.holds()
    await fleet.succeeded(ids)
    await fleet.done("INFER", job_id, input={})


async def test_an_event_stream_that_is_dropped_again_and_again_costs_nothing(
    proxied: ProxiedFleet,
) -> None:
    fleet = proxied.fleet
    job_id = await on_h1(fleet)
    load = await fleet.load(pause_s=0.2)
    loading = asyncio.create_task(load.run())
    dropped = 0
    while not loading.done():
        dropped += await proxied.worker_docker.drop(EVENTS)
        await lasts(0.5)
    assert dropped > 1
    ids = await loading
    killed = (await fleet.job(job_id))["container_id"]
    await eventually(lambda: _dropped_stream(proxied), what="an event stream to drop")
    await fleet.engines["h1"].kill(killed)
    await failed(fleet, job_id, within_s=REPAIRED_S)
    await fleet.holds()
    await fleet.succeeded(ids)


async def test_a_death_that_the_event_stream_does_not_tell_is_seen_at_the_next_look(
    proxied: ProxiedFleet,
) -> None:
    """The stream stays open and is silent: one that was opened anew would have the worker look."""
    fleet = proxied.fleet
    job_id = await on_h1(fleet)
    await eventually(lambda: _hushed_stream(proxied), what="an event stream to hush")
    await fleet.engines["h1"].kill((await fleet.job(job_id))["container_id"])
    await failed(fleet, job_id, within_s=REPAIRED_S)
    assert proxied.worker_docker.lossy == 1, "nothing was swallowed, or the stream did not stay"
    await proxied.worker_docker.heal()
    fleet.invariants.disturbed()
    await fleet.holds()


async def _dropped_stream(proxied: ProxiedFleet) -> bool:
    return await proxied.worker_docker.drop(EVENTS) == 1


async def _hushed_stream(proxied: ProxiedFleet) -> bool:
    return proxied.worker_docker.hush(EVENTS) == 1


async def test_connections_to_the_engine_that_break_in_the_middle_are_no_exits(
    proxied: ProxiedFleet,
) -> None:
    fleet = proxied.fleet
    job_id = await on_h1(fleet)
    load = await fleet.load(pause_s=0.2)
    loading = asyncio.create_task(load.run())
    for _ in range(5):
        await lasts(1)
        await proxied.worker_docker.drop()
    await loading
    await fleet.holds()
    assert (await fleet.job(job_id))["state"] == "LOADED"
    await fleet.done("INFER", job_id, input={})


async def test_a_restarted_engine_takes_its_containers_along_and_that_is_recorded(
    fleet: CheckedFleet,
) -> None:
    job_id = await on_h1(fleet)
    load = await fleet.load(Mix(jobs=2, temps=2, batches=1), pause_s=0.5)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    engine = fleet.servers.engines["h1"]
    await asyncio.to_thread(engine.restart)
    fleet.invariants.disturbed()
    await failed(fleet, job_id, within_s=REPAIRED_S)
    await loading
    await fleet.holds()


async def test_a_container_that_the_engine_died_at_removing_is_removed_when_it_is_back(
    fleet: CheckedFleet,
) -> None:
    job_id = await on_h1(fleet)
    left = (await fleet.job(job_id))["container_id"]
    await asyncio.to_thread(die_at_removing, fleet.servers.engines["h1"], left)
    fleet.invariants.disturbed()
    await failed(fleet, job_id, within_s=REPAIRED_S)
    await fleet.holds()


async def test_a_terminate_whose_engine_and_worker_die_at_removing_leaves_nothing(
    fleet: CheckedFleet,
) -> None:
    await fleet.stop("worker-h1")
    await fleet.launch("worker-h1", **{VARIABLE: f"{REMOVES_AT}:freeze"})
    await fleet.online("worker-h1")
    job_id = await on_h1(fleet)
    left = (await fleet.job(job_id))["container_id"]
    asked = await fleet.submit("TERMINATE", job_id)
    await fleet.came_to("worker-h1", REMOVES_AT)
    await asyncio.to_thread(die_at_removing, fleet.servers.engines["h1"], left)
    await fleet.kill("worker-h1")
    await fleet.launch("worker-h1")
    await fleet.online("worker-h1")
    fleet.invariants.disturbed()
    await fleet.succeeded([(await fleet.ended(asked))["_id"]])
    await fleet.holds()


async def failed(fleet: CheckedFleet, job_id: str, *, within_s: float) -> None:
    """Return once a job has FAILED, without anybody having asked for it."""

    async def it_has() -> bool:
        return bool((await fleet.job(job_id))["state"] == "FAILED")

    await eventually(it_has, within_s=within_s, what=f"{job_id} FAILED")
