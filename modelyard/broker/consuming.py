"""Consuming for ever: a new subscription whenever one ends, with care after losses."""

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
"""A subscription that held for so long ends a streak of losses, also when nothing came."""
LOSSES_BEFORE_CARE = 2
RETURNS_BEFORE_CARE = 2
"""A message that came back so often may be what its consumers die of."""


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

    `handle` raising `BrokerUnavailableError` ends the subscription too: what it had not settled
    is delivered again. `prepare` is awaited before every subscription but the first: the queue
    itself may be what went away. One line is logged for each streak of losses, which ends when a
    batch was handled. Runs until cancelled.

    Each delivery that a loss leaves unsettled counts against its limit, and one of them may be
    what the connection, or the whole process, dies of. So after two subscriptions in a row that
    handled nothing, or when one has come back twice already, they come one by one, until about as
    many were handled as might have been prefetched. With `first_alone` the very first one comes
    alone too: what a process dies of at its every start then takes no neighbour with it.
    """
    losses = _Losses(name, care_for=2 * max_items, care_first=int(first_alone))
    subscribed_before = False
    while True:
        try:
            if subscribed_before and prepare is not None:
                await prepare()
            subscribed_before = True
            one_by_one.set(losses.careful)
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
    """Handle batches until the subscription is lost, or care begins or is over."""
    careful = losses.careful
    async for batch in subscription.batches(max_items=max_items):
        losses.came(batch)
        if losses.careful and not careful:
            return  # they all go back, and come one by one
        await handle(subscription, batch)
        losses.handled(len(batch))
        if careful and not losses.careful:
            return


class _Losses:
    """What one consumer has lost in a row, and how careful it has become."""

    def __init__(self, name: str, *, care_for: int, care_first: int) -> None:
        """`care_for` is how many deliveries come one by one, once it is careful.

        `care_first` is how many do so at the beginning.
        """
        self._name = name
        self._care_for = care_for
        self._care_left = care_first
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
        if self._unhandled >= LOSSES_BEFORE_CARE or isinstance(error, TooManyBytesError):
            self._care_left = self._care_for
        self._subscribed = False

    def came(self, batch: list[Delivery]) -> None:
        """Become careful if one of a batch has come back too often to be like any other."""
        if any(delivery.returned >= RETURNS_BEFORE_CARE for delivery in batch):
            self._care_left = self._care_for

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
