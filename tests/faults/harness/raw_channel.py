"""Raw messages, past all that a client library or Modelyard would do for one."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aio_pika

from deploy.local.rabbitmq import RabbitMQ

ECHO = "x-echo"
TRACE = "amq.rabbitmq.trace"
OURS = "guest"
"""The user of the fleet's own processes here."""
COUNT = "x-delivery-count"


class RawChannel:
    """A connection of the test's own."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self.channel = channel
        self.echoed = 0

    async def publish(
        self,
        body: bytes,
        *,
        exchange: str = "modelyard.jobs",
        routing_key: str = "job.submit",
        **properties: Any,
    ) -> None:
        """Publish persistent and mandatory, confirmed; unsigned, unless `user_id` is given."""
        message = aio_pika.Message(
            body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties
        )
        target = await self.channel.get_exchange(exchange, ensure=False)
        await target.publish(message, routing_key, mandatory=True)

    async def echo(self, exchange: str, routing_keys: list[str], choice: random.Random) -> None:
        """Publish what passes an exchange again, up to three times, late and out of order.

        Runs until cancelled.
        """
        queue = await self.channel.declare_queue(exclusive=True)
        for key in routing_keys:
            await queue.bind(exchange, key)
        async with asyncio.TaskGroup() as tasks, queue.iterator(no_ack=True) as messages:
            async for message in messages:
                if ECHO in message.headers:
                    continue
                for _ in range(choice.randint(1, 3)):
                    delay = choice.uniform(0, 3)
                    tasks.create_task(self._again(message, exchange, delay))

    async def _again(
        self, message: aio_pika.abc.AbstractIncomingMessage, exchange: str, delay_s: float
    ) -> None:
        await asyncio.sleep(delay_s)
        await self.publish(
            message.body,
            exchange=exchange,
            routing_key=message.routing_key or "",
            headers={**message.headers, ECHO: "1"},
            type=message.type,
            content_type=message.content_type,
            user_id=message.user_id,
        )
        self.echoed += 1


@asynccontextmanager
async def open_raw_channel(amqp_url: str) -> AsyncIterator[RawChannel]:
    """Connect."""
    async with await aio_pika.connect(amqp_url) as connection:
        yield RawChannel(await connection.channel(on_return_raises=True))


@asynccontextmanager
async def traced(rabbitmq: RabbitMQ, amqp_url: str) -> AsyncIterator[Counter[int]]:
    """Count what RabbitMQ delivers meanwhile by how often it came back before.

    That number is what delivery limits are about: https://www.rabbitmq.com/docs/firehose has the
    shape of the copies.
    """
    counts = Counter[int]()

    async def count(copy: aio_pika.abc.AbstractIncomingMessage) -> None:
        properties: Any = copy.headers["properties"]
        counts[properties.get("headers", {}).get(COUNT, 0)] += 1

    vhost = urlsplit(amqp_url).path.removeprefix("/")
    async with open_raw_channel(amqp_url) as raw:
        queue = await raw.channel.declare_queue("test.trace", exclusive=True)
        await queue.bind(TRACE, "deliver.modelyard.#")
        await queue.consume(count, no_ack=True)
        await asyncio.to_thread(rabbitmq.ctl, "trace_on", "--vhost", vhost)
        try:
            yield counts
        finally:
            await asyncio.to_thread(rabbitmq.ctl, "trace_off", "--vhost", vhost)
