"""A live consumer of one queue, and what it delivers."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aio_pika.abc import AbstractIncomingMessage

from modelyard.broker.losses import losses
from modelyard.contract.errors import BrokerUnavailableError

SETTLE_TIMEOUT_S = 10.0


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
    def returned(self) -> int:
        """How often it came before and went back unsettled, as its quorum queue has counted."""
        count = self.headers.get("x-delivery-count", 0)
        return count if isinstance(count, int) else 0

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
        with losses("The deliveries could not be settled"):
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
