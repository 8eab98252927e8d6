"""Faults of dispatchers: killed, frozen, blocked, and two of them on one slot."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelyard.process.crash_points import VARIABLE
from tests.faults.conftest import Sites, measured
from tests.faults.harness.checked_fleet import (
    CheckedFleet,
    Json,
    Servers,
    lasts,
    make_site,
    open_checked_fleet,
    points,
)
from tests.faults.harness.load import Mix, Request
from tests.faults.harness.raw_channel import traced

KILLED = "Dispatcher killed between any two side effects"
FROZEN = "Dispatcher frozen 90 s, then thawed"
CONTENTION = "Two dispatchers, 10,000 operations, one slot"
BLOCKED = "Event loop blocked 40 s"

POINTS = points("dispatcher", "dispatcher.intake", "dispatcher.recorder")
"""Any load comes to these."""
PIECE = "dispatcher.transfers.after_piece"
LARGE_BYTES = 3 << 19
"""Of a result that goes in pieces."""
BLOCKED_S = 40
BOTH = ("dispatcher", "dispatcher-2")
pytestmark = pytest.mark.faults


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", POINTS)
async def test_a_dispatcher_killed_between_two_steps_leaks_nothing(
    fleet: CheckedFleet, point: str
) -> None:
    async with fleet.dispatcher_dies_at(point):
        load = await fleet.load(Mix(jobs=2, infers=2, temps=2, batches=1))
        ids = await load.run()
    await fleet.holds()
    await fleet.succeeded(ids)


@pytest.mark.fault(KILLED)
async def test_a_dispatcher_killed_in_the_middle_of_a_large_result_loses_no_piece(
    fleet: CheckedFleet,
) -> None:
    async with fleet.dispatcher_dies_at(PIECE):
        one = await fleet.submit(
            "TEMP", fleet.job_id(), model="load-http", input={"bytes": LARGE_BYTES}
        )
    await fleet.succeeded([(await fleet.ended(one))["_id"]])
    answer = await fleet.http.get(f"/v1/operations/{one}/result")
    assert len(answer.json()["blob"]) == LARGE_BYTES
    await fleet.holds()


@pytest.mark.fault(FROZEN)
@pytest.mark.parametrize("name", BOTH)
async def test_a_frozen_dispatcher_is_replaced_and_does_no_harm_when_it_thaws(
    fleet: CheckedFleet, name: str
) -> None:
    # What a frozen dispatcher has in hand is held back: each job keeps to one door.
    load = await fleet.load(pause_s=0.2, one_door=True)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    with fleet.frozen(name):
        more = await fleet.load(one_door=True)
        ids = [*await loading, *await more.run()]
        await lasts(90)
        await fleet.succeeded(ids)
    await fleet.holds()


@pytest.mark.fault(FROZEN)
async def test_what_a_dispatcher_writes_after_90_s_of_frost_finds_nothing_to_change(
    fleet: CheckedFleet,
) -> None:
    """It stands between the assignment of its jobs and the claim of their operations."""
    point = "dispatcher.after_assign"
    await fleet.stop(*BOTH)
    await fleet.launch("dispatcher", **{VARIABLE: f"{point}:freeze"})
    load = await fleet.load(Mix(jobs=2, infers=2, temps=2, batches=1), one_door=True)
    ids = await load.run()
    await fleet.came_to("dispatcher", point)
    assigned = await fleet.database.all("jobs", {"current.epoch": 1}, "current")
    stale = [one["current"]["operation_id"] for one in assigned]
    stale = [one["_id"] for one in await _queued(fleet, stale)]
    assert stale
    await fleet.launch("dispatcher-2")
    await lasts(90)
    await fleet.succeeded(ids)
    before = await _all_of(fleet)
    fleet.service("dispatcher").resume()
    # It alone: what it takes now it takes after it has written what it stood before.
    await fleet.stop("dispatcher-2")
    more = await fleet.load(Mix(jobs=1, infers=1, temps=1, batches=0), one_door=True)
    ids += await more.run()
    for operation_id in ids:
        await fleet.ended(operation_id)
    after = await _all_of(fleet)
    assert {key: after[key] for key in before} == before
    assert all(before[one]["epoch"] == 1 for one in stale)
    await fleet.launch("dispatcher-2")
    await fleet.holds()
    await fleet.succeeded(ids)


async def _queued(fleet: CheckedFleet, operation_ids: list[str]) -> list[Json]:
    wanted = {"_id": {"$in": operation_ids}, "state": "QUEUED"}
    return await fleet.database.all("operations", wanted, "state")


async def _all_of(fleet: CheckedFleet) -> dict[str, Json]:
    """Return what a stale write of a dispatcher could change."""
    operations = await fleet.database.all("operations", None, "state", "epoch", "seq", "token")
    jobs = await fleet.database.all("jobs", None, "state", "version", "host_id", "current")
    return {one["_id"]: one for one in [*operations, *jobs]}


@pytest.mark.fault(BLOCKED)
async def test_a_dispatcher_blocked_for_40_s_makes_redelivery_harmless(fleet: CheckedFleet) -> None:
    """What it has recorded and not settled goes to the other one, which blocks there as well."""
    point = "dispatcher.recorder.before_ack"
    await fleet.stop(*BOTH)
    for name in BOTH:
        await fleet.launch(name, **{VARIABLE: f"{point}:block={BLOCKED_S}"})
    async with traced(fleet.servers.rabbitmq, fleet.processes.amqp_url) as deliveries:
        load = await fleet.load(pause_s=0.1, one_door=True)
        loading = asyncio.create_task(load.run())
        for name in BOTH:
            await fleet.came_to(name, point, within_s=2 * BLOCKED_S)
        ids = await loading
        await fleet.holds(within_s=60 + BLOCKED_S)
    assert deliveries[1], "nothing was delivered again"
    await fleet.succeeded(ids)


@pytest.fixture
async def one_slot(
    servers: Servers, sites: Sites, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[CheckedFleet]:
    """Give the test two dispatchers and one host with one slot, which refuses most images."""
    await asyncio.to_thread(sites.close)
    only = Servers(
        servers.rabbitmq,
        servers.mongodb,
        {"h1": servers.engines["h1"]},
        servers.virtual_hosts,
        servers.collector,
    )
    allowed = {"worker-h1": {"MODELYARD_WORKER_ALLOWED_IMAGES": '["modelyard/*"]'}}
    site = make_site(only, folder, slots=1, settings=lambda *_: allowed)
    try:
        await asyncio.to_thread(site.processes.start)
        async with open_checked_fleet(site) as fleet:
            yield fleet
            measured(request, fleet)
    finally:
        await asyncio.to_thread(site.close)


@pytest.mark.fault(CONTENTION)
async def test_many_operations_and_two_dispatchers_share_one_slot(
    one_slot: CheckedFleet, many: int
) -> None:
    """Most of them hold the slot for an instant: their image is refused. Some do run."""
    fleet = one_slot
    await fleet.put_probe("refused", image="elsewhere.example/model:1")
    load = await fleet.load(Mix(jobs=0, temps=5, batches=3))
    queue = asyncio.Queue[Request]()
    for _ in range(many):
        body = {"job_id": fleet.job_id(), "operation_type": "DEPLOY_CREATE", "model": "refused"}
        queue.put_nowait(Request(uuid.uuid4().hex, body))

    async def submit() -> None:
        while not queue.empty():
            await fleet.doors.submit(queue.get_nowait(), by_amqp=queue.qsize() % 2 == 0)

    await asyncio.gather(load.run(), *(submit() for _ in range(16)))
    await fleet.holds(within_s=60 + many / 2)
    states = await fleet.states(list(fleet.doors.ledger.accepted))
    assert states == {"FAILED": many, "SUCCEEDED": load.mix.operations}
    assert fleet.invariants.sampler.samples > 10
