"""Faults of hosts: frozen past their lease, cut off, gone for good."""

import asyncio
import time

import pytest

from deploy.local.processes import kill_all, with_descendants
from modelyard.process.crash_points import CRASH_POINTS, VARIABLE
from tests.faults.harness.casualties import (
    HOST,
    LOST_WITHIN_S,
    Releases,
    Work,
    back,
    busy_host,
    counted_as_logged,
    done_elsewhere,
    incarnation,
    only_in_the_log,
    report_late,
    works_again,
)
from tests.faults.harness.checked_fleet import CheckedFleet, Json, lasts
from tests.faults.harness.proxied_fleet import ProxiedFleet
from tests.support.invariants.checker import LOST_HEAL_WITHIN_S
from tests.support.servers.proxy import Fault
from tests.support.waiting import eventually

FROZEN = "Worker frozen past its lease, then thawed"
CUT = "Host cut from the broker for 2 minutes; host gone for good"
TAKEN_AWAY = "Dispatcher killed between any two side effects"

WORKER = f"worker-{HOST}"
BOTH = ("dispatcher", "dispatcher-2")
LOST_POINTS = sorted(name for name in CRASH_POINTS if name.startswith("dispatcher.lost."))
FROZEN_S = 78.0
LONG_S = 80.0
"""Longer than a worker is frozen: nothing but its watchdog ends what runs for so long."""
CUT_S = 120.0
WATCHDOG_WITHIN_S = 56.0
"""Its 50 s begin with the last beat; each stop takes the engine a moment."""
pytestmark = [pytest.mark.faults, pytest.mark.timeout(420)]


@pytest.mark.fault(FROZEN)
async def test_a_worker_frozen_past_its_lease_finds_its_work_done_by_others(
    fleet: CheckedFleet,
) -> None:
    work = await busy_host(fleet, seconds=LONG_S)
    former = await incarnation(fleet)
    frozen_at = time.monotonic()
    async with Releases(fleet).counted() as releases:
        with fleet.frozen(WORKER):
            await fleet.liveness(HOST, "SUSPECT", within_s=30)
            await fleet.liveness(HOST, "LOST", within_s=LOST_WITHIN_S)
            await _emptied(fleet)
            await report_late(fleet, work)
            await only_in_the_log(fleet, work)
            await counted_as_logged(fleet)
            await lasts(frozen_at + FROZEN_S - time.monotonic())
        await back(fleet, former)
        await fleet.holds(within_s=LOST_HEAL_WITHIN_S)
    await done_elsewhere(fleet, work)
    for operation_id in work.temps:
        first, second = fleet.collector.of(operation_id)
        assert first.ended is not None
        assert first.ended - frozen_at < WATCHDOG_WITHIN_S
        assert second.began > first.ended
    freed_once(releases, work)
    await works_again(fleet)
    await counted_as_logged(fleet)


@pytest.mark.fault(CUT)
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_a_host_cut_from_the_broker_for_two_minutes_is_given_up_and_comes_back(
    proxied: ProxiedFleet, fault: Fault
) -> None:
    fleet = proxied.fleet
    work = await busy_host(fleet, seconds=LONG_S)
    former = await incarnation(fleet)
    began = time.monotonic()
    async with Releases(fleet).counted() as releases:
        if fault is Fault.CUT:
            await proxied.worker_amqp.cut()
        else:
            await proxied.worker_amqp.swallow(fault)
        await fleet.liveness(HOST, "SUSPECT", within_s=30)
        await fleet.liveness(HOST, "LOST", within_s=LOST_WITHIN_S)
        await _emptied(fleet)
        await lasts(began + CUT_S - time.monotonic())
        assert (await fleet.host(HOST))["liveness"] == "LOST"
        await proxied.worker_amqp.heal()
        fleet.invariants.disturbed()
        await back(fleet, former)
        await fleet.holds(within_s=LOST_HEAL_WITHIN_S)
    await done_elsewhere(fleet, work)
    freed_once(releases, work)
    await works_again(fleet)
    await fleet.holds()


@pytest.mark.fault(CUT)
async def test_all_that_a_host_had_which_is_gone_for_good_has_an_end(fleet: CheckedFleet) -> None:
    await fleet.put_probe("nowhere-else", host_labels={"name": HOST})
    pinned: Json = {"model": "nowhere-else", "queue_timeout_s": 30}
    work = await busy_host(fleet, seconds=20)
    former = await incarnation(fleet)
    async with Releases(fleet).counted() as releases:
        await _destroy(fleet)
        to_the_lost = [
            await fleet.submit("INFER", work.held, input={}),
            await fleet.submit("DEPLOY_UNLOAD", work.held),
            await fleet.submit("TERMINATE", work.held),
        ]
        await fleet.liveness(HOST, "SUSPECT", within_s=30)
        late = await fleet.submit("TEMP", fleet.job_id(), input={}, **pinned)
        await fleet.holds(within_s=LOST_HEAL_WITHIN_S)
    assert (await fleet.host(HOST))["liveness"] == "LOST"
    freed_once(releases, work)
    assert (await fleet.ended(late))["state"] == "EXPIRED"
    states = [(await fleet.ended(one))["state"] for one in to_the_lost]
    assert states == ["FAILED", "REJECTED", "SUCCEEDED"]
    await fleet.succeeded([*work.temps, work.waiting])
    await fleet.launch(WORKER)
    await back(fleet, former)
    await works_again(fleet)
    await fleet.holds()


@pytest.mark.fault(CUT)
async def test_a_command_that_no_worker_took_keeps_its_deadline_in_the_queue(
    fleet: CheckedFleet,
) -> None:
    await fleet.put_probe("nowhere-else", host_labels={"name": HOST})
    former = await incarnation(fleet)
    await fleet.kill(WORKER)
    one = await fleet.submit(
        "TEMP", fleet.job_id(), model="nowhere-else", input={}, queue_timeout_s=15
    )
    await _in_state(fleet, one, "DISPATCHED", within_s=10)
    await _in_state(fleet, one, "QUEUED", within_s=LOST_WITHIN_S)
    assert (await fleet.ended(one, within_s=15))["state"] == "EXPIRED"
    await fleet.launch(WORKER)
    await back(fleet, former)
    await fleet.holds()


@pytest.mark.fault(TAKEN_AWAY)
@pytest.mark.parametrize("point", LOST_POINTS)
async def test_a_dispatcher_killed_while_it_takes_a_lost_hosts_work_leaks_nothing(
    fleet: CheckedFleet, point: str
) -> None:
    work = await busy_host(fleet, seconds=20)
    former = await incarnation(fleet)
    await fleet.stop(*BOTH)
    await fleet.launch("dispatcher", **{VARIABLE: point})
    async with Releases(fleet).counted() as releases:
        await fleet.kill(WORKER)
        await fleet.died_at("dispatcher", point, within_s=120)
        await fleet.launch("dispatcher-2")
        await fleet.launch("dispatcher")
        for operation_id in work.temps:
            await fleet.ended(operation_id, within_s=LOST_HEAL_WITHIN_S)
        await fleet.launch(WORKER)
        await back(fleet, former)
        await fleet.holds(within_s=LOST_HEAL_WITHIN_S)
    await done_elsewhere(fleet, work)
    freed_once(releases, work)


def freed_once(releases: Releases, work: Work) -> None:
    """Look that each reservation of that work went once and never came back."""
    jobs = {one["job_id"] for one in work.operations}
    taken = {pair: times for pair, times in releases.taken.items() if pair[0] in jobs}
    assert len(taken) == len(jobs)
    assert set(taken.values()) == {1}, taken
    assert {pair: releases.freed[pair] for pair in taken} == taken


async def _in_state(fleet: CheckedFleet, operation_id: str, state: str, *, within_s: float) -> None:
    """Return once an operation is in this state."""

    async def it_is() -> bool:
        return (await fleet.states([operation_id]))[state] == 1

    await eventually(it_is, within_s=within_s, what=f"{operation_id} {state}")


async def _emptied(fleet: CheckedFleet) -> None:
    """Return once nothing is reserved on the host."""

    async def it_is() -> bool:
        host = await fleet.host(HOST)
        return bool(not host["reservations"] and host["slots_used"] == 0)

    await eventually(it_is, within_s=15, what=f"free slots of {HOST}")


async def _destroy(fleet: CheckedFleet) -> None:
    """Kill the worker, its watchdog and its containers, as the end of a machine would."""
    process = fleet.service(WORKER).daemon.process
    assert process is not None
    await asyncio.to_thread(kill_all, with_descendants([process]))
    engine = fleet.engines[HOST]
    for one in await engine.labelled(HOST):
        await engine.remove(one.container_id)
