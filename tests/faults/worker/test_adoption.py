"""A worker that comes back goes on with the very container that it had made."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from modelyard.process.crash_points import VARIABLE
from tests.faults.harness.checked_fleet import CheckedFleet

KILLED = "Worker killed at every Docker step"
HOST = "h1"
POINTS = (
    "worker.after_create",
    "worker.after_start",
    "worker.after_load",
    "worker.before_end",
    "worker.before_end:2",
)
"""The first end is that of the create, the second that of the load."""
LOOK_EVERY_S = 0.05
pytestmark = [pytest.mark.faults, pytest.mark.fault(KILLED)]


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_that_was_killed_goes_on_with_the_container_that_was_there(
    fleet: CheckedFleet, point: str
) -> None:
    await fleet.stop("worker-h1", "worker-h2")
    await fleet.launch("worker-h1", **{VARIABLE: point})
    job_id = fleet.job_id()
    async with _watched(fleet, job_id) as seen:
        ids = [
            await fleet.submit("DEPLOY_CREATE", job_id, model="load-http"),
            await fleet.submit("DEPLOY_LOAD", job_id),
        ]
        await fleet.died_at("worker-h1", point)
        (left,) = await _containers(fleet, job_id)
        await fleet.launch("worker-h2")
        await fleet.launch("worker-h1")
        for operation_id in ids:
            await fleet.ended(operation_id)
        await fleet.done("INFER", job_id, input={})
        await fleet.holds()
    await fleet.succeeded(ids)
    job = await fleet.job(job_id)
    assert (job["state"], job["host_id"], job["container_id"]) == ("LOADED", HOST, left), job
    assert await _containers(fleet, job_id) == {left}
    assert seen.samples > 10
    assert seen.most == 1
    assert seen.ids == {left}


@dataclass
class Seen:
    """What the engines showed of one job."""

    samples: int = 0
    most: int = 0
    """Containers at one moment."""
    ids: set[str] = field(default_factory=set)


@asynccontextmanager
async def _watched(fleet: CheckedFleet, job_id: str) -> AsyncIterator[Seen]:
    """Look at a job's containers many times a second meanwhile."""
    seen = Seen()
    over = asyncio.Event()
    looking = asyncio.create_task(_look(fleet, job_id, seen, over))
    try:
        yield seen
    finally:
        over.set()
        await looking


async def _look(fleet: CheckedFleet, job_id: str, seen: Seen, over: asyncio.Event) -> None:
    while not over.is_set():
        found = await _containers(fleet, job_id)
        seen.samples += 1
        seen.most = max(seen.most, len(found))
        seen.ids |= found
        await asyncio.sleep(LOOK_EVERY_S)


async def _containers(fleet: CheckedFleet, job_id: str) -> set[str]:
    """Return the ids of a job's containers on all engines."""
    return {
        one.container_id
        for host_id, engine in fleet.engines.items()
        for one in await engine.labelled(host_id)
        if one.job_id == job_id
    }
