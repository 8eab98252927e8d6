"""Who consumes what, as RabbitMQ says it at once: its lists of queues are some seconds old."""

from itertools import chain

import aio_pika

from dispatcher.service import QUEUES
from modelyard.contract.topology import queues_of_host
from tests.faults.harness.checked_fleet import CheckedFleet
from tests.faults.harness.raw_channel import open_raw_channel
from tests.support.invariants.outside import consumers
from tests.support.waiting import eventually

BACK_S = 30
"""Seconds within which consumers are promised to be back."""


async def consumed(amqp_url: str, queue: str) -> None:
    """Return once a queue exists and has a consumer."""

    async def has_one() -> bool:
        try:
            async with open_raw_channel(amqp_url) as raw:
                found = await raw.channel.declare_queue(queue, passive=True)
                return bool(found.declaration_result.consumer_count)
        except aio_pika.exceptions.AMQPError:
            return False

    await eventually(has_one, within_s=BACK_S, what=f"a consumer of {queue}")


async def all_consumed(fleet: CheckedFleet) -> None:
    """Return once each queue has one consumer: the leading dispatcher, or its host's worker."""
    of_hosts = (queues_of_host(host_id) for host_id in fleet.processes.workers)
    wanted = dict.fromkeys((queue.name for queue in chain(QUEUES, *of_hosts)), 1)

    async def they_are() -> bool:
        found = await consumers(fleet.servers.rabbitmq, fleet.processes.amqp_url)
        return all(found[queue] == count for queue, count in wanted.items())

    await eventually(they_are, within_s=BACK_S, what=f"the consumers {wanted}")
