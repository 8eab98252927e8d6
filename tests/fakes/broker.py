"""A RabbitMQ in memory, and the broker that a process has of it.

A `Subscription` and `consume_forever` are the real ones. What a test may do to a process's way to
the server is in its `link`, what it may do to the server in `MemoryRabbit`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from modelyard.broker import (
    JSON,
    Broker,
    DirectReply,
    MessageProperties,
    QueueHeldError,
    Subscription,
    TopologyMismatchError,
)
from modelyard.broker.connection import (
    CONNECT_TIMEOUT_S,
    INSPECT_TIMEOUT_S,
    PUBLISH_TIMEOUT_S,
    one_by_one,
)
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.topology import EXCHANGES, Exchange, ExchangeType, Queue
from tests.fakes.broker_links import Call, Link
from tests.fakes.broker_queues import Consumer, Letter, MemoryQueue

TAP = "amq.gen-"
"""How the names of queues begin that end with their consumers."""


class MemoryRabbit:
    """What all connections share: exchanges, bindings and queues."""

    def __init__(self) -> None:
        self.queues: dict[str, MemoryQueue] = {}
        self._bindings: list[tuple[str, str, str]] = []
        """Exchange, routing key, queue."""
        self._types: dict[str, ExchangeType] = {}
        self._taps = 0

    def declare(self, queue: Queue) -> None:
        """Make a queue and its binding; raises `TopologyMismatchError` as RabbitMQ says it."""
        self.declare_exchanges()
        there = self.queues.get(queue.name)
        if there is None:
            self.queues[queue.name] = MemoryQueue(queue.name, queue.arguments, self._bury)
        else:
            _compare(queue, there.arguments)
        self.bind(queue.exchange.name, queue.routing_key, queue.name)

    def declare_exchanges(self, *more: Exchange) -> None:
        """Make all exchanges of ours."""
        self._types |= {one.name: one.type for one in (*EXCHANGES, *more)}

    def bind(self, exchange: str, routing_key: str, queue: str) -> None:
        """Bind a queue; binding it again changes nothing."""
        if queue not in self.queues or exchange not in self._types:
            raise BrokerUnavailableError(f"There is no {queue} or no {exchange}.")
        if (exchange, routing_key, queue) not in self._bindings:
            self._bindings.append((exchange, routing_key, queue))

    def route(self, letter: Letter) -> int:
        """Put a message into every queue that takes it; return into how many."""
        if letter.exchange not in self._types:
            raise BrokerUnavailableError(f"There is no exchange {letter.exchange}.")
        names = self._queues_for(letter)
        for name in names:
            self.queues[name].put(replace(letter, deliveries=0, expires_at=None))
        return len(names)

    def is_durable(self, letter: Letter) -> bool:
        """Tell whether a queue takes this message that outlives its consumers."""
        return any(not name.startswith(TAP) for name in self._queues_for(letter))

    def tap(self, exchange: Exchange, routing_keys: Sequence[str]) -> MemoryQueue:
        """Make a queue of its own for one listener."""
        self.declare_exchanges(exchange)
        self._taps += 1
        queue = MemoryQueue(f"{TAP}{self._taps}", {}, self._bury)
        self.queues[queue.name] = queue
        for key in routing_keys:
            self.bind(exchange.name, key, queue.name)
        return queue

    def delete(self, name: str) -> None:
        """Delete a queue with all that is in it; its consumers are told."""
        queue = self.queues.pop(name, None)
        self._bindings = [one for one in self._bindings if one[2] != name]
        if queue is not None:
            queue.lose_consumers("The broker cancelled the consumer.")

    def close_connections(self) -> None:
        """Close every connection, as a restart does; what is durable stays."""
        for name in tuple(self.queues):
            queue = self.queues[name]
            queue.lose_consumers("The channel was closed.")
            if name.startswith(TAP):
                self.delete(name)

    def _queues_for(self, letter: Letter) -> list[str]:
        names = [
            queue
            for exchange, key, queue in self._bindings
            if exchange == letter.exchange
            and _takes(self._types[exchange], key.split("."), letter.routing_key.split("."))
        ]
        return list(dict.fromkeys(names))

    def _bury(self, queue: MemoryQueue, letter: Letter, reason: str) -> None:
        exchange = queue.arguments.get("x-dead-letter-exchange")
        if exchange is None:
            return
        death = {
            "queue": queue.name,
            "reason": reason,
            "count": 1,
            "exchange": letter.exchange,
            "routing-keys": [letter.routing_key],
        }
        earlier = letter.headers.get("x-death", [])
        headers = {**letter.headers, "x-death": [death, *earlier]}
        self.route(replace(letter, exchange=exchange, headers=headers))


class MemoryBroker(Broker):
    """One process's broker. `link` is its own way to RabbitMQ, for tests to break."""

    def __init__(self, rabbit: MemoryRabbit, *, name: str, link: Link | None = None) -> None:
        super().__init__("amqp://memory/", name=name)
        self._rabbit = rabbit
        self.link = link or Link()
        self.link.failure = BrokerUnavailableError
        self._consumers: dict[Consumer, None] = {}

    async def close(self) -> None:
        """Nothing is held but by subscriptions."""

    async def publish(
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
        del persistent  # quorum queues keep everything, and a restart ends all others
        letter = Letter(
            body,
            routing_key,
            exchange.name,
            message_id,
            message_type,
            headers or {},
            self.user,
            priority,
            properties,
        )
        durable = self._rabbit.is_durable(letter)
        async with _within(timeout_s):
            fate = await self.link.there(Call.DURABLE_MESSAGE if durable else Call.PASSING_MESSAGE)
            taken = self._rabbit.route(letter)
            await self.link.back(fate)
        if mandatory and not taken:
            raise BrokerUnavailableError("No queue took the message.")

    async def publish_unconfirmed(
        self, exchange: Exchange, messages: Sequence[tuple[str, bytes]], *, message_type: str
    ) -> None:
        async with _within(PUBLISH_TIMEOUT_S):
            fate = await self.link.there(Call.PASSING_MESSAGE, count=len(messages))
            for routing_key, body in messages:
                self._rabbit.route(
                    Letter(body, routing_key, exchange.name, None, message_type, {}, self.user)
                )
            await self.link.back(fate)

    async def reply(self, replies: Sequence[DirectReply], *, message_type: str) -> None:
        if not replies:
            return
        async with _within(PUBLISH_TIMEOUT_S):
            fate = await self.link.there(Call.PASSING_MESSAGE, count=len(replies))
            for one in replies:
                properties = replace(JSON, correlation_id=one.correlation_id)
                letter = Letter(one.body, one.queue, "", None, message_type, {}, self.user)
                if one.queue in self._rabbit.queues:
                    self._rabbit.queues[one.queue].put(replace(letter, properties=properties))
            await self.link.back(fate)

    async def declare(
        self,
        queues: Sequence[Queue],
        *,
        exchanges: Sequence[Exchange] = (),
        extra_bindings: Sequence[tuple[Queue, str]] = (),
    ) -> None:
        async with _within(CONNECT_TIMEOUT_S * 2):
            fate = await self.link.there()
            self._rabbit.declare_exchanges(*exchanges)
            for queue in queues:
                self._rabbit.declare(queue)
            for queue, routing_key in extra_bindings:
                self._rabbit.bind(queue.exchange.name, routing_key, queue.name)
            await self.link.back(fate)

    async def has_queues(self, names: Sequence[str]) -> bool:
        async with _within(INSPECT_TIMEOUT_S):
            fate = await self.link.there()
            there = all(name in self._rabbit.queues for name in names)
            await self.link.back(fate)
            return there

    async def message_count(self, queue_name: str) -> int:
        async with _within(CONNECT_TIMEOUT_S):
            fate = await self.link.there()
            count = self._queue(queue_name).ready
            await self.link.back(fate)
            return count

    async def ping(self, *, timeout_s: float = 2.0) -> None:
        async with _within(timeout_s):
            await self.link.back(await self.link.there())

    @asynccontextmanager
    async def subscribe(
        self, queue: Queue, *, prefetch: int, exclusive: bool = False
    ) -> AsyncIterator[Subscription]:
        def attach() -> MemoryQueue:
            found = self._queue(queue.name)
            if exclusive and found.consumers:
                raise QueueHeldError(
                    f"{queue.name} has a consumer already, so an exclusive one is refused."
                )
            return found

        async with self._attached(attach, prefetch) as subscription:
            yield subscription

    @asynccontextmanager
    async def tap(
        self, exchange: Exchange, routing_keys: Sequence[str], *, prefetch: int = 1_000
    ) -> AsyncIterator[Subscription]:
        def attach() -> MemoryQueue:
            return self._rabbit.tap(exchange, routing_keys)

        async with self._attached(attach, prefetch) as subscription:
            yield subscription

    def has(self, consumer: Consumer) -> bool:
        """Tell whether a consumer is this process's."""
        return consumer in self._consumers

    def cut(self) -> None:
        """Close this process's connections, as when it dies or its network does."""
        for consumer in tuple(self._consumers):
            consumer.subscription.on_lost("The channel was closed.")
            self._forget(consumer)

    @asynccontextmanager
    async def _attached(
        self, attach: Callable[[], MemoryQueue], prefetch: int
    ) -> AsyncIterator[Subscription]:
        async with _within(CONNECT_TIMEOUT_S * 2):
            fate = await self.link.there()
            consumer = Consumer(attach(), Subscription(), 1 if one_by_one.get() else prefetch)
            consumer.queue.attach(consumer)
            self._consumers[consumer] = None
            try:
                await self.link.back(fate)
            except BaseException:
                self._forget(consumer)
                raise
        try:
            yield consumer.subscription
        finally:
            self._forget(consumer)

    def _forget(self, consumer: Consumer) -> None:
        self._consumers.pop(consumer, None)
        consumer.queue.detach(consumer)
        if consumer.queue.name.startswith(TAP):
            self._rabbit.delete(consumer.queue.name)

    def _queue(self, name: str) -> MemoryQueue:
        if name not in self._rabbit.queues:
            raise BrokerUnavailableError(f"There is no queue {name}.")
        return self._rabbit.queues[name]


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise BrokerUnavailableError("RabbitMQ did not answer in time.") from error


def _compare(queue: Queue, there: Mapping[str, Any]) -> None:
    for name in sorted({*queue.arguments, *there}):
        wanted, held = queue.arguments.get(name), there.get(name)
        if wanted != held:
            raise TopologyMismatchError(
                f"PRECONDITION_FAILED - inequivalent arg '{name}' for queue '{queue.name}': "
                f"received '{wanted}' but current is '{held}'"
            )


def _takes(kind: ExchangeType, pattern: Sequence[str], words: Sequence[str]) -> bool:
    match kind:
        case ExchangeType.FANOUT:
            return True
        case ExchangeType.DIRECT:
            return pattern == words
        case ExchangeType.TOPIC:
            return _fits(pattern, words)


def _fits(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Tell whether a topic's pattern takes a routing key: `*` is one word, `#` any number."""
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(_fits(rest, words[taken:]) for taken in range(len(words) + 1))
    return bool(words) and first in {"*", words[0]} and _fits(rest, words[1:])
