"""Quorum queues in memory: what RabbitMQ does with messages once it has them.

Source: RabbitMQ's documentation of quorum queues, single active consumers, TTL and dead lettering,
3.10 to 4.x. Classic queues appear only as those of taps, which die with their consumer.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelyard.broker import JSON, MessageProperties
from modelyard.broker.subscription import Subscription
from modelyard.contract.errors import BrokerUnavailableError


@dataclass(eq=False)
class Letter:
    """A message as it lies in one queue."""

    body: bytes
    routing_key: str
    exchange: str
    message_id: str | None = None
    type: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    user_id: str | None = None
    """The sender's user, as RabbitMQ has verified it."""
    priority: int = 0
    properties: MessageProperties = JSON
    place: int = 0
    """How many messages the queue had taken in with it: its name there."""
    deliveries: int = 0
    """How often it was delivered and came back unsettled."""
    expires_at: float | None = None


class Consumer:
    """One consumer: a subscription, and what it holds unsettled."""

    def __init__(self, queue: "MemoryQueue", subscription: Subscription, prefetch: int) -> None:
        self.queue = queue
        self.subscription = subscription
        self.unsettled: dict[int, Letter] = {}
        """In the order of delivery."""
        subscription.cancel = self._cancel
        self._prefetch = prefetch

    @property
    def has_room(self) -> bool:
        """True while one more delivery may be under way."""
        return not self._prefetch or len(self.unsettled) < self._prefetch

    async def _cancel(self) -> None:
        await asyncio.sleep(0)
        if self.subscription.is_lost:
            raise BrokerUnavailableError("The channel is closed.")
        self.queue.deliver()

    def give(self, letter: Letter) -> None:
        """Deliver one message."""
        self.unsettled[letter.place] = letter
        delivered = Incoming(self, letter)
        taking = self.subscription.on_message(delivered)  # type: ignore[arg-type]
        try:
            taking.send(None)
        except StopIteration:
            return
        raise AssertionError("A subscription takes a message without waiting for anything.")

    def settle(self, letter: Letter, *, earlier_too: bool = False) -> None:
        """Take a message off the queue; raises `BrokerUnavailableError` if this one is over.

        With `earlier_too` all that were delivered before it, as AMQP's `multiple`.
        """
        if self.subscription.is_lost or letter.place not in self.unsettled:
            raise BrokerUnavailableError("The channel is closed.")
        places = [*self.unsettled]
        for place in places[: places.index(letter.place)] if earlier_too else ():
            del self.unsettled[place]
        del self.unsettled[letter.place]
        self.queue.deliver()


class Incoming:
    """A delivery, as the client library would give it: the part that a subscription reads."""

    def __init__(self, consumer: Consumer, letter: Letter) -> None:
        self._consumer = consumer
        self._letter = letter
        self.body = letter.body
        self.message_id = letter.message_id
        self.type = letter.type
        self.routing_key = letter.routing_key
        self.redelivered = letter.deliveries > 0
        counted = {"x-delivery-count": letter.deliveries} if letter.deliveries else {}
        self.headers = {**letter.headers, **counted}
        self.user_id = letter.user_id
        self.priority = letter.priority
        self.content_type = letter.properties.content_type
        self.content_encoding = letter.properties.content_encoding
        self.reply_to = letter.properties.reply_to
        self.correlation_id = letter.properties.correlation_id

    async def ack(self, *, multiple: bool = False) -> None:
        await asyncio.sleep(0)
        self._consumer.settle(self._letter, earlier_too=multiple)


Bury = Callable[["MemoryQueue", Letter, str], None]
"""Is told of a message that leaves its queue for a reason of RabbitMQ's."""


class MemoryQueue:
    """One queue. Its timers run outside of whatever process happens to call it."""

    def __init__(self, name: str, arguments: Mapping[str, Any], send_to_dead_letters: Bury) -> None:
        self.name = name
        self.arguments = dict(arguments)
        self.consumers: list[Consumer] = []
        self._bury = send_to_dead_letters
        self._returned: deque[Letter] = deque()
        """What was delivered and came back. It goes before the others, in the order in which it
        came back: what comes back twice is behind what came back with it the first time."""
        self._ready: deque[Letter] = deque()
        self._places = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        """By whose clock messages grow old; known from the first one on."""

    @property
    def ready(self) -> int:
        """How many messages wait."""
        return len(self._returned) + len(self._ready)

    @property
    def letters(self) -> tuple[Letter, ...]:
        """The messages that wait, in the order in which they are delivered."""
        return (*self._returned, *self._ready)

    @property
    def unsettled(self) -> int:
        """How many messages are delivered and not settled."""
        return sum(len(one.unsettled) for one in self.consumers)

    def put(self, letter: Letter) -> None:
        """Take a message in, at the end."""
        self._places += 1
        letter.place = self._places
        ttl = self.arguments.get("x-message-ttl")
        if ttl is not None:
            self._loop = self._loop or asyncio.get_running_loop()
            letter.expires_at = self._loop.time() + ttl / 1_000
            self._loop.call_later(ttl / 1_000, self._expire, context=contextvars.Context())
        self._ready.append(letter)
        self.deliver()

    def attach(self, consumer: Consumer) -> None:
        """Begin to deliver to a consumer."""
        self.consumers.append(consumer)
        self.deliver()

    def detach(self, consumer: Consumer) -> None:
        """Take a consumer away; what it held comes before what was never delivered."""
        if consumer in self.consumers:
            self.consumers.remove(consumer)
            back = list(consumer.unsettled.values())
            consumer.unsettled.clear()
            for letter in back:
                letter.deliveries += 1
            limit = self.arguments.get("x-delivery-limit")
            kept = [one for one in back if limit is None or one.deliveries <= limit]
            self._returned.extend(kept)
            for letter in back:
                if letter not in kept:
                    self._bury(self, letter, "delivery_limit")
            self.deliver()

    def lose_consumers(self, reason: str) -> None:
        """End all consumers, as when the connection or the queue goes away."""
        for consumer in tuple(self.consumers):
            consumer.subscription.on_lost(reason)
            self.detach(consumer)

    def deliver(self) -> None:
        """Hand out what is ready, in turn, to those who have room."""
        self._expire()
        single = self.arguments.get("x-single-active-consumer")
        while self.ready:
            consuming = [one for one in self.consumers if not one.subscription.is_stopped]
            active = consuming[:1] if single else consuming
            taker = next((one for one in active if one.has_room), None)
            if taker is None:
                return
            if not single:
                self.consumers.remove(taker)
                self.consumers.append(taker)
            taker.give((self._returned or self._ready).popleft())

    def _expire(self) -> None:
        for letters in (self._returned, self._ready):
            while letters:
                expires_at = letters[0].expires_at
                if expires_at is None or self._loop is None or self._loop.time() < expires_at:
                    break
                self._bury(self, letters.popleft(), "expired")
