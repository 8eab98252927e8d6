"""RabbitMQ goes away and comes back: what it has confirmed, and who listens to it."""

import asyncio

import pytest

from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.topology import JOBS_QUEUE
from tests.faults.consumers import BACK_S, all_consumed
from tests.faults.test_gateway import temp
from tests.faults.test_rabbitmq import BROKER
from tests.faults.yard import DISPATCHERS, Yard, lasts
from tests.support.invariants.outside import queues
from tests.support.waiting import eventually

BY_AMQP = 8
BY_HTTP = 4
pytestmark = [
    pytest.mark.faults,
    pytest.mark.fault(BROKER),
    pytest.mark.parametrize("how", ["restart", "kill"]),
]


async def test_a_broker_that_restarts_loses_nothing_that_it_confirmed(yard: Yard, how: str) -> None:
    load = await yard.load(pause_s=0.3, one_door=True)
    loading = asyncio.create_task(load.run())
    await yard.running_any()
    await _goes_and_comes(yard.servers.rabbitmq, how)
    yard.invariants.disturbed()
    await all_consumed(yard)
    ids = await loading
    await yard.holds()
    await yard.succeeded(ids)


async def test_what_nobody_had_taken_in_yet_is_still_queued_after_a_restart(
    yard: Yard, how: str
) -> None:
    await yard.stop(*DISPATCHERS)
    by_amqp = [await yard.doors.submit(temp(yard), by_amqp=True) for _ in range(BY_AMQP)]
    by_http = [await yard.doors.submit(temp(yard)) for _ in range(BY_HTTP)]
    await _queued(yard, BY_AMQP + BY_HTTP)
    await _goes_and_comes(yard.servers.rabbitmq, how)
    await _queued(yard, BY_AMQP + BY_HTTP)
    assert not await yard.database.count("operations", {"_id": {"$in": by_amqp}})
    for dispatcher in DISPATCHERS:
        await yard.launch(dispatcher)
    await all_consumed(yard)
    await yard.holds()
    await yard.succeeded([*by_amqp, *by_http])


async def _goes_and_comes(broker: RabbitMQ, how: str) -> None:
    await asyncio.to_thread(broker.stop if how == "restart" else broker.kill)
    await lasts(3)
    await asyncio.to_thread(broker.start)


async def _queued(yard: Yard, messages: int) -> None:
    """Return once RabbitMQ says that so many requests wait for a dispatcher."""

    async def they_are() -> bool:
        listed = await queues(yard.servers.rabbitmq, yard.fleet.amqp_url)
        found = {one.name: one for one in listed}.get(JOBS_QUEUE.name)
        return found is not None and (found.messages, found.consumers) == (messages, 0)

    await eventually(they_are, within_s=BACK_S, what=f"{messages} messages in {JOBS_QUEUE.name}")
