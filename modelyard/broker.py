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
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    ChannelInvalidStateError,
    ChannelPreconditionFailed,
)
from pamqp import decode

from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.topology import EXCHANGES, Exchange, Queue

log = structlog.get_logger(__name__)

HEARTBEAT_S = 10
"""AMQP heartbeat: a dead peer is noticed after about three of them."""
CONNECT_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 10.0
STEADY_S = 10.0
"""A subscription that held for so long ends a streak of losses, also when nothing came."""
LOSSES_BEFORE_CARE = 2

_LOST = (
    # The library's list names every RuntimeError: a programming error would pass for a loss.
    *(one for one in CONNECTION_EXCEPTIONS if one is not RuntimeError),
    ChannelInvalidStateError,
    asyncio.InvalidStateError,
    TimeoutError,
)

_one_by_one: ContextVar[bool] = ContextVar("one_by_one", default=False)
"""Set by `consume_forever` around its own subscribing: prefetch 1, whatever the caller asks for."""


class TopologyMismatchError(Exception):
    """A queue or exchange exists with other arguments; the broker's words name both values."""


class QueueHeldError(BrokerUnavailableError):
    """A queue that is to be exclusive has a consumer already."""


class ConsumingFailedError(BrokerUnavailableError):
    """The connection was lost over consuming; what was delivered meanwhile counts as delivered."""


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
    fallback_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """A key for this delivery alone, the same for as long as the process has it."""

    @property
    def settled(self) -> bool:
        """True once it was acked; a batch that is handled again may hold such ones."""
        return bool(self.raw.processed)


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
        with _losses("The deliveries could not be settled"):
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                for delivery in deliveries:
                    if not delivery.settled:
                        await delivery.raw.ack()

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
        with _losses(f"RabbitMQ did not confirm a message to {exchange.name}"):
            async with asyncio.timeout(timeout_s):
                target = await self._exchange(exchange)
                await target.publish(message, routing_key, mandatory=mandatory)

    async def declare(
        self, queues: Sequence[Queue], *, extra_bindings: Sequence[tuple[Queue, str]] = ()
    ) -> None:
        """Declare all exchanges, these queues and their bindings on a throw-away connection.

        Raises `TopologyMismatchError` if one exists with other arguments and
        `BrokerUnavailableError` if the broker does not answer.
        """
        with _losses():
            async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
                connection = await self._connect("declare")
                try:
                    await self._declare_all(await connection.channel(), queues, extra_bindings)
                except ChannelPreconditionFailed as error:
                    raise TopologyMismatchError(str(error)) from error
                finally:
                    await connection.close()

    async def message_count(self, queue_name: str) -> int:
        """Return how many messages are ready in a queue; raises `BrokerUnavailableError`."""
        with _losses():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._connect("count")
                async with connection:
                    channel = await connection.channel()
                    queue = await channel.declare_queue(queue_name, passive=True)
                    return queue.declaration_result.message_count or 0

    async def ping(self, *, timeout_s: float = 2.0) -> None:
        """Return once the publishing channel is open; raises `BrokerUnavailableError`."""
        with _losses():
            async with asyncio.timeout(timeout_s):
                await self._channel()

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
                raise QueueHeldError(f"{queue.name} has a consumer already and is to be exclusive.")
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
        with _losses():
            async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
                connection = await self._connect("consume")
        try:
            with _losses("Consuming was refused"):
                async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
                    channel = await connection.channel()
                    channel.close_callbacks.add(
                        lambda *_: subscription.on_lost("The channel was closed."),
                    )
                    underlay = await channel.get_underlay_channel()
                    underlay.on_consumer_cancel_callbacks.add(
                        lambda _: subscription.on_lost("The broker cancelled the consumer."),
                    )
                    await channel.set_qos(prefetch_count=1 if _one_by_one.get() else prefetch)
                    queue = await attach(channel)
                    try:
                        with _losses("Consuming was refused"):
                            await queue.consume(subscription.on_message)
                    except BrokerUnavailableError as error:
                        raise ConsumingFailedError(error.message) from error
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


@contextmanager
def _losses(said: str = "RabbitMQ does not answer") -> Iterator[None]:
    """Turn the client libraries' ways to say that a connection is gone into our one error."""
    try:
        yield
    except _LOST as error:
        raise BrokerUnavailableError(f"{said}: {error!r}") from error
    except RuntimeError as error:
        if not _says_closed(error):
            raise
        raise BrokerUnavailableError(f"{said}: {error!r}") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody cancelled us: when heartbeats stay out, aiormq cancels its own reader and hands
        # that on to whoever waits. A task group would take it for an orderly end of the task.
        raise BrokerUnavailableError(f"{said}: the connection is dead.") from error


def _says_closed(error: RuntimeError) -> bool:
    """Tell a connection that closed meanwhile from a programming error.

    Both come as bare `RuntimeError`s. aiormq 7.2.4: "<Connection: ...> closed"; aio_pika 10.2.1:
    "Connection was not opened"; uvloop 0.23: "unable to perform operation on <TCPTransport
    closed=True ...>; the handler is closed".
    """
    words = str(error)
    return (
        words.endswith(("> closed", "handler is closed", "closed channel"))
        or words == "Connection was not opened"
    )


async def _close_quietly(connection: AbstractConnection) -> None:
    """Close a connection that may be broken already; what it says then is of no use."""
    try:
        with _losses():
            async with asyncio.timeout(2.0):
                await connection.close()
    except (BrokerUnavailableError, RuntimeError) as error:
        log.debug("connection.close_failed", error=repr(error))


async def consume_forever(
    subscribe: Callable[[], AbstractAsyncContextManager[Subscription]],
    handle: Callable[[Subscription, list[Delivery]], Awaitable[None]],
    *,
    name: str,
    max_items: int,
    prepare: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Hand every batch to `handle`, which settles it; make a new subscription whenever one ends.

    `handle` raising `BrokerUnavailableError` ends the subscription too: what it had not settled
    is delivered again. `prepare` is awaited before every subscription but the first: the queue
    itself may be what went away. One line is logged for each streak of losses, which ends when a
    batch was handled. Runs until cancelled.

    Each delivery that a loss leaves unsettled counts against its limit, and one of them may be
    what the connection dies of. So after two subscriptions in a row that handled nothing they
    come one by one, until about as many were handled as might have been prefetched.
    """
    losses = _Losses(name, care_for=2 * max_items)
    subscribed_before = False
    while True:
        try:
            if subscribed_before and prepare is not None:
                await prepare()
            subscribed_before = True
            _one_by_one.set(losses.careful)
            async with subscribe() as subscription:
                with losses.while_subscribed():
                    await _consume(subscription, handle, losses, max_items)
        except BrokerUnavailableError as error:
            losses.add(error)
            await asyncio.sleep(backoff_s(losses.in_a_row))


async def _consume(
    subscription: Subscription,
    handle: Callable[[Subscription, list[Delivery]], Awaitable[None]],
    losses: "_Losses",
    max_items: int,
) -> None:
    """Handle batches until the subscription is lost, or the time to be careful is over."""
    careful = losses.careful
    async for batch in subscription.batches(max_items=max_items):
        await handle(subscription, batch)
        losses.handled(len(batch))
        if careful and not losses.careful:
            return


class _Losses:
    """What one consumer has lost in a row, and how careful it has become."""

    def __init__(self, name: str, *, care_for: int) -> None:
        """`care_for` is how many deliveries come one by one, once it is careful."""
        self._name = name
        self._care_for = care_for
        self._care_left = 0
        self._unhandled = 0
        self._subscribed = False
        self.in_a_row = 0

    @property
    def careful(self) -> bool:
        """True while deliveries are to come one by one."""
        return self._care_left > 0

    def add(self, error: BrokerUnavailableError) -> None:
        """Note that there is no subscription (any more)."""
        self.in_a_row += 1
        if self.in_a_row == 1:
            log.warning("consumer.lost", consumer=self._name, error=str(error))
        # A broker that is not there at all takes no delivery back.
        self._unhandled += self._subscribed or isinstance(error, ConsumingFailedError)
        if self._unhandled >= LOSSES_BEFORE_CARE:
            self._care_left = self._care_for
        self._subscribed = False

    def handled(self, deliveries: int) -> None:
        """Note that a batch was handled."""
        self._care_left = max(0, self._care_left - deliveries)
        self._over()

    @contextmanager
    def while_subscribed(self) -> Iterator[None]:
        """Note that there is a subscription; one that holds ends the streak."""
        self._subscribed = True
        steady = asyncio.get_running_loop().call_later(STEADY_S, self._over)
        try:
            yield
        finally:
            steady.cancel()

    def _over(self) -> None:
        if self.in_a_row:
            log.info("consumer.back", consumer=self._name, after_failures=self.in_a_row)
        self.in_a_row = self._unhandled = 0


def backoff_s(failures: int, *, first_s: float = 0.2, most_s: float = 5.0) -> float:
    """Return the seconds to wait before the next try: doubling, capped, jittered."""
    ceiling: float = min(most_s, first_s * 2 ** min(failures - 1, 10))
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret


def decode_leniently() -> None:
    """Make pamqp 4.0.1 take every message that RabbitMQ takes.

    What it can't decode (a short string or a header's name that is not UTF-8, a timestamp beyond
    the year 9999, headers nested too deep) it raises in aiormq's reader, which is the end of the
    connection: everything prefetched comes back with one delivery less to go, and the message
    itself comes first. It decodes by two tables, `METHODS` for properties and arguments and
    `TABLE_MAPPING` for what is in headers; ours replace its entries there. Called once, below.
    """
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["table"] = decode.TABLE_MAPPING[b"F"] = _table


def _short_string(value: bytes) -> tuple[int, str]:
    end = 1 + value[0]
    return end, value[1:end].decode(errors="replace")


def _timestamp(value: bytes) -> tuple[int, datetime | None]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):  # by platform and size
        return 8, None


def _table(value: bytes) -> tuple[int, dict[str, Any]]:
    end = 4 + int.from_bytes(value[:4])
    table: dict[str, Any] = {}
    at = 4
    try:
        while at < end:
            size, name = _short_string(value[at:end])
            at += size
            size, table[name] = decode.embedded_value(value[at:end])
            at += size
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
        # Its length is known, so what comes after it can still be read.
        log.warning("message.headers_unreadable", error=repr(error))
    return end, table


decode_leniently()
