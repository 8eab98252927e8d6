"""Consuming for ever: a new subscription whenever one ends; after losses one message at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import structlog

from modelyard.broker.connection import one_by_one
from modelyard.broker.connection_loss import ConsumingFailedError, backoff_s
from modelyard.broker.subscription import Delivery, Subscription, TooManyBytesError
from modelyard.contract.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

STEADY_S = 10.0
"""A subscription that lasted so long ends a streak of losses, even if no message came."""
LOSSES_BEFORE_SINGLE = 2
RETURNS_BEFORE_SINGLE = 2
"""A message that was returned so often may be what crashes its consumers."""


async def consume_forever(
    subscribe: Callable[[], AbstractAsyncContextManager[Subscription]],
    handle: Callable[[Subscription, list[Delivery]], Awaitable[None]],
    *,
    name: str,
    max_items: int,
    prepare: Callable[[], Awaitable[None]] | None = None,
    first_alone: bool = False,
) -> None:
    """Hand every batch to `handle`, which settles it; make a new subscription whenever one ends.

    If `handle` raises `BrokerUnavailableError`, the subscription ends too, and the broker delivers
    again what was not settled. `prepare` is awaited before every subscription but the first,
    because the queue itself may have been deleted. One line is logged for each streak of losses; a
    streak ends when a batch was handled. Runs until cancelled.

    The broker counts each delivery that a loss leaves unsettled against the delivery limit. One of
    these messages may be what crashes the connection or the whole process. So messages come one by
    one after two subscriptions in a row that handled nothing, or when a message has been returned
    twice, until about as many were handled as might have been prefetched. With `first_alone` the
    very first message comes alone too: if it crashes the process at each start, no other message
    is counted with it.
    """
    losses = _Losses(name, alone_after_loss=2 * max_items, alone_at_start=int(first_alone))
    subscribed_before = False
    while True:
        try:
            if subscribed_before and prepare is not None:
                await prepare()
            subscribed_before = True
            one_by_one.set(losses.one_by_one_now)
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
    """Handle batches until the subscription is lost, or the prefetch has to change."""
    started_one_by_one = losses.one_by_one_now
    async for batch in subscription.batches(max_items=max_items):
        losses.check_returned(batch)
        if losses.one_by_one_now and not started_one_by_one:
            return  # the broker takes them back and delivers them one by one
        last = started_one_by_one and losses.one_by_one_until(len(batch))
        if last:
            # Once it is acked the broker would deliver the next message, which would go back with
            # the end of this subscription. What goes back a second time comes behind all that
            # went back with it the first time (seen on 3.10), so it would lose its place.
            await subscription.stop()
        await handle(subscription, batch)
        losses.handled(len(batch))
        if last:
            return


class _Losses:
    """Counts the losses of one consumer, and decides whether messages come one by one."""

    def __init__(self, name: str, *, alone_after_loss: int, alone_at_start: int) -> None:
        """`alone_after_loss` is how many deliveries come one by one after losses.

        `alone_at_start` is how many do so at the beginning.
        """
        self._name = name
        self._alone_after_loss = alone_after_loss
        self._alone_left = alone_at_start
        self._unhandled = 0
        self._subscribed = False
        self.in_a_row = 0

    @property
    def one_by_one_now(self) -> bool:
        """True while deliveries are to come one by one."""
        return self._alone_left > 0

    def one_by_one_until(self, deliveries: int) -> bool:
        """Tell whether deliveries need not come one by one once so many more are handled."""
        return self._alone_left <= deliveries

    def add(self, error: BrokerUnavailableError) -> None:
        """Count a subscription that ended or could not be made."""
        self.in_a_row += 1
        if self.in_a_row == 1:
            log.warning("consumer.lost", consumer=self._name, error=str(error))
        # Without a connection the broker has delivered nothing, so it counts no delivery.
        self._unhandled += self._subscribed or isinstance(error, ConsumingFailedError)
        if self._unhandled >= LOSSES_BEFORE_SINGLE or isinstance(error, TooManyBytesError):
            self._alone_left = self._alone_after_loss
        self._subscribed = False

    def check_returned(self, batch: list[Delivery]) -> None:
        """Ask for single deliveries if one of a batch has been returned too often."""
        if any(delivery.returned >= RETURNS_BEFORE_SINGLE for delivery in batch):
            self._alone_left = self._alone_after_loss

    def handled(self, deliveries: int) -> None:
        """Count handled deliveries, which ends a streak of losses."""
        self._alone_left = max(0, self._alone_left - deliveries)
        self._end_streak()

    @contextmanager
    def while_subscribed(self) -> Iterator[None]:
        """Mark the consumer as subscribed; after `STEADY_S` seconds the streak of losses ends."""
        self._subscribed = True
        steady = asyncio.get_running_loop().call_later(STEADY_S, self._end_streak)
        try:
            yield
        finally:
            steady.cancel()

    def _end_streak(self) -> None:
        if self.in_a_row:
            log.info("consumer.back", consumer=self._name, after_failures=self.in_a_row)
        self.in_a_row = self._unhandled = 0
