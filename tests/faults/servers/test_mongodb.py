"""Faults of MongoDB: another primary, a dead one, none at all."""

import asyncio
from typing import Any

import pytest
from pymongo import MongoClient

from deploy.local.mongodb import MongoDB
from tests.faults.harness.checked_fleet import CheckedFleet, lasts
from tests.faults.harness.load import Load, Mix
from tests.faults.harness.proxied_fleet import ProxiedFleet
from tests.faults.harness.raw_channel import traced
from tests.support.servers.proxy import Fault
from tests.support.waiting import eventually

DATABASE = "MongoDB step-down, killed, cut for 10 minutes"
AWAY_S = 30
RETURNS = 3
"""How often a delivery may have come back, however long it lasts: once when a consumer begins, and
once when a term ends, after which another consumer begins."""
SLOW_S = 0.35
"""Added to each way."""
pytestmark = [pytest.mark.faults, pytest.mark.fault(DATABASE)]


def step_down(mongodb: MongoDB) -> None:
    """Have the primary give up its role."""
    index = mongodb.primary()
    assert index is not None
    with MongoClient[dict[str, Any]](
        "127.0.0.1", mongodb.ports[index], directConnection=True
    ) as client:
        client.admin.command({"replSetStepDown": 10, "secondaryCatchUpPeriodSecs": 5})


async def test_step_downs_cost_nothing(fleet: CheckedFleet) -> None:
    load = await fleet.load(Mix(jobs=4, infers=6), pause_s=0.4)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    for _ in range(3):
        await asyncio.to_thread(step_down, fleet.servers.mongodb)
        await lasts(4)
    fleet.invariants.disturbed()
    ids = await loading
    await fleet.holds()
    await fleet.succeeded(ids)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_primary_that_dies_or_freezes_is_replaced(fleet: CheckedFleet, how: str) -> None:
    mongodb = fleet.servers.mongodb
    load = await fleet.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    index = await asyncio.to_thread(mongodb.primary)
    assert index is not None
    member = mongodb.members[index]
    try:
        await asyncio.to_thread(member.kill if how == "kill" else member.pause)
        await lasts(15)
    finally:
        member.resume()
        await asyncio.to_thread(mongodb.launch_member, index)
    await asyncio.to_thread(mongodb.wait_ready)
    fleet.invariants.disturbed()
    ids = await loading
    await fleet.holds()
    await fleet.succeeded(ids)


async def test_a_set_without_a_majority_is_waited_for(fleet: CheckedFleet) -> None:
    """Two of three members frozen: no primary, no majority write, requests go to RabbitMQ."""
    mongodb = fleet.servers.mongodb
    index = await asyncio.to_thread(mongodb.primary)
    load = await fleet.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    frozen = [member for n, member in enumerate(mongodb.members) if n != index]
    for member in frozen:
        member.pause()
    try:
        more = Load(fleet.doors, Mix(batches=0))
        ids = await more.run()
        await lasts(AWAY_S)
    finally:
        for member in frozen:
            member.resume()
        fleet.invariants.disturbed()
    ids += await loading
    await _primary(mongodb)
    await fleet.holds()
    await fleet.succeeded(ids)


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_a_dispatcher_cut_from_the_database_burns_no_delivery_limit(
    proxied: ProxiedFleet, fault: Fault
) -> None:
    fleet = proxied.fleet
    load = await fleet.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    proxies = (proxied.dispatcher_mongo, proxied.gateway_mongo)
    for proxy in proxies:
        await (proxy.cut() if fault is Fault.CUT else proxy.swallow(fault))
    await lasts(AWAY_S)
    for proxy in proxies:
        await proxy.heal()
    fleet.invariants.disturbed()
    ids = await loading
    await fleet.holds()
    await fleet.succeeded(ids)
    assert await fleet.database.count("dead_letters") == 0


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_everybody_cut_from_the_database_burns_no_delivery_limit(
    proxied: ProxiedFleet, fault: Fault, cut_s: float
) -> None:
    """Nobody can record anything: requests and reports wait in RabbitMQ, as they came."""
    fleet = proxied.fleet
    proxies = (proxied.gateway_mongo, proxied.dispatcher_mongo, proxied.dispatcher_2_mongo)
    async with traced(fleet.servers.rabbitmq, fleet.processes.amqp_url) as deliveries:
        load = await fleet.load(pause_s=0.3)
        loading = asyncio.create_task(load.run())
        await fleet.running_any()
        for proxy in proxies:
            await (proxy.cut() if fault is Fault.CUT else proxy.swallow(fault))
        more = await Load(fleet.doors, Mix(batches=0)).run()
        await lasts(cut_s)
        for proxy in proxies:
            await proxy.heal()
        fleet.invariants.disturbed()
        ids = [*await loading, *more]
        await fleet.holds()
    assert max(deliveries) <= RETURNS, deliveries
    assert await fleet.database.count("dead_letters") == 0
    await fleet.succeeded(ids)


async def test_a_slow_database_makes_everything_slow_and_nothing_wrong(
    proxied: ProxiedFleet,
) -> None:
    """At 0.7 s a round trip the gateway's second is over before a write is confirmed."""
    fleet = proxied.fleet
    load = await fleet.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    for proxy in (proxied.dispatcher_mongo, proxied.gateway_mongo):
        proxy.slow(SLOW_S)
    ids = await loading
    more = await Load(fleet.doors, Mix(batches=0)).run()
    await lasts(AWAY_S)
    for proxy in (proxied.dispatcher_mongo, proxied.gateway_mongo):
        await proxy.heal()
    fleet.invariants.disturbed()
    await fleet.holds()
    await fleet.succeeded([*ids, *more])


async def _primary(mongodb: MongoDB) -> None:
    async def there_is_one() -> bool:
        return await asyncio.to_thread(mongodb.primary) is not None

    await eventually(there_is_one, within_s=30, what="a primary")
