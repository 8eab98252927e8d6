"""Each process of a fleet is replaced by that of the next version, and back, while clients go on.

The next version is the code of this checkout, the other one that of the last release.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from modelyard.contract.states import JobState
from tests.faults.harness.checked_fleet import DISPATCHERS, CheckedFleet
from tests.faults.harness.leading import leading
from tests.support.waiting import eventually
from tests.upgrade.containers import HOSTS, Json, loaded_and_created, seen_of
from tests.upgrade.previous import ROOT
from tests.upgrade.traffic import Traffic

WORKERS = ("worker-h1", "worker-h2")
ORDERS = {
    "workers last": (*DISPATCHERS, "gateway", *WORKERS),
    "workers first": (*WORKERS, "gateway", *DISPATCHERS),
}
START_S = 60
"""For a process to be ready, on a machine that is busy."""
SLEEPS_S = 60
"""For what is cancelled before."""


@pytest.mark.upgrade
@pytest.mark.timeout(900)
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
async def test_nothing_is_lost_or_repeated_while_each_process_is_replaced(
    fleet: CheckedFleet, previous: Path, order: tuple[str, ...]
) -> None:
    jobs = await loaded_and_created(fleet)
    loaded = [job_id for job_id, job in jobs.items() if job["state"] == JobState.LOADED]
    seen = await seen_of(fleet, jobs)
    before = await operations(fleet, {"job_id": {"$in": list(jobs)}})
    assert all(one["started_at"] and one["finished_at"] for one in before)

    async with going_on(Traffic(fleet, loaded)) as traffic:
        for name in order:
            await replace(fleet, name, ROOT)
            await everything_works(fleet, traffic)
        for name in reversed(order):
            await replace(fleet, name, previous)
            await traffic.goes_on()

    for operation_id in traffic.operation_ids:
        await fleet.ended(operation_id)
    await fleet.succeeded(traffic.operation_ids)
    runs = Counter(run.tag for run in fleet.collector.runs)
    assert {one: runs[one] for one in traffic.operation_ids} == dict.fromkeys(
        traffic.operation_ids, 1
    )
    ids_before = [one["_id"] for one in before]
    assert await operations(fleet, {"_id": {"$in": ids_before}}) == before
    assert await seen_of(fleet, jobs) == seen
    await fleet.holds()


async def operations(fleet: CheckedFleet, criteria: Json) -> list[Json]:
    """Return whole records."""
    found = await fleet.database.all("operations", criteria)
    return sorted(found, key=lambda one: str(one["_id"]))


@asynccontextmanager
async def going_on(traffic: Traffic) -> AsyncIterator[Traffic]:
    """Have clients go on meanwhile."""
    running = asyncio.create_task(traffic.run())
    try:
        await traffic.goes_on()
        yield traffic
    finally:
        running.cancel()
        await asyncio.wait((running,))
        if not running.cancelled() and (error := running.exception()):
            raise error


async def replace(fleet: CheckedFleet, name: str, root: Path) -> None:
    """Stop one process, start that of another version, and return when it is ready."""
    led = await leading(fleet, within_s=START_S)
    await fleet.stop(name)
    fleet.service(name).root = root
    await fleet.launch(name)
    if name in WORKERS:
        await fleet.online(name)
    elif name == "gateway":
        await fleet.ready(within_s=START_S)
    else:
        await eventually(lambda: ready(fleet, name), within_s=START_S, what=f"a ready {name}")
        await leading(fleet, after=led.term if led.name == name else 0, within_s=START_S)


async def ready(fleet: CheckedFleet, name: str) -> bool:
    """Whether a dispatcher that was launched has reached both servers."""
    await fleet.holdings.look_at_new()
    process = fleet.service(name).daemon.process
    first = fleet.holdings.first.get(name)
    return process is not None and first is not None and first.process == process


async def everything_works(fleet: CheckedFleet, traffic: Traffic) -> None:
    """Have all verbs and a cancel done by the versions that run now, on each host."""
    await asyncio.gather(
        traffic.goes_on(), *(whole_life(fleet, host_id) for host_id in HOSTS), cancelled(fleet)
    )


async def whole_life(fleet: CheckedFleet, host_id: str) -> None:
    job_id = fleet.job_id()
    await fleet.done("DEPLOY_CREATE", job_id, model=f"on-{host_id}")
    await fleet.done("DEPLOY_LOAD", job_id)
    answered = await fleet.done("INFER", job_id, input={"hello": host_id})
    assert answered["epoch"] == 1
    await fleet.done("DEPLOY_UNLOAD", job_id)
    await fleet.done("TERMINATE", job_id)


async def cancelled(fleet: CheckedFleet) -> None:
    """Cancel what runs."""
    tag = uuid.uuid4().hex
    wish = {"sleep": SLEEPS_S, "tag": tag}
    operation_id = await fleet.submit("TEMP", fleet.job_id(), model="load-http", input=wish)
    await fleet.running(tag)
    answer = await fleet.http.post(f"/v1/operations/{operation_id}/cancel")
    assert answer.is_success, answer.text
    ended = await fleet.ended(operation_id)
    assert ended["state"] == "CANCELLED", ended
