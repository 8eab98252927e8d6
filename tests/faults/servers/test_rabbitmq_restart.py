"""RabbitMQ goes away and comes back: what it has confirmed, and who listens to it."""

import asyncio

import pytest

from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.topology import JOBS_QUEUE
from tests.faults.gateway.test_gateway import temp
from tests.faults.harness.checked_fleet import DISPATCHERS, CheckedFleet, lasts
from tests.faults.harness.consumers import BACK_S, all_consumed
from tests.faults.servers.test_rabbitmq import BROKER
from tests.support.invariants.outside import queues
from tests.support.waiting import eventually

BY_AMQP = 8
BY_HTTP = 4
pytestmark = [
    pytest.mark.faults,
    pytest.mark.fault(BROKER),
    pytest.mark.parametrize("how", ["restart", "kill"]),
]


async def test_a_broker_that_restarts_loses_nothing_that_it_confirmed(
    fleet: CheckedFleet, how: str
) -> None:
    load = await fleet.load(pause_s=0.3, one_door=True)
    loading = asyncio.create_task(load.run())
    await fleet.running_any()
    await _goes_and_comes(fleet.servers.rabbitmq, how)
    fleet.invariants.disturbed()
    await all_consumed(fleet)
    ids = await loading
    await fleet.holds()
    await fleet.succeeded(ids)


async def test_what_nobody_had_taken_in_yet_is_still_queued_after_a_restart(
    fleet: CheckedFleet, how: str
) -> None:
    await fleet.stop(*DISPATCHERS)
    by_amqp = [await fleet.doors.submit(temp(fleet), by_amqp=True) for _ in range(BY_AMQP)]
    by_http = [await fleet.doors.submit(temp(fleet)) for _ in range(BY_HTTP)]
    await _queued(fleet, BY_AMQP + BY_HTTP)
    await _goes_and_comes(fleet.servers.rabbitmq, how)
    await _queued(fleet, BY_AMQP + BY_HTTP)
    assert not await fleet.database.count("operations", {"_id": {"$in": by_amqp}})
    for dispatcher in DISPATCHERS:
        await fleet.launch(dispatcher)
    await all_consumed(fleet)
    await fleet.holds()
    await fleet.succeeded([*by_amqp, *by_http])


async def _goes_and_comes(broker: RabbitMQ, how: str) -> None:
    await asyncio.to_thread(broker.stop if how == "restart" else broker.kill)
    await lasts(3)
    await asyncio.to_thread(broker.start)


async def _queued(fleet: CheckedFleet, messages: int) -> None:
    """Return once RabbitMQ says that so many requests wait for a dispatcher."""

    async def they_are() -> bool:
        listed = await queues(fleet.servers.rabbitmq, fleet.processes.amqp_url)
        found = {one.name: one for one in listed}.get(JOBS_QUEUE.name)
        return found is not None and (found.messages, found.consumers) == (messages, 0)

    await eventually(they_are, within_s=BACK_S, what=f"{messages} messages in {JOBS_QUEUE.name}")
