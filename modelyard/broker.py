"""RabbitMQ: publishing with confirms, consuming in batches, declaring the topology.

The only module that imports aio_pika. Connections are plain ones that we rebuild ourselves: a
subscription that loses anything (connection, channel, consumer) ends with
`BrokerUnavailableError`, and `consume_forever` makes a whole new one. So what a process believes
about its consumers is never older than one connection.
"""

import asyncio
import random
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelPreconditionFailed

from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.topology import EXCHANGES, Exchange, Queue

log = structlog.get_logger(__name__)

HEARTBEAT_S = 10
"""AMQP heartbeat: a dead peer is noticed after about three of them."""
CONNECT_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 10.0

_LOST = (*CONNECTION_EXCEPTIONS, asyncio.InvalidStateError, TimeoutError)


class TopologyMismatchError(Exception):
    """A queue or exchange exists with other arguments; the broker's words name both values."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as it came, and the handle by which it is settled."""

    body: bytes
    message_id: str | None
    type: str | None
    routing_key: str
    redelivered: bool
    headers: Mapping[str, Any]
    user_id: str | None
    raw: AbstractIncomingMessage


class Subscription:
    """A live consumer of one queue. It ends with `BrokerUnavailableError` and is not reused."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[Delivery] = asyncio.Queue()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def batches(self, *, max_items: int) -> AsyncIterator[list[Delivery]]:
        """Yield whatever is ready now, at least one delivery and at most `max_items`."""
        while True:
            batch = [await self._next()]
            while len(batch) < max_items and not self._ready.empty():
                batch.append(self._ready.get_nowait())
            yield batch

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Take the deliveries off the queue.

        Nothing confirms it: a quorum queue settles in its own time, and a connection that closes
        within some milliseconds may have its last deliveries come again (about 1 of 100 on 3.10,
        also after a clean close of the channel). So whoever consumes has to know a repetition.
        Raises `BrokerUnavailableError`; the broker then delivers them again.
        """
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                for delivery in deliveries:
                    await delivery.raw.ack()
        except _LOST as error:
            raise BrokerUnavailableError("The deliveries could not be settled.") from error

    async def _next(self) -> Delivery:
        if not self._ready.empty() and not self._lost.done():
            return self._ready.get_nowait()
        getter = asyncio.ensure_future(self._ready.get())
        try:
            await asyncio.wait((getter, self._lost), return_when=asyncio.FIRST_COMPLETED)
            if self._lost.done():
                self._lost.result()
            return getter.result()
        finally:
            getter.cancel()

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        """Take one message from the client library."""
        self._ready.put_nowait(
            Delivery(
                body=message.body,
                message_id=message.message_id,
                type=message.type,
                routing_key=message.routing_key or "",
                redelivered=bool(message.redelivered),
                headers=message.headers,
                user_id=message.user_id,
                raw=message,
            ),
        )

    @property
    def is_lost(self) -> bool:
        """True once the deliveries at hand can't be settled any more."""
        return self._lost.done()

    def on_lost(self, reason: str) -> None:
        """Note that this subscription is over; whoever iterates is told."""
        if not self._lost.done():
            self._lost.set_exception(BrokerUnavailableError(reason))
            # The iterating task may have gone; an unread exception is not worth a warning.
            self._lost.exception()


class Broker:
    """One process's access to RabbitMQ: one publishing connection, one for each subscription."""

    def __init__(self, url: str, *, name: str, tls: ssl.SSLContext | None = None) -> None:
        """`url` is an AMQP URI; `name` is what RabbitMQ's management page shows."""
        self._url = url
        self._name = name
        self._tls = tls
        self._lock = asyncio.Lock()
        self._publishing: tuple[AbstractConnection, AbstractChannel] | None = None
        self._exchanges: dict[str, aio_pika.abc.AbstractExchange] = {}

    async def close(self) -> None:
        """Close the publishing connection; subscriptions close with their own context."""
        async with self._lock:
            await self._drop_publishing()

    async def publish(  # noqa: PLR0913 - the properties of an AMQP message are many
        self,
        exchange: Exchange,
        routing_key: str,
        body: bytes,
        *,
        message_type: str | None = None,
        message_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        mandatory: bool = True,
        persistent: bool = True,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        """Publish and wait for the broker's confirmation.

        Raises `BrokerUnavailableError` if it did not come within `timeout_s` seconds or, with
        `mandatory`, no queue took the message. Whether it was taken is then unknown: publish the
        same again, the reader dedups.
        """
        mode = (
            aio_pika.DeliveryMode.PERSISTENT if persistent else aio_pika.DeliveryMode.NOT_PERSISTENT
        )
        message = aio_pika.Message(
            body,
            content_type="application/json",
            delivery_mode=mode,
            # Returned messages are matched by it, so no two attempts may share one; a client's
            # own id is the exception, it is what dedups.
            message_id=message_id or uuid.uuid4().hex,
            type=message_type,
            headers=dict(headers or {}),
        )
        try:
            async with asyncio.timeout(timeout_s):
                target = await self._exchange(exchange)
                await target.publish(message, routing_key, mandatory=mandatory)
        except _LOST as error:
            raise BrokerUnavailableError(
                f"RabbitMQ did not confirm a message to {exchange.name}: {error!r}",
            ) from error

    async def declare(
        self, queues: Sequence[Queue], *, extra_bindings: Sequence[tuple[Queue, str]] = ()
    ) -> None:
        """Declare all exchanges, these queues and their bindings on a throw-away connection.

        Raises `TopologyMismatchError` if one exists with other arguments and
        `BrokerUnavailableError` if the broker does not answer.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
                connection = await self._connect("declare")
                try:
                    await self._declare_all(await connection.channel(), queues, extra_bindings)
                finally:
                    await connection.close()
        except ChannelPreconditionFailed as error:
            raise TopologyMismatchError(str(error)) from error
        except _LOST as error:
            raise BrokerUnavailableError(f"RabbitMQ does not answer: {error!r}") from error

    async def message_count(self, queue_name: str) -> int:
        """Return how many messages are ready in a queue; raises `BrokerUnavailableError`."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._connect("count")
                async with connection:
                    channel = await connection.channel()
                    queue = await channel.declare_queue(queue_name, passive=True)
                    return queue.declaration_result.message_count or 0
        except _LOST as error:
            raise BrokerUnavailableError(f"RabbitMQ does not answer: {error!r}") from error

    async def ping(self, *, timeout_s: float = 2.0) -> None:
        """Return once the publishing channel is open; raises `BrokerUnavailableError`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel()
        except _LOST as error:
            raise BrokerUnavailableError(f"RabbitMQ does not answer: {error!r}") from error

    @asynccontextmanager
    async def subscribe(
        self, queue: Queue, *, prefetch: int, exclusive: bool = False
    ) -> AsyncIterator[Subscription]:
        """Consume a queue that exists. Unsettled deliveries go back to it at the end.

        With `exclusive` a queue that has a consumer already is refused. Quorum queues take AMQP's
        own exclusive flag without a word and ignore it (seen on 3.10), so we look for ourselves.
        Raises `BrokerUnavailableError`.
        """

        async def attach(channel: AbstractChannel) -> aio_pika.abc.AbstractQueue:
            if not exclusive:
                return await channel.get_queue(queue.name, ensure=False)
            found = await channel.declare_queue(queue.name, passive=True)
            if found.declaration_result.consumer_count:
                message = f"{queue.name} has a consumer already and is to be exclusive."
                raise BrokerUnavailableError(message)
            return found

        async with self._consuming(attach, prefetch) as subscription:
            yield subscription

    @asynccontextmanager
    async def tap(
        self, exchange: Exchange, routing_keys: Sequence[str], *, prefetch: int = 1_000
    ) -> AsyncIterator[Subscription]:
        """Consume a copy of what passes an exchange, through a queue that dies with this process.

        Raises `BrokerUnavailableError`.
        """

        async def attach(channel: AbstractChannel) -> aio_pika.abc.AbstractQueue:
            await channel.declare_exchange(exchange.name, exchange.type.value, durable=True)
            queue = await channel.declare_queue(exclusive=True, auto_delete=True)
            for key in routing_keys:
                await queue.bind(exchange.name, key)
            return queue

        async with self._consuming(attach, prefetch) as subscription:
            yield subscription

    @asynccontextmanager
    async def _consuming(
        self,
        attach: Callable[[AbstractChannel], Awaitable[aio_pika.abc.AbstractQueue]],
        prefetch: int,
    ) -> AsyncIterator[Subscription]:
        subscription = Subscription()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
                connection = await self._connect("consume")
        except _LOST as error:
            raise BrokerUnavailableError(f"RabbitMQ does not answer: {error!r}") from error
        try:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
                    channel = await connection.channel()
                    channel.close_callbacks.add(
                        lambda *_: subscription.on_lost("The channel was closed."),
                    )
                    underlay = await channel.get_underlay_channel()
                    underlay.on_consumer_cancel_callbacks.add(
                        lambda _: subscription.on_lost("The broker cancelled the consumer."),
                    )
                    await channel.set_qos(prefetch_count=prefetch)
                    queue = await attach(channel)
                    await queue.consume(subscription.on_message)
            except _LOST as error:
                raise BrokerUnavailableError(f"Consuming was refused: {error}") from error
            yield subscription
        finally:
            await _close_quietly(connection)

    async def _connect(self, purpose: str) -> AbstractConnection:
        return await aio_pika.connect(
            self._url,
            timeout=CONNECT_TIMEOUT_S,
            heartbeat=HEARTBEAT_S,
            ssl_context=self._tls,
            client_properties={"connection_name": f"modelyard {self._name} {purpose}"},
        )

    async def _exchange(self, exchange: Exchange) -> aio_pika.abc.AbstractExchange:
        channel = await self._channel()
        known = self._exchanges.get(exchange.name)
        if known is None:
            known = await channel.get_exchange(exchange.name, ensure=False)
            self._exchanges[exchange.name] = known
        return known

    async def _channel(self) -> AbstractChannel:
        async with self._lock:
            if self._publishing is not None:
                connection, channel = self._publishing
                if not connection.is_closed and not channel.is_closed:
                    return channel
                await self._drop_publishing()
            async with AsyncExitStack() as undo:
                connection = await self._connect("publish")
                undo.push_async_callback(_close_quietly, connection)
                channel = await connection.channel(on_return_raises=True)
                undo.pop_all()
            self._publishing = (connection, channel)
            return channel

    async def _drop_publishing(self) -> None:
        if self._publishing is not None:
            connection, _ = self._publishing
            self._publishing = None
            self._exchanges.clear()
            await _close_quietly(connection)

    async def _declare_all(
        self,
        channel: AbstractChannel,
        queues: Sequence[Queue],
        extra_bindings: Sequence[tuple[Queue, str]],
    ) -> None:
        for exchange in EXCHANGES:
            await channel.declare_exchange(exchange.name, exchange.type.value, durable=True)
        for queue in queues:
            made = await channel.declare_queue(
                queue.name, durable=True, arguments=dict(queue.arguments)
            )
            await made.bind(queue.exchange.name, queue.routing_key)
        for queue, routing_key in extra_bindings:
            made = await channel.get_queue(queue.name, ensure=False)
            await made.bind(queue.exchange.name, routing_key)


async def _close_quietly(connection: AbstractConnection) -> None:
    """Close a connection that may be broken already; what it says then is of no use."""
    try:
        async with asyncio.timeout(2.0):
            await connection.close()
    except _LOST as error:
        log.debug("connection.close_failed", error=repr(error))


async def consume_forever(
    subscribe: Callable[[], AbstractAsyncContextManager[Subscription]],
    handle: Callable[[Subscription, list[Delivery]], Awaitable[None]],
    *,
    name: str,
    max_items: int,
) -> None:
    """Hand every batch to `handle`, which settles it; make a new subscription whenever one ends.

    `handle` raising `BrokerUnavailableError` ends the subscription too: what it had not settled
    is delivered again. One line is logged for each streak of failures. Runs until cancelled.
    """
    failures = 0
    while True:
        try:
            async with subscribe() as subscription:
                if failures:
                    log.info("consumer.back", consumer=name, after_failures=failures)
                    failures = 0
                async for batch in subscription.batches(max_items=max_items):
                    await handle(subscription, batch)
        except BrokerUnavailableError as error:
            failures += 1
            if failures == 1:
                log.warning("consumer.lost", consumer=name, error=str(error))
            await asyncio.sleep(backoff_s(failures))


def backoff_s(failures: int, *, first_s: float = 0.2, most_s: float = 5.0) -> float:
    """Return the seconds to wait before the next try: doubling, capped, jittered."""
    ceiling: float = min(most_s, first_s * 2 ** min(failures - 1, 10))
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
