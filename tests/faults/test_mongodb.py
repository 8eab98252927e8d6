"""Faults of MongoDB: another primary, a dead one, none at all."""

import asyncio
from typing import Any

import pytest
from pymongo import MongoClient

from deploy.local.mongodb import MongoDB
from tests.faults.load import Load, Mix
from tests.faults.wire import traced
from tests.faults.wires import Wires
from tests.faults.yard import Yard, lasts
from tests.support.servers.proxy import Fault
from tests.support.waiting import eventually

DATABASE = "MongoDB step-down, killed, cut for 10 minutes"
AWAY_S = 30
RETURNS = 2
"""How often a delivery may have come back, however long it lasts: once when a consumer begins."""
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


async def test_step_downs_cost_nothing(yard: Yard) -> None:
    load = await yard.load(Mix(jobs=4, infers=6), pause_s=0.4)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    for _ in range(3):
        await asyncio.to_thread(step_down, yard.servers.mongodb)
        await lasts(4)
    yard.invariants.disturbed()
    ids = await loading
    await yard.holds()
    await yard.succeeded(ids)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_primary_that_dies_or_freezes_is_replaced(yard: Yard, how: str) -> None:
    mongodb = yard.servers.mongodb
    load = await yard.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
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
    yard.invariants.disturbed()
    ids = await loading
    await yard.holds()
    await yard.succeeded(ids)


async def test_a_set_without_a_majority_is_waited_for(yard: Yard) -> None:
    """Two of three members frozen: no primary, no majority write, requests go to RabbitMQ."""
    mongodb = yard.servers.mongodb
    index = await asyncio.to_thread(mongodb.primary)
    load = await yard.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    frozen = [member for n, member in enumerate(mongodb.members) if n != index]
    for member in frozen:
        member.pause()
    try:
        more = Load(yard.doors, Mix(batches=0))
        ids = await more.run()
        await lasts(AWAY_S)
    finally:
        for member in frozen:
            member.resume()
        yard.invariants.disturbed()
    ids += await loading
    await _primary(mongodb)
    await yard.holds()
    await yard.succeeded(ids)


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_a_dispatcher_cut_from_the_database_burns_no_delivery_limit(
    wires: Wires, fault: Fault
) -> None:
    yard = wires.yard
    load = await yard.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    proxies = (wires.dispatcher_mongo, wires.gateway_mongo)
    for proxy in proxies:
        await (proxy.cut() if fault is Fault.CUT else proxy.swallow(fault))
    await lasts(AWAY_S)
    for proxy in proxies:
        await proxy.heal()
    yard.invariants.disturbed()
    ids = await loading
    await yard.holds()
    await yard.succeeded(ids)
    assert await yard.database.count("dead_letters") == 0


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_everybody_cut_from_the_database_burns_no_delivery_limit(
    wires: Wires, fault: Fault, cut_s: float
) -> None:
    """Nobody can record anything: requests and reports wait in RabbitMQ, as they came."""
    yard = wires.yard
    proxies = (wires.gateway_mongo, wires.dispatcher_mongo, wires.dispatcher_2_mongo)
    async with traced(yard.servers.rabbitmq, yard.fleet.amqp_url) as deliveries:
        load = await yard.load(pause_s=0.3)
        loading = asyncio.create_task(load.run())
        await yard.running_any()
        for proxy in proxies:
            await (proxy.cut() if fault is Fault.CUT else proxy.swallow(fault))
        more = await Load(yard.doors, Mix(batches=0)).run()
        await lasts(cut_s)
        for proxy in proxies:
            await proxy.heal()
        yard.invariants.disturbed()
        ids = [*await loading, *more]
        await yard.holds()
    assert max(deliveries) <= RETURNS, deliveries
    assert await yard.database.count("dead_letters") == 0
    await yard.succeeded(ids)


async def test_a_slow_database_makes_everything_slow_and_nothing_wrong(wires: Wires) -> None:
    """At 0.7 s a round trip the gateway's second is over before a write is confirmed."""
    yard = wires.yard
    load = await yard.load(pause_s=0.3)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    for proxy in (wires.dispatcher_mongo, wires.gateway_mongo):
        proxy.slow(SLOW_S)
    ids = await loading
    more = await Load(yard.doors, Mix(batches=0)).run()
    await lasts(AWAY_S)
    for proxy in (wires.dispatcher_mongo, wires.gateway_mongo):
        await proxy.heal()
    yard.invariants.disturbed()
    await yard.holds()
    await yard.succeeded([*ids, *more])


async def _primary(mongodb: MongoDB) -> None:
    async def there_is_one() -> bool:
        return await asyncio.to_thread(mongodb.primary) is not None

    await eventually(there_is_one, within_s=30, what="a primary")
