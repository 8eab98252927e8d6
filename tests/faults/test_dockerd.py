"""Faults of a host's Docker Engine: restarted, frozen, slow, silent."""

import asyncio

import pytest

from tests.faults.load import Mix
from tests.faults.wires import Wires
from tests.faults.yard import Yard, lasts
from tests.support.waiting import eventually

DOCKERD = "dockerd restarted, frozen, slow (30 s a call), its event stream dropped"
CALL_S = 30.0
REPAIRED_S = 20.0
pytestmark = [pytest.mark.faults, pytest.mark.fault(DOCKERD)]


async def on_h1(yard: Yard) -> str:
    """Bring a job to LOADED on the first host."""
    await yard.put_probe("on-h1", host_labels={"name": "h1"})
    job_id = yard.job_id()
    await yard.loaded(job_id, model="on-h1")
    return job_id


async def test_a_frozen_engine_makes_its_host_suspect_and_no_container_exit(yard: Yard) -> None:
    job_id = await on_h1(yard)
    engine = yard.servers.engines["h1"]
    engine.pause()
    try:
        await yard.liveness("h1", "SUSPECT", within_s=40)
        other = await yard.done("TEMP", yard.job_id(), model="load-http", input={})
        assert other["host_id"] == "h2"
    finally:
        engine.resume()
        yard.invariants.disturbed()
    await yard.liveness("h1", "ONLINE", within_s=30)
    assert (await yard.job(job_id))["state"] == "LOADED"
    await yard.done("INFER", job_id, input={})
    await yard.holds()


async def test_a_slow_engine_makes_its_host_suspect_and_no_container_exit(wires: Wires) -> None:
    yard = wires.yard
    job_id = await on_h1(yard)
    wires.worker_docker.slow(CALL_S / 2)
    await yard.liveness("h1", "SUSPECT", within_s=60)
    load = await yard.load()
    ids = await load.run()
    await lasts(CALL_S)
    assert (await yard.job(job_id))["state"] == "LOADED"
    await wires.worker_docker.heal()
    yard.invariants.disturbed()
    await yard.liveness("h1", "ONLINE", within_s=40)
    await yard.holds()
    await yard.succeeded(ids)
    await yard.done("INFER", job_id, input={})


async def test_an_event_stream_that_is_dropped_again_and_again_costs_nothing(wires: Wires) -> None:
    yard = wires.yard
    job_id = await on_h1(yard)
    load = await yard.load(pause_s=0.2)
    loading = asyncio.create_task(load.run())
    while not loading.done():
        await wires.worker_docker.drop(b"/events")
        await lasts(0.5)
    ids = await loading
    killed = (await yard.job(job_id))["container_id"]
    await wires.worker_docker.drop(b"/events")
    await yard.engines["h1"].kill(killed)
    await failed(yard, job_id, within_s=REPAIRED_S)
    await yard.holds()
    await yard.succeeded(ids)


async def test_connections_to_the_engine_that_break_in_the_middle_are_no_exits(
    wires: Wires,
) -> None:
    yard = wires.yard
    job_id = await on_h1(yard)
    load = await yard.load(pause_s=0.2)
    loading = asyncio.create_task(load.run())
    for _ in range(5):
        await lasts(1)
        await wires.worker_docker.drop()
    await loading
    await yard.holds()
    assert (await yard.job(job_id))["state"] == "LOADED"
    await yard.done("INFER", job_id, input={})


async def test_a_restarted_engine_takes_its_containers_along_and_that_is_recorded(
    yard: Yard,
) -> None:
    job_id = await on_h1(yard)
    load = await yard.load(Mix(jobs=2, temps=2, batches=1), pause_s=0.5)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    engine = yard.servers.engines["h1"]
    await asyncio.to_thread(engine.restart)
    await loading
    await failed(yard, job_id, within_s=REPAIRED_S + 10)
    await yard.holds()


async def failed(yard: Yard, job_id: str, *, within_s: float) -> None:
    """Return once a job has FAILED, without anybody having asked for it."""

    async def it_has() -> bool:
        return bool((await yard.job(job_id))["state"] == "FAILED")

    await eventually(it_has, within_s=within_s, what=f"{job_id} FAILED")
