"""Drains while inferences come and dispatchers die."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.casualties import HOST, LOST_WITHIN_S, admit, only, tagged
from tests.faults.table import DRAINS
from tests.faults.test_dispatcher import KILLED
from tests.faults.yard import Yard, lasts, points
from tests.support.waiting import eventually

BOTH = ("dispatcher", "dispatcher-2")
TARGET = "h2"
JOBS = 3
LOAD_S = 2.0
DRAINED_WITHIN_S = 90.0
DEADLINE_S = 8.0
SLOW_S = 12.0
"""Longer than a drain's deadline, and long enough to do something to a move in the middle."""
MOVE_POINTS = points("dispatcher.move")
GIVEN_UP_POINTS = points("dispatcher.move_given_up")
END_POINTS = points("dispatcher.drain", "dispatcher.end")
pytestmark = [pytest.mark.faults, pytest.mark.fault(DRAINS)]


async def test_a_drain_that_moves_costs_no_inference_though_dispatchers_die(yard: Yard) -> None:
    jobs = await _jobs(yard, JOBS, load_s=LOAD_S)
    async with _inferring(yard, jobs) as ids:
        await admit(yard, HOST, "drain", move="true")
        for name in BOTH:
            await lasts(1)
            await yard.restart(name)
        await _drained(yard)
    await yard.holds()
    await yard.succeeded(ids)
    assert len(ids) > 10 * JOBS
    for job_id in jobs:
        await _is_moved(yard, job_id)
    assert not (await yard.host(HOST))["reservations"]
    await admit(yard, HOST, "uncordon")


async def test_a_move_whose_target_restarts_in_the_middle_arrives(yard: Yard) -> None:
    jobs = await _jobs(yard, 2, load_s=SLOW_S)
    async with _inferring(yard, jobs) as ids:
        await admit(yard, HOST, "drain", move="true")
        await _loading_there(yard)
        await yard.restart(f"worker-{TARGET}")
        await _drained(yard)
    await yard.holds()
    await yard.succeeded(ids)
    for job_id in jobs:
        await _is_moved(yard, job_id)
    await admit(yard, HOST, "uncordon")


@pytest.mark.timeout(420)
async def test_a_move_whose_target_is_lost_leaves_its_job_where_it_is(yard: Yard) -> None:
    (job_id,) = await _jobs(yard, 1, load_s=SLOW_S)
    async with _inferring(yard, [job_id]) as ids:
        await admit(yard, HOST, "drain", move="true")
        await _loading_there(yard)
        await yard.kill(f"worker-{TARGET}")
        await yard.liveness(TARGET, "LOST", within_s=LOST_WITHIN_S)
        await eventually(lambda: _gave_up(yard, job_id), within_s=30, what="the move given up")
        job = await yard.job(job_id)
        assert (job["state"], job["host_id"]) == ("LOADED", HOST), job
        assert not (await yard.host(HOST))["drain"]["done"]
        assert not (await yard.host(TARGET))["reservations"]
        # When there is a place for it again it is moved after all.
        await yard.launch(f"worker-{TARGET}")
        await yard.online(f"worker-{TARGET}")
        await _drained(yard)
    await yard.holds()
    await yard.succeeded(ids)
    await _is_moved(yard, job_id)
    await admit(yard, HOST, "uncordon")


async def test_a_move_that_is_not_done_by_the_deadline_is_given_up_with_its_job(yard: Yard) -> None:
    (quick,) = await _jobs(yard, 1, load_s=0.5, model="moves-quickly")
    (slow,) = await _jobs(yard, 1, load_s=SLOW_S)
    began = time.monotonic()
    await admit(yard, HOST, "drain", move="true", deadline_s=DEADLINE_S)
    await _drained(yard)
    assert time.monotonic() - began > DEADLINE_S - 1
    await yard.holds()
    await _is_moved(yard, quick)
    job = await yard.job(slow)
    assert (job["state"], job["host_id"]) == ("TERMINATED", None), job
    held = (await yard.host(TARGET))["reservations"]
    assert [one["job_id"] for one in held] == [quick]
    assert not await yard.engines[HOST].labelled(HOST)
    assert len(await yard.engines[TARGET].labelled(TARGET)) == 1
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


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", MOVE_POINTS)
async def test_a_dispatcher_killed_between_two_steps_of_a_move_costs_nothing(
    yard: Yard, point: str
) -> None:
    jobs = await _jobs(yard, 2, load_s=0.5)
    async with _inferring(yard, jobs) as ids:
        async with yard.dispatcher_dies_at(point):
            await admit(yard, HOST, "drain", move="true")
        await _drained(yard)
    await yard.holds()
    await yard.succeeded(ids)
    for job_id in jobs:
        job = await yard.job(job_id)
        assert (job["state"], job["host_id"]) == ("LOADED", TARGET), job
    assert not (await yard.host(HOST))["reservations"]
    assert len((await yard.host(TARGET))["reservations"]) == len(jobs)
    await admit(yard, HOST, "uncordon")


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", GIVEN_UP_POINTS)
async def test_a_dispatcher_killed_while_it_gives_a_move_up_leaks_nothing(
    yard: Yard, point: str
) -> None:
    (job_id,) = await _jobs(yard, 1, load_s=6)
    async with _inferring(yard, [job_id]) as ids:
        async with yard.dispatcher_dies_at(point):
            await admit(yard, HOST, "drain", move="true")
            await _loading_there(yard)
            await admit(yard, TARGET, "drain")
        await eventually(lambda: _gave_up(yard, job_id), within_s=30, what="the move given up")
        await _drained(yard, TARGET)
    for host_id in (HOST, TARGET):
        await admit(yard, host_id, "uncordon")
    await yard.holds()
    await yard.succeeded(ids)
    job = await yard.job(job_id)
    assert (job["state"], job["host_id"]) == ("LOADED", HOST), job
    assert not (await yard.host(TARGET))["reservations"]


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", END_POINTS)
async def test_a_dispatcher_killed_while_it_ends_what_is_left_by_the_deadline_leaks_nothing(
    yard: Yard, point: str
) -> None:
    job_id = yard.job_id()
    async with only(yard, HOST):
        await yard.loaded(job_id)
        temp = await tagged(yard, "TEMP", yard.job_id(), sleep=60, model="load-http")
        await yard.running(temp)
        await yard.running_state(temp)
    async with yard.dispatcher_dies_at(point):
        await admit(yard, HOST, "drain", deadline_s=1)
    one = await yard.ended(temp)
    assert (one["state"], one["error"]["code"]) == ("FAILED", "host_drained"), one
    await _drained(yard)
    assert (await yard.job(job_id))["state"] == "TERMINATED"
    await yard.holds()
    assert not await yard.engines[HOST].labelled(HOST)
    await admit(yard, HOST, "uncordon")


async def _jobs(yard: Yard, count: int, *, load_s: float, model: str = "moves") -> list[str]:
    """Load jobs on the host; each load takes so many seconds, on every host."""
    env = {"PROBE_LOAD_SECONDS": str(load_s)}
    await yard.put_probe(model, max_concurrency=2, env=env)
    jobs = [yard.job_id() for _ in range(count)]
    async with only(yard, HOST):
        await asyncio.gather(*(yard.loaded(job_id, model=model) for job_id in jobs))
    return jobs


@asynccontextmanager
async def _inferring(yard: Yard, jobs: list[str]) -> AsyncIterator[list[str]]:
    """Ask the jobs all the time meanwhile; the ids of the operations are there at the end."""
    over = asyncio.Event()
    ids: list[str] = []
    streams = [asyncio.create_task(_infer(yard, job_id, over)) for job_id in jobs]
    try:
        await yard.running_any()
        yield ids
    finally:
        over.set()
        ids += [one for stream in await asyncio.gather(*streams) for one in stream]


async def _infer(yard: Yard, job_id: str, over: asyncio.Event) -> list[str]:
    """Ask a job again and again; most inferences are short and some are not."""
    ids: list[str] = []
    while not over.is_set():
        ids.append(await tagged(yard, "INFER", job_id, sleep=3 if len(ids) % 10 == 0 else 0.2))
        await lasts(0.25)
    return ids


async def _loading_there(yard: Yard) -> None:
    """Return once the target loads what is moved to it."""
    loading = {"verb": "DEPLOY_LOAD", "host_id": TARGET, "state": "RUNNING"}

    async def it_does() -> bool:
        return await yard.database.count("operations", loading) > 0

    await eventually(it_does, within_s=30, what="a load on the target")


async def _gave_up(yard: Yard, job_id: str) -> bool:
    return not (await yard.job(job_id)).get("move")


async def _is_moved(yard: Yard, job_id: str) -> None:
    job = await yard.job(job_id)
    assert (job["state"], job["host_id"]) == ("LOADED", TARGET), job
    moved = {"type": "job.moved", "job_id": job_id}
    assert await yard.database.count("events", moved) == 1


async def _drained(yard: Yard, host_id: str = HOST) -> None:
    async def it_is() -> bool:
        return bool((await yard.host(host_id))["drain"]["done"])

    await eventually(it_is, within_s=DRAINED_WITHIN_S, what=f"{host_id} drained")
