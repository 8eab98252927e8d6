"""Drains while inferences come and dispatchers die."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.dispatcher.test_dispatcher import KILLED
from tests.faults.harness.casualties import HOST, LOST_WITHIN_S, admit, only, tagged
from tests.faults.harness.checked_fleet import CheckedFleet, lasts, points
from tests.faults.table import DRAINS
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


async def test_a_drain_that_moves_costs_no_inference_though_dispatchers_die(
    fleet: CheckedFleet,
) -> None:
    jobs = await _jobs(fleet, JOBS, load_s=LOAD_S)
    async with _inferring(fleet, jobs) as ids:
        await admit(fleet, HOST, "drain", move="true")
        for name in BOTH:
            await lasts(1)
            await fleet.restart(name)
        await _drained(fleet)
    await fleet.holds()
    await fleet.succeeded(ids)
    assert len(ids) > 10 * JOBS
    for job_id in jobs:
        await _is_moved(fleet, job_id)
    assert not (await fleet.host(HOST))["reservations"]
    await admit(fleet, HOST, "uncordon")


async def test_a_move_whose_target_restarts_in_the_middle_arrives(fleet: CheckedFleet) -> None:
    jobs = await _jobs(fleet, 2, load_s=SLOW_S)
    async with _inferring(fleet, jobs) as ids:
        await admit(fleet, HOST, "drain", move="true")
        await _loading_there(fleet)
        await fleet.restart(f"worker-{TARGET}")
        await _drained(fleet)
    await fleet.holds()
    await fleet.succeeded(ids)
    for job_id in jobs:
        await _is_moved(fleet, job_id)
    await admit(fleet, HOST, "uncordon")


@pytest.mark.timeout(420)
async def test_a_move_whose_target_is_lost_leaves_its_job_where_it_is(fleet: CheckedFleet) -> None:
    (job_id,) = await _jobs(fleet, 1, load_s=SLOW_S)
    async with _inferring(fleet, [job_id]) as ids:
        await admit(fleet, HOST, "drain", move="true")
        await _loading_there(fleet)
        await fleet.kill(f"worker-{TARGET}")
        await fleet.liveness(TARGET, "LOST", within_s=LOST_WITHIN_S)
        await eventually(lambda: _gave_up(fleet, job_id), within_s=30, what="the move given up")
        job = await fleet.job(job_id)
        assert (job["state"], job["host_id"]) == ("LOADED", HOST), job
        assert not (await fleet.host(HOST))["drain"]["done"]
        assert not (await fleet.host(TARGET))["reservations"]
        # When there is a place for it again it is moved after all.
        await fleet.launch(f"worker-{TARGET}")
        await fleet.online(f"worker-{TARGET}")
        await _drained(fleet)
    await fleet.holds()
    await fleet.succeeded(ids)
    await _is_moved(fleet, job_id)
    await admit(fleet, HOST, "uncordon")


async def test_a_move_that_is_not_done_by_the_deadline_is_given_up_with_its_job(
    fleet: CheckedFleet,
) -> None:
    (quick,) = await _jobs(fleet, 1, load_s=0.5, model="moves-quickly")
    (slow,) = await _jobs(fleet, 1, load_s=SLOW_S)
    began = time.monotonic()
    await admit(fleet, HOST, "drain", move="true", deadline_s=DEADLINE_S)
    await _drained(fleet)
    assert time.monotonic() - began > DEADLINE_S - 1
    await fleet.holds()
    await _is_moved(fleet, quick)
    job = await fleet.job(slow)
    assert (job["state"], job["host_id"]) == ("TERMINATED", None), job
    held = (await fleet.host(TARGET))["reservations"]
    assert [one["job_id"] for one in held] == [quick]
    assert not await fleet.engines[HOST].labelled(HOST)
    assert len(await fleet.engines[TARGET].labelled(TARGET)) == 1
    await admit(fleet, HOST, "uncordon")


async def test_a_drain_with_a_deadline_ends_what_is_left_by_then(fleet: CheckedFleet) -> None:
    resting, working = fleet.job_id(), fleet.job_id()
    async with only(fleet, HOST):
        await asyncio.gather(fleet.loaded(resting), fleet.loaded(working))
        temp = await tagged(fleet, "TEMP", fleet.job_id(), sleep=60, model="load-http")
        long = await tagged(fleet, "INFER", working, sleep=60)
        for operation_id in (temp, long):
            await fleet.running(operation_id)
            await fleet.running_state(operation_id)
    began = time.monotonic()
    await admit(fleet, HOST, "drain", deadline_s=DEADLINE_S)
    short = await tagged(fleet, "INFER", resting, sleep=1)
    for name in BOTH:
        await fleet.restart(name)
    await fleet.succeeded([(await fleet.ended(short))["_id"]])
    for operation_id in (temp, long):
        one = await fleet.ended(operation_id)
        assert (one["state"], one["error"]["code"]) == ("FAILED", "host_drained"), one
        assert time.monotonic() - began > DEADLINE_S - 1
    await _drained(fleet)
    for job_id in (resting, working):
        assert (await fleet.job(job_id))["state"] == "TERMINATED"
    await fleet.holds()
    assert not await fleet.engines[HOST].labelled(HOST)
    await admit(fleet, HOST, "uncordon")


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", MOVE_POINTS)
async def test_a_dispatcher_killed_between_two_steps_of_a_move_costs_nothing(
    fleet: CheckedFleet, point: str
) -> None:
    jobs = await _jobs(fleet, 2, load_s=0.5)
    async with _inferring(fleet, jobs) as ids:
        async with fleet.dispatcher_dies_at(point):
            await admit(fleet, HOST, "drain", move="true")
        await _drained(fleet)
    await fleet.holds()
    await fleet.succeeded(ids)
    for job_id in jobs:
        job = await fleet.job(job_id)
        assert (job["state"], job["host_id"]) == ("LOADED", TARGET), job
    assert not (await fleet.host(HOST))["reservations"]
    assert len((await fleet.host(TARGET))["reservations"]) == len(jobs)
    await admit(fleet, HOST, "uncordon")


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", GIVEN_UP_POINTS)
async def test_a_dispatcher_killed_while_it_gives_a_move_up_leaks_nothing(
    fleet: CheckedFleet, point: str
) -> None:
    (job_id,) = await _jobs(fleet, 1, load_s=6)
    async with _inferring(fleet, [job_id]) as ids:
        async with fleet.dispatcher_dies_at(point):
            await admit(fleet, HOST, "drain", move="true")
            await _loading_there(fleet)
            await admit(fleet, TARGET, "drain")
        await eventually(lambda: _gave_up(fleet, job_id), within_s=30, what="the move given up")
        await _drained(fleet, TARGET)
    for host_id in (HOST, TARGET):
        await admit(fleet, host_id, "uncordon")
    await fleet.holds()
    await fleet.succeeded(ids)
    job = await fleet.job(job_id)
    assert (job["state"], job["host_id"]) == ("LOADED", HOST), job
    assert not (await fleet.host(TARGET))["reservations"]


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", END_POINTS)
async def test_a_dispatcher_killed_while_it_ends_what_is_left_by_the_deadline_leaks_nothing(
    fleet: CheckedFleet, point: str
) -> None:
    job_id = fleet.job_id()
    async with only(fleet, HOST):
        await fleet.loaded(job_id)
        temp = await tagged(fleet, "TEMP", fleet.job_id(), sleep=60, model="load-http")
        await fleet.running(temp)
        await fleet.running_state(temp)
    async with fleet.dispatcher_dies_at(point):
        await admit(fleet, HOST, "drain", deadline_s=1)
    one = await fleet.ended(temp)
    assert (one["state"], one["error"]["code"]) == ("FAILED", "host_drained"), one
    await _drained(fleet)
    assert (await fleet.job(job_id))["state"] == "TERMINATED"
    await fleet.holds()
    assert not await fleet.engines[HOST].labelled(HOST)
    await admit(fleet, HOST, "uncordon")


async def _jobs(
    fleet: CheckedFleet, count: int, *, load_s: float, model: str = "moves"
) -> list[str]:
    """Load jobs on the host; each load takes so many seconds, on every host."""
    env = {"PROBE_LOAD_SECONDS": str(load_s)}
    await fleet.put_probe(model, max_concurrency=2, env=env)
    jobs = [fleet.job_id() for _ in range(count)]
    async with only(fleet, HOST):
        await asyncio.gather(*(fleet.loaded(job_id, model=model) for job_id in jobs))
    return jobs


@asynccontextmanager
async def _inferring(fleet: CheckedFleet, jobs: list[str]) -> AsyncIterator[list[str]]:
    """Ask the jobs all the time meanwhile; the ids of the operations are there at the end."""
    over = asyncio.Event()
    ids: list[str] = []
    streams = [asyncio.create_task(_infer(fleet, job_id, over)) for job_id in jobs]
    try:
        await fleet.running_any()
        yield ids
    finally:
        over.set()
        ids += [one for stream in await asyncio.gather(*streams) for one in stream]


async def _infer(fleet: CheckedFleet, job_id: str, over: asyncio.Event) -> list[str]:
    """Ask a job again and again; most inferences are short and some are not."""
    ids: list[str] = []
    while not over.is_set():
        ids.append(await tagged(fleet, "INFER", job_id, sleep=3 if len(ids) % 10 == 0 else 0.2))
        await lasts(0.25)
    return ids


async def _loading_there(fleet: CheckedFleet) -> None:
    """Return once the target loads what is moved to it."""
    loading = {"verb": "DEPLOY_LOAD", "host_id": TARGET, "state": "RUNNING"}

    async def it_does() -> bool:
        return await fleet.database.count("operations", loading) > 0

    await eventually(it_does, within_s=30, what="a load on the target")


async def _gave_up(fleet: CheckedFleet, job_id: str) -> bool:
    return not (await fleet.job(job_id)).get("move")


async def _is_moved(fleet: CheckedFleet, job_id: str) -> None:
    job = await fleet.job(job_id)
    assert (job["state"], job["host_id"]) == ("LOADED", TARGET), job
    moved = {"type": "job.moved", "job_id": job_id}
    assert await fleet.database.count("events", moved) == 1


async def _drained(fleet: CheckedFleet, host_id: str = HOST) -> None:
    async def it_is() -> bool:
        return bool((await fleet.host(host_id))["drain"]["done"])

    await eventually(it_is, within_s=DRAINED_WITHIN_S, what=f"{host_id} drained")
