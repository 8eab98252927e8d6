"""One process's access to RabbitMQ."""

import asyncio
import time
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, cast
from urllib.parse import unquote, urlsplit

import aio_pika
import aiormq
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.commands import Queue as QueueFrames
from pamqp.header import ContentHeader

from modelyard.broker.connection_loss import (
    ConsumingFailedError,
    QueueHeldError,
    TopologyMismatchError,
    close_quietly,
    losses,
)
from modelyard.broker.properties import JSON, DirectReply, MessageProperties
from modelyard.broker.subscription import Subscription
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.topology import EXCHANGES, Exchange, Queue

log = structlog.get_logger(__name__)

HEARTBEAT_S = 10
"""AMQP heartbeat: a dead peer is noticed after about three of them."""
CONNECT_TIMEOUT_S = 10.0
"""For opening a connection together with the first requests on it."""
INSPECT_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 5.0
REPLY_TTL_S = 3_600
"""Seconds that a reply may lie in a queue: nobody may come for it."""
WATCH_S = 20.0
"""Seconds between two checks whether the broker still knows a subscription's consumer."""


class PublishEnded(Protocol):
    """Called when a confirmed publish has ended, with its seconds."""

    def __call__(self, seconds: float, *, confirmed: bool) -> None: ...


def _uncounted(seconds: float, *, confirmed: bool) -> None:
    del seconds, confirmed


one_by_one: ContextVar[bool] = ContextVar("one_by_one", default=False)
"""`consume_forever` sets it to subscribe with prefetch 1, whatever the caller asks for."""


class Broker:
    """One process's access to RabbitMQ: one publishing connection, one for each subscription."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        publish_ended: PublishEnded = _uncounted,
    ) -> None:
        """`url` is an AMQP URI; `name` is what RabbitMQ's management page shows."""
        self._publish_ended = publish_ended
        self._url = url
        self._name = name
        self.user = user_of(url)
        """The RabbitMQ user of this process. RabbitMQ verifies it on every message (`user_id`)."""
        self._lock = asyncio.Lock()
        self._publishing: tuple[AbstractConnection, AbstractChannel] | None = None
        self._unconfirmed: AbstractChannel | None = None
        self._replying: AbstractChannel | None = None
        self._closing: set[asyncio.Task[None]] = set()
        """Tasks that close connections nobody waits for any more; kept from garbage collection."""
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
        priority: int = 0,
        properties: MessageProperties = JSON,
        mandatory: bool = True,
        persistent: bool = True,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        """Publish and wait for the broker's confirmation.

        Raises `BrokerUnavailableError` if it did not come within `timeout_s` seconds or, with
        `mandatory`, no queue took the message. Whether the broker has the message is then unknown:
        publish the same one again, because readers ignore repetitions.
        """
        mode = (
            aio_pika.DeliveryMode.PERSISTENT if persistent else aio_pika.DeliveryMode.NOT_PERSISTENT
        )
        message = aio_pika.Message(
            body,
            content_type=properties.content_type,
            content_encoding=properties.content_encoding,
            reply_to=properties.reply_to,
            correlation_id=properties.correlation_id,
            delivery_mode=mode,
            # The library matches returned messages by id, so no two attempts share one. An id that
            # the caller gives is the exception: readers recognise repetitions by it.
            message_id=message_id or uuid.uuid4().hex,
            type=message_type,
            headers=dict(headers or {}),
            priority=priority,
            user_id=self.user,
        )
        began, confirmed = time.monotonic(), False
        try:
            with losses(f"RabbitMQ did not confirm a message to {exchange.name}"):
                async with asyncio.timeout(timeout_s):
                    target = await self._exchange(exchange)
                    await target.publish(message, routing_key, mandatory=mandatory)
                    confirmed = True
        finally:
            self._publish_ended(time.monotonic() - began, confirmed=confirmed)

    async def publish_unconfirmed(
        self, exchange: Exchange, messages: Sequence[tuple[str, bytes]], *, message_type: str
    ) -> None:
        """Publish bodies with their routing keys in order, and do not wait for confirmations.

        It takes a fraction of the work of `publish`, for messages that readers can do without:
        those on their way are lost with the connection. Raises `BrokerUnavailableError` if there is
        none, or if it does not take them within `PUBLISH_TIMEOUT_S` seconds.
        """
        if not messages:
            return
        with losses(f"RabbitMQ did not take messages to {exchange.name}"):
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                channel = await self._unconfirmed_channel()
                # All but the last are one write to the socket; the library sends the last one, and
                # waits until there is room in the socket again.
                *first, (last_key, last_body) = messages
                frames: list[Basic.Publish | ContentHeader | ContentBody] = []
                for routing_key, body in first:
                    properties = self._unconfirmed_properties(message_type)
                    frames += [
                        Basic.Publish(exchange=exchange.name, routing_key=routing_key),
                        ContentHeader(body_size=len(body), properties=properties),
                        *_content(body, channel.max_content_size),
                    ]
                if frames:
                    await channel.write_queue.put(
                        aiormq.abc.ChannelFrame.marshall(channel.number, frames)
                    )
                await channel.basic_publish(
                    last_body,
                    exchange=exchange.name,
                    routing_key=last_key,
                    properties=self._unconfirmed_properties(message_type),
                )

    async def reply(self, replies: Sequence[DirectReply], *, message_type: str) -> None:
        """Publish to queues by their names, through the default exchange, and wait for nothing.

        What no queue takes is dropped, and so is what lies in its queue for `REPLY_TTL_S`. Raises
        `BrokerUnavailableError` as `publish_unconfirmed`. If the user may not do this, RabbitMQ
        closes the channel, which is used for nothing else.
        """
        if not replies:
            return
        with losses("RabbitMQ did not take replies"):
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                channel = await self._replying_channel()
                for one in replies:
                    await channel.basic_publish(
                        one.body,
                        exchange="",
                        routing_key=one.queue,
                        properties=Basic.Properties(
                            content_type=JSON.content_type,
                            correlation_id=one.correlation_id,
                            expiration=str(REPLY_TTL_S * 1_000),
                            message_id=uuid.uuid4().hex,
                            message_type=message_type,
                            user_id=self.user,
                        ),
                    )

    async def declare(
        self,
        queues: Sequence[Queue],
        *,
        exchanges: Sequence[Exchange] = (),
        extra_bindings: Sequence[tuple[Queue, str]] = (),
    ) -> None:
        """Declare these queues with their exchanges and bindings on a throw-away connection.

        `exchanges` are declared too, whether a queue of these needs them or not.
        Raises `TopologyMismatchError` if one exists with other arguments and
        `BrokerUnavailableError` if the broker does not answer.
        """
        with losses():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._connect("declare")
                try:
                    wanted = [*exchanges, *_exchanges_of(queues)]
                    await _declare_all(await connection.channel(), wanted, queues, extra_bindings)
                except ChannelPreconditionFailed as error:
                    raise TopologyMismatchError(str(error)) from error
                finally:
                    await connection.close()

    async def has_queues(self, names: Sequence[str]) -> bool:
        """Tell whether all of these queues exist; raises `BrokerUnavailableError`.

        It needs no permission, so users that may declare nothing can call it too.
        """
        with losses():
            async with asyncio.timeout(INSPECT_TIMEOUT_S):
                connection = await self._connect("look")
                async with connection:
                    channel = await connection.channel()
                    try:
                        for name in names:
                            await channel.declare_queue(name, passive=True)
                    except ChannelNotFoundEntity:
                        return False
                    return True

    async def message_count(self, queue_name: str) -> int:
        """Return how many messages are ready in a queue; raises `BrokerUnavailableError`."""
        return (await self._inspect(queue_name)).message_count or 0

    async def consumer_count(self, queue_name: str) -> int:
        """Return how many consumers a queue has; raises `BrokerUnavailableError`."""
        return (await self._inspect(queue_name)).consumer_count or 0

    async def _inspect(self, queue_name: str) -> QueueFrames.DeclareOk:
        with losses():
            async with asyncio.timeout(INSPECT_TIMEOUT_S):
                connection = await self._connect("look")
                async with connection:
                    channel = await connection.channel()
                    queue = await channel.declare_queue(queue_name, passive=True)
                    return queue.declaration_result

    async def ping(self, *, timeout_s: float = 2.0) -> None:
        """Return once the publishing channel is open; raises `BrokerUnavailableError`."""
        with losses():
            async with asyncio.timeout(timeout_s):
                await self._channel()

    @asynccontextmanager
    async def subscribe(
        self, queue: Queue, *, prefetch: int, exclusive: bool = False
    ) -> AsyncIterator[Subscription]:
        """Consume a queue that exists. Unsettled deliveries go back to it at the end.

        Raises `BrokerUnavailableError`; with `exclusive` it is `QueueHeldError` if the queue has a
        consumer already. Quorum queues accept AMQP's own exclusive flag and silently ignore it
        (seen on 3.10), so this method checks the count of consumers itself.
        """

        async def attach(channel: AbstractChannel) -> AbstractQueue:
            if not exclusive:
                return await channel.get_queue(queue.name, ensure=False)
            found = await channel.declare_queue(queue.name, passive=True)
            if found.declaration_result.consumer_count:
                raise QueueHeldError(
                    f"{queue.name} has a consumer already, so an exclusive one is refused."
                )
            return found

        async with (
            self._consuming(attach, prefetch) as (subscription, _, _),
            _watched(subscription, queue.name, lambda: self.consumer_count(queue.name)),
        ):
            yield subscription

    @asynccontextmanager
    async def tap(
        self, exchange: Exchange, routing_keys: Sequence[str], *, prefetch: int = 1_000
    ) -> AsyncIterator[Subscription]:
        """Consume copies of an exchange's messages, from a queue that ends with this process.

        Raises `BrokerUnavailableError`.
        """

        async def attach(channel: AbstractChannel) -> AbstractQueue:
            await channel.declare_exchange(exchange.name, exchange.type.value, durable=True)
            queue = await channel.declare_queue(exclusive=True, auto_delete=True)
            for key in routing_keys:
                await queue.bind(exchange.name, key)
            return queue

        async with (
            self._consuming(attach, prefetch) as (subscription, connection, queue),
            _watched(subscription, queue.name, lambda: _own_consumer_count(connection, queue.name)),
        ):
            yield subscription

    @asynccontextmanager
    async def _consuming(
        self,
        attach: Callable[[AbstractChannel], Awaitable[AbstractQueue]],
        prefetch: int,
    ) -> AsyncIterator[tuple[Subscription, AbstractConnection, AbstractQueue]]:
        """Subscribe on a new connection; yield the subscription, its connection and its queue."""
        subscription = Subscription()
        with losses():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._connect("consume")
        try:
            with losses("Consuming was refused"):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    channel = await connection.channel()
                    channel.close_callbacks.add(
                        lambda *_: subscription.on_lost("The channel was closed."),
                    )
                    underlay = await channel.get_underlay_channel()
                    underlay.on_consumer_cancel_callbacks.add(
                        lambda _: subscription.on_lost("The broker cancelled the consumer."),
                    )
                    await channel.set_qos(prefetch_count=1 if one_by_one.get() else prefetch)
                    queue = await attach(channel)
                    try:
                        with losses("Consuming was refused"):
                            tag = await queue.consume(subscription.on_message)
                    except BrokerUnavailableError as error:
                        raise ConsumingFailedError(error.message) from error
                    subscription.cancel = partial(queue.cancel, tag)
            yield subscription, connection, queue
        finally:
            await close_quietly(connection)

    async def _connect(self, purpose: str) -> AbstractConnection:
        """Connect within the caller's own deadline.

        A task of its own connects: if a cancellation came at the moment of success, the connection
        would stay open without an owner. The library's own `timeout` has this fault: it uses
        `asyncio.wait_for` of Python 3.11, and a consumer on such a connection would never end.
        """
        connecting = asyncio.create_task(self._open(purpose))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._close_unclaimed)
            raise

    async def _open(self, purpose: str) -> AbstractConnection:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await aio_pika.connect(
                self._url,
                heartbeat=HEARTBEAT_S,
                client_properties={"connection_name": f"modelyard {self._name} {purpose}"},
            )

    def _close_unclaimed(self, connecting: asyncio.Task[AbstractConnection]) -> None:
        if not connecting.cancelled() and connecting.exception() is None:
            closing = asyncio.create_task(close_quietly(connecting.result()))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

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
                undo.push_async_callback(close_quietly, connection)
                channel = await connection.channel(on_return_raises=True)
                undo.pop_all()
            self._publishing = (connection, channel)
            return channel

    def _unconfirmed_properties(self, message_type: str) -> Basic.Properties:
        return Basic.Properties(
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT.value,
            message_id=uuid.uuid4().hex,
            message_type=message_type,
            timestamp=datetime.now(UTC),
            user_id=self.user,
        )

    async def _unconfirmed_channel(self) -> aiormq.Channel:
        """Return a channel of the publishing connection that is not in confirm mode."""
        self._unconfirmed = await self._open_channel(self._unconfirmed)
        return cast("aiormq.Channel", await self._unconfirmed.get_underlay_channel())

    async def _replying_channel(self) -> aiormq.Channel:
        """Return a channel like that of `_unconfirmed_channel`, for replies alone."""
        before = self._replying
        self._replying = channel = await self._open_channel(before)
        if channel is not before:
            channel.close_callbacks.add(_log_refused_replies)
        return cast("aiormq.Channel", await channel.get_underlay_channel())

    async def _open_channel(self, known: AbstractChannel | None) -> AbstractChannel:
        """Return this channel without confirms, or another one if it is closed."""
        await self._channel()
        async with self._lock:
            if self._publishing is None:
                raise BrokerUnavailableError("The connection was closed meanwhile.")
            if known is not None and not known.is_closed:
                return known
            connection, _ = self._publishing
            return await connection.channel(publisher_confirms=False)

    async def _drop_publishing(self) -> None:
        if self._publishing is not None:
            connection, _ = self._publishing
            self._publishing = None
            self._unconfirmed = None
            self._replying = None
            self._exchanges.clear()
            await close_quietly(connection)


def _log_refused_replies(_: object, error: BaseException | None) -> None:
    if isinstance(error, ChannelAccessRefused):
        log.error("replies.refused", reason=str(error))


def _content(body: bytes, most: int) -> Iterator[ContentBody]:
    """Yield a body in frames of at most `most` bytes of it."""
    for start in range(0, len(body), most):
        yield ContentBody(body[start : start + most])


async def _declare_all(
    channel: AbstractChannel,
    exchanges: Iterable[Exchange],
    queues: Sequence[Queue],
    extra_bindings: Sequence[tuple[Queue, str]],
) -> None:
    for exchange in dict.fromkeys(exchanges):
        await channel.declare_exchange(exchange.name, exchange.type.value, durable=True)
    for queue in queues:
        made = await channel.declare_queue(
            queue.name, durable=True, arguments=dict(queue.arguments)
        )
        await made.bind(queue.exchange.name, queue.routing_key)
    for queue, routing_key in extra_bindings:
        made = await channel.get_queue(queue.name, ensure=False)
        await made.bind(queue.exchange.name, routing_key)


def user_of(url: str) -> str:
    """Return the user of an AMQP URI; `guest` if it names none, as the URI's specification says."""
    return unquote(urlsplit(url).username or "") or "guest"


def _exchanges_of(queues: Sequence[Queue]) -> list[Exchange]:
    """Return the exchanges of these queues, and their dead-letter exchanges."""
    names = {queue.exchange.name for queue in queues} | {
        str(queue.arguments.get("x-dead-letter-exchange")) for queue in queues
    }
    return [exchange for exchange in EXCHANGES if exchange.name in names]


@asynccontextmanager
async def _watched(
    subscription: Subscription, queue_name: str, count: Callable[[], Awaitable[int]]
) -> AsyncIterator[None]:
    """End the subscription if the broker does not know its consumer any more.

    The broker can lose a consumer without closing its channel: no delivery would ever come then.
    """

    async def watch() -> None:
        while not subscription.is_lost:
            await asyncio.sleep(WATCH_S)
            with suppress(BrokerUnavailableError):  # the subscription notices that itself
                if await count() == 0 and not subscription.is_stopped:
                    subscription.on_lost(f"The broker knows no consumer of {queue_name}.")

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


async def _own_consumer_count(connection: AbstractConnection, queue_name: str) -> int:
    """Return how many consumers an exclusive queue has, asked on the connection that owns it.

    A queue that is gone has none: the broker deletes it with its last consumer. The broker closes
    the channel on which we ask for such a queue, so a throw-away channel is used. Raises
    `BrokerUnavailableError`.
    """
    with losses():
        async with asyncio.timeout(INSPECT_TIMEOUT_S):
            channel = await connection.channel()
            try:
                queue = await channel.declare_queue(queue_name, passive=True)
            except ChannelNotFoundEntity:
                return 0
            await channel.close()
            return queue.declaration_result.consumer_count or 0
