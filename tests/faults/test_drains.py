"""Drains while inferences come and dispatchers die."""

import asyncio
import time

import pytest

from tests.faults.casualties import HOST, admit, only, tagged
from tests.faults.table import DRAINS
from tests.faults.yard import Yard, lasts
from tests.support.waiting import eventually

BOTH = ("dispatcher", "dispatcher-2")
JOBS = 3
LOAD_S = 2.0
DRAINED_WITHIN_S = 90.0
DEADLINE_S = 8.0
pytestmark = [pytest.mark.faults, pytest.mark.fault(DRAINS)]


async def test_a_drain_that_moves_costs_no_inference_though_dispatchers_die(yard: Yard) -> None:
    env = {"PROBE_LOAD_SECONDS": str(LOAD_S)}
    await yard.put_probe("moves", max_concurrency=2, env=env)
    jobs = [yard.job_id() for _ in range(JOBS)]
    async with only(yard, HOST):
        await asyncio.gather(*(yard.loaded(job_id, model="moves") for job_id in jobs))
    drained = asyncio.Event()
    streams = [asyncio.create_task(_infer(yard, job_id, drained)) for job_id in jobs]
    try:
        await yard.running_any()
        await admit(yard, HOST, "drain", move="true")
        for name in BOTH:
            await lasts(1)
            await yard.restart(name)
        await _drained(yard)
    finally:
        drained.set()
        ids = [one for stream in await asyncio.gather(*streams) for one in stream]
    await yard.holds()
    await yard.succeeded(ids)
    assert len(ids) > 10 * JOBS
    for job_id in jobs:
        job = await yard.job(job_id)
        assert (job["state"], job["host_id"]) == ("LOADED", "h2"), job
        moved = {"type": "job.moved", "job_id": job_id}
        assert await yard.database.count("events", moved) == 1
    assert not (await yard.host(HOST))["reservations"]
    await admit(yard, HOST, "uncordon")


async def test_a_drain_with_a_deadline_ends_what_is_left_by_then(yard: Yard) -> None:
    resting, working = yard.job_id(), yard.job_id()
    async with only(yard, HOST):
        await asyncio.gather(yard.loaded(resting), yard.loaded(working))
        temp = await tagged(yard, "TEMP", yard.job_id(), sleep=60, model="load-http")
        long = await tagged(yard, "INFER", working, sleep=60)
        for operation_id in (temp, long):
            await yard.running(operation_id)
            await yard.running_state(operation_id)
    began = time.monotonic()
    await admit(yard, HOST, "drain", deadline_s=DEADLINE_S)
    short = await tagged(yard, "INFER", resting, sleep=1)
    for name in BOTH:
        await yard.restart(name)
    await yard.succeeded([(await yard.ended(short))["_id"]])
    for operation_id in (temp, long):
        one = await yard.ended(operation_id)
        assert (one["state"], one["error"]["code"]) == ("FAILED", "host_drained"), one
        assert time.monotonic() - began > DEADLINE_S - 1
    await _drained(yard)
    for job_id in (resting, working):
        assert (await yard.job(job_id))["state"] == "TERMINATED"
    await yard.holds()
    assert not await yard.engines[HOST].labelled(HOST)
    await admit(yard, HOST, "uncordon")


async def _infer(yard: Yard, job_id: str, over: asyncio.Event) -> list[str]:
    """Ask a job again and again; most inferences are short and some are not."""
    ids: list[str] = []
    while not over.is_set():
        ids.append(await tagged(yard, "INFER", job_id, sleep=3 if len(ids) % 10 == 0 else 0.2))
        await lasts(0.25)
    return ids


async def _drained(yard: Yard) -> None:
    async def it_is() -> bool:
        return bool((await yard.host(HOST))["drain"]["done"])

    await eventually(it_is, within_s=DRAINED_WITHIN_S, what=f"{HOST} drained")
