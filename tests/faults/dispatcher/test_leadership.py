"""The leading dispatcher is killed, frozen or cut off: another one leads, nothing runs twice."""

import asyncio
import time

import pytest

from dispatcher.leadership import LEADER_LEASE_S
from tests.faults.harness.checked_fleet import CheckedFleet, lasts, points
from tests.faults.harness.leading import TAKEN_OVER_S, is_said, leading, lease_end
from tests.faults.harness.load import Mix
from tests.faults.harness.proxied_fleet import ProxiedFleet
from tests.faults.table import LEADERSHIP
from tests.support.servers.proxy import Fault

LEASE_POINTS = points("dispatcher.lease")
FIRST_COMMAND_S = 5.0
"""Seconds after the end of a dead leader's lease within which the next one sends commands."""
LONG_S = 2 * LEADER_LEASE_S
"""Longer than the lease."""
WITHOUT_BROKER_S = 50.0
"""Longer than a leader takes to learn that it is cut off from RabbitMQ, and lets others lead."""
pytestmark = [pytest.mark.faults, pytest.mark.fault(LEADERSHIP)]


async def test_a_leader_that_is_killed_is_replaced_within_seconds(fleet: CheckedFleet) -> None:
    load = await fleet.load(Mix(jobs=2, infers=4, temps=4, batches=1), pause_s=0.2)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    before = await leading(fleet)
    began = time.monotonic()
    await fleet.kill(before.name)
    ends_at = await lease_end(fleet)
    waits = await fleet.submit("TEMP", fleet.job_id(), model="load-http", input={})
    now = await leading(fleet, after=before.term)
    assert now.name != before.name
    assert time.monotonic() - began < TAKEN_OVER_S
    await fleet.launch(before.name)
    ids = await loading
    await fleet.holds()
    await fleet.succeeded([*ids, waits])
    (first,) = await fleet.database.all("operations", {"_id": waits})
    assert 0 < (first["dispatched_at"] - ends_at).total_seconds() <= FIRST_COMMAND_S


async def test_a_leader_that_is_stopped_is_replaced_at_once(fleet: CheckedFleet) -> None:
    before = await leading(fleet)
    await fleet.stop(before.name)
    now = await leading(fleet, after=before.term, within_s=LEADER_LEASE_S / 2)
    assert now.name != before.name
    await fleet.launch(before.name)
    await fleet.done("TEMP", fleet.job_id(), model="load-http", input={})
    await fleet.holds()


async def test_a_leader_that_thaws_after_its_lease_stands_by(fleet: CheckedFleet) -> None:
    load = await fleet.load(Mix(jobs=2, infers=4, temps=4, batches=1), pause_s=0.2, one_door=True)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    frozen = await leading(fleet)
    with fleet.frozen(frozen.name):
        now = await leading(fleet, after=frozen.term)
        assert now.name != frozen.name
        await lasts(LONG_S)
    await is_said(fleet, frozen, "dispatcher.term_over")
    ids = await loading
    await fleet.holds()
    await fleet.succeeded(ids)
    assert await leading(fleet) == now


@pytest.mark.parametrize("point", LEASE_POINTS)
async def test_a_dispatcher_killed_with_its_lease_in_hand_is_replaced(
    fleet: CheckedFleet, point: str
) -> None:
    async with fleet.dispatcher_dies_at(point):
        pass
    await fleet.done("TEMP", fleet.job_id(), model="load-http", input={})
    await fleet.holds()


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_a_leader_without_mongodb_is_replaced(proxied: ProxiedFleet, fault: Fault) -> None:
    fleet = proxied.fleet
    before = await leading(fleet)
    proxy = {
        "dispatcher": proxied.dispatcher_mongo,
        "dispatcher-2": proxied.dispatcher_2_mongo,
    }[before.name]
    load = await fleet.load(Mix(jobs=2, infers=4, temps=4, batches=1), pause_s=0.2, one_door=True)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    await (proxy.cut() if fault is Fault.CUT else proxy.swallow(fault))
    now = await leading(fleet, after=before.term)
    assert now.name != before.name
    await is_said(fleet, before, "dispatcher.term_over")
    ids = await loading
    await fleet.succeeded([(await fleet.ended(one))["_id"] for one in ids])
    await proxy.heal()
    fleet.invariants.disturbed()
    await fleet.holds()
    assert await leading(fleet) == now


async def test_while_nobody_reaches_mongodb_nobody_leads_and_then_one_does(
    proxied: ProxiedFleet,
) -> None:
    fleet = proxied.fleet
    before = await leading(fleet)
    load = await fleet.load(Mix(jobs=2, infers=4, temps=4, batches=1), pause_s=0.2, one_door=True)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    proxies = (proxied.dispatcher_mongo, proxied.dispatcher_2_mongo)
    for proxy in proxies:
        await proxy.cut()
    await is_said(fleet, before, "dispatcher.term_over")
    await lasts(LONG_S)
    for proxy in proxies:
        await proxy.heal()
    fleet.invariants.disturbed()
    await leading(fleet, after=before.term)
    ids = await loading
    await fleet.holds()
    await fleet.succeeded(ids)


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_a_leader_without_rabbitmq_is_replaced(proxied: ProxiedFleet, fault: Fault) -> None:
    fleet = proxied.fleet
    before = await leading(fleet)
    if before.name != "dispatcher":  # only this one's way to RabbitMQ can be cut
        # Restarted at once, it may be back before the other one has asked for the lease.
        await fleet.stop(before.name)
        now = await leading(fleet, after=before.term)
        await fleet.launch(before.name)
        before = now
    assert before.name == "dispatcher"
    proxy = proxied.dispatcher_amqp
    await (proxy.cut() if fault is Fault.CUT else proxy.swallow(fault))
    now = await leading(fleet, after=before.term, within_s=WITHOUT_BROKER_S)
    assert now.name != before.name
    await fleet.done("TEMP", fleet.job_id(), model="load-http", input={})
    await proxy.heal()
    fleet.invariants.disturbed()
    await fleet.holds()
    assert await leading(fleet) == now
