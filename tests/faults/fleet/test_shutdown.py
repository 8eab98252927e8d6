"""Every process told to stop at once, and told twice."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from deploy.local.ports import LOOPBACK
from modelyard.process.shutdown import CUT_OFF
from tests.faults.harness.casualties import (
    HOST,
    LOST_WITHIN_S,
    back,
    incarnation,
    only,
    tagged,
)
from tests.faults.harness.checked_fleet import CheckedFleet, lasts
from tests.faults.harness.leading import leading
from tests.faults.harness.load import Mix
from tests.faults.table import SHUTDOWN
from tests.support.waiting import eventually

EXIT_S = 25.0
AT_ONCE_S = 3.0
BETWEEN_S = 0.5
"""Between two signals: two that come at once are one to the kernel."""
SHORT_S = 5.0
AWAY_S = 80.0
"""Longer than it takes to give a host up."""
LONG_S = 40.0
"""Longer than what runs may go on for when its worker is told to stop."""
pytestmark = [pytest.mark.faults, pytest.mark.fault(SHUTDOWN)]


async def test_everything_stops_at_once_under_load_and_goes_on_where_it_was(
    fleet: CheckedFleet,
) -> None:
    resting, working, overlong = jobs = [fleet.job_id() for _ in range(3)]
    before = {job_id: (await fleet.loaded(job_id))["container_id"] for job_id in jobs}
    short = await tagged(fleet, "INFER", working, sleep=SHORT_S)
    long = await tagged(fleet, "INFER", overlong, sleep=LONG_S)
    load = await fleet.load(Mix(jobs=2, temps=2, batches=1), pause_s=0.5)
    loading = asyncio.create_task(load.run())
    for operation_id in (short, long):
        await fleet.running(operation_id)
        await fleet.running_state(operation_id)
    every = list(fleet.processes.services)
    for name in every:
        fleet.service(name).daemon.terminate()
    await asyncio.gather(*(fleet.gone(name, within_s=EXIT_S) for name in every))
    assert {name: _exit_code(fleet, name) for name in every} == dict.fromkeys(every, 0)
    assert await _running_containers(fleet, jobs) == before
    for name in every:
        await fleet.launch(name)
    await fleet.ready()
    ids = await loading
    await fleet.holds()
    await fleet.succeeded([*ids, short])
    one = await fleet.ended(long)
    assert (one["state"], one["error"]["code"]) == ("FAILED", "worker_interrupted"), one
    for job_id in jobs:
        job = await fleet.job(job_id)
        assert (job["state"], job["container_id"]) == ("LOADED", before[job_id]), job
    assert await _running_containers(fleet, jobs) == before
    await fleet.done("INFER", resting, input={})


@pytest.mark.timeout(420)
async def test_what_a_stopped_worker_leaves_runs_nowhere_twice_if_it_stays_away(
    fleet: CheckedFleet,
) -> None:
    """Its containers are left running. Those that may be made elsewhere end before they are."""
    held = fleet.job_id()
    async with only(fleet, HOST):
        container_id = (await fleet.loaded(held))["container_id"]
        temp = await tagged(fleet, "TEMP", fleet.job_id(), sleep=AWAY_S, model="load-http")
        await fleet.running(temp)
        await fleet.running_state(temp)
    former = await incarnation(fleet)
    there = await _running_containers(fleet)
    fleet.service(f"worker-{HOST}").daemon.terminate()
    await fleet.gone(f"worker-{HOST}", within_s=EXIT_S)
    assert await _running_containers(fleet) == there
    await fleet.liveness(HOST, "LOST", within_s=LOST_WITHIN_S)

    async def twice() -> bool:
        return len(fleet.collector.of(temp)) > 1

    await eventually(twice, within_s=30, what="the run elsewhere")
    first, second = fleet.collector.of(temp)
    assert first.ended is not None
    assert first.ended < second.began
    assert (await _running_containers(fleet, [held])) == {held: container_id}
    answer = await fleet.http.post(f"/v1/operations/{temp}/cancel")
    assert answer.is_success, answer.text
    await fleet.launch(f"worker-{HOST}")
    await back(fleet, former)
    await fleet.holds()
    assert (await fleet.job(held))["state"] == "LOST"
    assert not await _running_containers(fleet, [held])


@asynccontextmanager
async def _a_request_half_sent(fleet: CheckedFleet) -> AsyncIterator[None]:
    """Keep a gateway waiting for the rest of a request."""
    _, writer = await asyncio.open_connection(LOOPBACK, fleet.processes.port)
    writer.write(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 1000\r\n\r\n{"job_id": '
    )
    await writer.drain()
    try:
        yield
    finally:
        writer.close()


@asynccontextmanager
async def _a_broker_that_is_silent(fleet: CheckedFleet) -> AsyncIterator[None]:
    """Keep whoever takes leave of RabbitMQ waiting for its answer."""
    fleet.servers.rabbitmq.pause()
    try:
        yield
    finally:
        fleet.servers.rabbitmq.resume()
        fleet.invariants.disturbed()


@asynccontextmanager
async def _an_inference_that_runs(fleet: CheckedFleet) -> AsyncIterator[None]:
    """Keep the workers busy for longer than they wait when they stop."""
    job_ids = [fleet.job_id() for _ in fleet.processes.workers]
    for host_id, job_id in zip(fleet.processes.workers, job_ids, strict=True):
        await fleet.put_probe(f"on-{host_id}", host_labels={"name": host_id})
        await fleet.loaded(job_id, model=f"on-{host_id}")
    for job_id in job_ids:
        operation_id = await tagged(fleet, "INFER", job_id, sleep=LONG_S)
        await fleet.running(operation_id)
        await fleet.running_state(operation_id)
    yield


CONDITIONS: dict[str, Callable[[CheckedFleet], AbstractAsyncContextManager[None]]] = {
    "gateway": _a_request_half_sent,
    "dispatcher": _a_broker_that_is_silent,
    "worker": _an_inference_that_runs,
}
"""What each kind of process is kept busy by."""


@pytest.mark.parametrize("kind", sorted(CONDITIONS))
async def test_a_second_sigterm_ends_a_process_that_is_still_busy_at_once(
    fleet: CheckedFleet, kind: str
) -> None:
    names = [name for name in fleet.processes.services if name.startswith(kind)]
    if kind == "dispatcher":
        names = [(await leading(fleet)).name]  # a standby has nothing to take leave of
    async with CONDITIONS[kind](fleet):
        there = await _running_containers(fleet)
        for name in names:
            fleet.service(name).daemon.terminate()
        await lasts(BETWEEN_S)
        assert all(fleet.service(name).running for name in names)
        began = time.monotonic()
        for name in names:
            fleet.service(name).daemon.terminate()
        await asyncio.gather(*(fleet.gone(name, within_s=AT_ONCE_S) for name in names))
        assert time.monotonic() - began < AT_ONCE_S
    assert {name: _exit_code(fleet, name) for name in names} == dict.fromkeys(names, CUT_OFF)
    assert await _running_containers(fleet) == there
    await _back_and_at_work(fleet, names, there)


@pytest.mark.timeout(240)
async def test_one_sigterm_ends_every_process_although_the_broker_is_silent(
    fleet: CheckedFleet,
) -> None:
    """What runs has its time, and what ends by then is never reported: the longest way to stop."""
    every = list(fleet.processes.services)
    ending = fleet.job_id()
    await fleet.loaded(ending)
    async with _an_inference_that_runs(fleet):
        short = await tagged(fleet, "INFER", ending, sleep=SHORT_S)
        await fleet.running(short)
        await fleet.running_state(short)
        there = await _running_containers(fleet)
        async with _a_broker_that_is_silent(fleet):
            for name in every:
                fleet.service(name).daemon.terminate()
            await asyncio.gather(*(fleet.gone(name, within_s=EXIT_S) for name in every))
    assert await _running_containers(fleet) == there
    await _back_and_at_work(fleet, every, there)


async def _back_and_at_work(fleet: CheckedFleet, names: list[str], there: dict[str, str]) -> None:
    """Start processes again; everything holds, and the same containers run."""
    for name in names:
        await fleet.launch(name)
    await fleet.ready()
    await fleet.holds()
    assert await _running_containers(fleet) == there
    one = await fleet.done("TEMP", fleet.job_id(), model="load-http", input={})
    assert one["epoch"] == 1


def _exit_code(fleet: CheckedFleet, name: str) -> int | None:
    """Return the code with which a process of this test's has ended."""
    child = fleet.service(name).daemon._child
    return None if child is None else child.poll()


async def _running_containers(fleet: CheckedFleet, jobs: list[str] | None = None) -> dict[str, str]:
    """Return the container that runs for each job, of all jobs if none are named."""
    return {
        one.job_id: one.container_id
        for host_id, engine in fleet.engines.items()
        for one in await engine.labelled(host_id)
        if one.state == "running" and (jobs is None or one.job_id in jobs)
    }
