"""A live consumer of one queue, and what it delivers."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from aio_pika.abc import AbstractIncomingMessage

from modelyard.broker.connection_loss import losses
from modelyard.broker.headers import Headers
from modelyard.broker.properties import UNSET, MessageProperties
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.messages import MAX_BATCH_BYTES

SETTLE_TIMEOUT_S = 10.0
MAX_BODY_BYTES = MAX_BATCH_BYTES
"""No message of Modelyard's is larger. RabbitMQ may deliver up to 128 MiB, which is in memory
before a consumer can refuse it; of a larger body only the beginning is kept."""
KEPT_OF_LARGER_BYTES = 64 << 10
MAX_HELD_BYTES = 64 << 20
"""Total of unsettled deliveries, with their headers. RabbitMQ ignores AMQP's prefetch by bytes, so
a subscription that was given more ends itself. The broker takes everything back, and the messages
come again one by one."""
MAX_AT_A_TIME_BYTES = 8 << 20
"""Total of the deliveries in one batch; a larger delivery comes alone."""


class TooManyBytesError(BrokerUnavailableError):
    """More bytes were delivered at once than may be held; the broker takes the deliveries back."""

    def __init__(self) -> None:
        super().__init__(f"More than {MAX_HELD_BYTES} bytes were delivered at once.")


@dataclass(eq=False)
class Delivery:
    """One delivered message, and the handle to settle it with."""

    body: bytes
    """The whole body, or its beginning if it has more than `MAX_BODY_BYTES`."""
    message_id: str | None
    type: str | None
    routing_key: str
    redelivered: bool
    headers: Mapping[str, Any]
    user_id: str | None
    raw: AbstractIncomingMessage
    priority: int = 0
    """The property of that name, 0 to 255; 0 if the message has none."""
    properties: MessageProperties = UNSET
    body_bytes: int = 0
    """Size of the whole body; 0 if `body` is the whole of it."""
    header_bytes: int = 0
    headers_cut: bool = False
    """True if the message has more headers than are read, or some that can't be."""
    settled: bool = False
    """True once it was acked; a batch that is handled again may contain such deliveries."""

    @cached_property
    def fallback_key(self) -> str:
        """A random key of this delivery, for a message without an id; it never changes."""
        return uuid.uuid4().hex

    @property
    def size(self) -> int:
        """Bytes of the body as it was published."""
        return self.body_bytes or len(self.body)

    @property
    def cut(self) -> bool:
        """True if `body` is only the beginning of the body."""
        return self.size > len(self.body)

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that this delivery holds."""
        return len(self.body) + self.header_bytes

    @property
    def returned(self) -> int:
        """How often it was delivered before and returned unsettled, as its quorum queue counts."""
        count = self.headers.get("x-delivery-count", 0)
        return count if isinstance(count, int) else 0


class Subscription:
    """A live consumer of one queue. It ends with `BrokerUnavailableError` and is not reused."""

    def __init__(self) -> None:
        self.cancel: Callable[[], Awaitable[object]] | None = None
        """Cancels the consumer at the broker; set once there is one."""
        self.is_stopped = False
        """True once `stop` was called: the broker need not know the consumer any more."""
        self._ready: asyncio.Queue[Delivery] = asyncio.Queue()
        self._set_aside: Delivery | None = None
        """The next delivery, if it did not fit into the last batch."""
        self._open: dict[Delivery, None] = {}
        """What is not settled yet, in the broker's order."""
        self._held = 0
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def batches(self, *, max_items: int) -> AsyncIterator[list[Delivery]]:
        """Yield the deliveries that are ready: at least one and at most `max_items`.

        Together they have at most `MAX_AT_A_TIME_BYTES`, unless one alone has more.
        """
        while True:
            batch = [await self._next()]
            room = MAX_AT_A_TIME_BYTES - batch[0].held_bytes
            while len(batch) < max_items and not self._ready.empty():
                one = self._ready.get_nowait()
                room -= one.held_bytes
                if room < 0:
                    self._set_aside = one
                    break
                batch.append(one)
            yield batch

    async def stop(self) -> None:
        """Have the broker deliver nothing more; what it has delivered can still be settled.

        Raises `BrokerUnavailableError`.
        """
        self.is_stopped = True
        if self.cancel is not None:
            with losses("The consumer could not be cancelled"):
                async with asyncio.timeout(SETTLE_TIMEOUT_S):
                    await self.cancel()

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledge deliveries, so that the broker removes them from the queue.

        The broker does not confirm it. If the connection closes within some milliseconds, a quorum
        queue may deliver the last messages again (about 1 of 100 on 3.10, even after a clean close
        of the channel). So every consumer must recognise repetitions. Raises
        `BrokerUnavailableError`; the broker then delivers them again.
        """
        given = dict.fromkeys(one for one in deliveries if not one.settled)
        with losses("The deliveries could not be settled"):
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                earliest = list(islice(self._open, len(given)))
                if len(given) > 1 and given.keys() == set(earliest):
                    await earliest[-1].raw.ack(multiple=True)  # one frame for all up to this one
                    self._settle(earliest)
                else:
                    for one in given:
                        await one.raw.ack()
                        self._settle([one])

    def _settle(self, deliveries: Iterable[Delivery]) -> None:
        for one in deliveries:
            one.settled = True
            self._held -= one.held_bytes
            self._open.pop(one, None)

    async def _next(self) -> Delivery:
        if not self._lost.done():
            if self._set_aside is not None:
                one, self._set_aside = self._set_aside, None
                return one
            if not self._ready.empty():
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
        """Queue one message that the client library has received."""
        if self._lost.done():
            return  # the broker takes it back with the others
        whole = len(message.body)
        if whole > MAX_BODY_BYTES:
            # The library keeps the message until it is settled, and the body with it.
            message.body = message.body[:KEPT_OF_LARGER_BYTES]  # type: ignore[misc]
        headers = message.headers
        known = headers if isinstance(headers, Headers) else Headers(headers)
        one = Delivery(
            body=message.body,
            body_bytes=whole if whole > MAX_BODY_BYTES else 0,
            message_id=message.message_id,
            type=message.type,
            routing_key=message.routing_key or "",
            redelivered=bool(message.redelivered),
            headers=known,
            header_bytes=known.wire_bytes,
            headers_cut=known.cut,
            user_id=message.user_id,
            priority=message.priority or 0,
            properties=MessageProperties(
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                reply_to=message.reply_to,
                correlation_id=message.correlation_id,
            ),
            raw=message,
        )
        self._open[one] = None
        self._held += one.held_bytes
        if self._held > MAX_HELD_BYTES:
            self._end_as_too_large()
            return
        self._ready.put_nowait(one)

    @property
    def is_lost(self) -> bool:
        """True once open deliveries can't be settled any more."""
        return self._lost.done()

    def on_lost(self, reason: str) -> None:
        """End this subscription; its iterator raises `BrokerUnavailableError`."""
        self._end(BrokerUnavailableError(reason))

    def _end_as_too_large(self) -> None:
        """End the subscription because it holds too many bytes, and drop all deliveries."""
        self._set_aside = None
        self._open.clear()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._end(TooManyBytesError())

    def _end(self, error: BrokerUnavailableError) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)
            # If no task iterates any more, asyncio would warn about an unread exception.
            self._lost.exception()
