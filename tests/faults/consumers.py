"""Who consumes what, as RabbitMQ says it at once: its lists of queues are some seconds old."""

import aio_pika

from dispatcher.service import QUEUES
from modelyard.contract.topology import queues_of_host
from tests.faults.wire import open_wire
from tests.faults.yard import Yard
from tests.support.invariants.outside import consumers
from tests.support.waiting import eventually

BACK_S = 30
"""Seconds within which consumers are promised to be back."""


async def consumed(amqp_url: str, queue: str) -> None:
    """Return once a queue exists and has a consumer."""

    async def has_one() -> bool:
        try:
            async with open_wire(amqp_url) as wire:
                found = await wire.channel.declare_queue(queue, passive=True)
                return bool(found.declaration_result.consumer_count)
        except aio_pika.exceptions.AMQPError:
            return False

    await eventually(has_one, within_s=BACK_S, what=f"a consumer of {queue}")


async def all_consumed(yard: Yard) -> None:
    """Return once each queue has one consumer of every process that should consume it."""
    wanted = {queue.name: len(yard.fleet.dispatchers) for queue in QUEUES}
    wanted |= {queue.name: 1 for host_id in yard.fleet.workers for queue in queues_of_host(host_id)}

    async def they_are() -> bool:
        found = await consumers(yard.servers.rabbitmq, yard.fleet.amqp_url)
        return all(found[queue] == count for queue, count in wanted.items())

    await eventually(they_are, within_s=BACK_S, what=f"the consumers {wanted}")
