"""A broker for many workers in one process: their subscriptions share a few connections."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aio_pika.exceptions import ChannelNotFoundEntity

from modelyard.broker import Broker, QueueHeldError, Subscription
from modelyard.broker.connection_loss import losses
from modelyard.contract.topology import CONTROL_SUFFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

    from modelyard.contract.topology import Queue

CHANNELS_ON_A_CONNECTION = 1_000
"""RabbitMQ allows 2,047 by default."""


class SharedBroker(Broker):
    """Gives each subscription a channel of its own on a shared connection.

    A worker's own broker has a connection for each subscription, and asks every 20 s whether the
    broker still knows the consumer. For thousands of hosts in one process that would cost more than
    what is measured.
    """

    def __init__(self, url: str, *, name: str, on_command: Callable[[], None]) -> None:
        """Call `on_command` for each message that comes through a host's command queue."""
        super().__init__(url, name=name)
        self._on_command = on_command
        self._connections: list[AbstractConnection] = []
        self._channels_left = 0
        """That may still be opened on the last connection, whether others were closed or not."""
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections, and with them all subscriptions."""
        for connection in self._connections:
            await connection.close()
        await super().close()

    async def has_queues(self, names: Sequence[str]) -> bool:
        """Tell whether all of these queues exist; raises `BrokerUnavailableError`."""
        with losses():
            channel = await self._new_channel()
            try:
                for name in names:
                    await channel.declare_queue(name, passive=True)
            except ChannelNotFoundEntity:  # it closes the channel too
                return False
            await channel.close()
            return True

    @asynccontextmanager
    async def subscribe(
        self, queue: Queue, *, prefetch: int, exclusive: bool = False
    ) -> AsyncIterator[Subscription]:
        """Consume a queue that exists. Unsettled deliveries go back to it at the end.

        Raises `BrokerUnavailableError`; with `exclusive` it is `QueueHeldError` if the queue has a
        consumer already.
        """
        subscription = Subscription()
        with losses("Consuming was refused"):
            channel = await self._new_channel()
        try:
            with losses("Consuming was refused"):
                channel.close_callbacks.add(
                    lambda *_: subscription.on_lost("The channel was closed.")
                )
                await channel.set_qos(prefetch_count=prefetch)
                found = await channel.declare_queue(queue.name, passive=True)
                if exclusive and found.declaration_result.consumer_count:
                    raise QueueHeldError(f"{queue.name} has a consumer already.")
                await found.consume(self._listener(queue, subscription))
            yield subscription
        finally:
            with losses():
                await channel.close()

    def _listener(
        self, queue: Queue, subscription: Subscription
    ) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
        if queue.routing_key.endswith(CONTROL_SUFFIX):
            return subscription.on_message

        async def on_command(message: AbstractIncomingMessage) -> None:
            self._on_command()
            await subscription.on_message(message)

        return on_command

    async def _new_channel(self) -> AbstractChannel:
        async with self._connecting:
            if self._channels_left == 0:
                self._connections.append(await self._connect("simulated"))
                self._channels_left = CHANNELS_ON_A_CONNECTION
            self._channels_left -= 1
        return await self._connections[-1].channel()
