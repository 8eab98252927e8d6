"""Consumes control messages: cancels, discards, requests for reports, answers about large content.

They have a queue of their own, so they never wait behind commands. A message lives there for a few
seconds and is addressed to one incarnation; the dispatcher repeats it until it sees the effect.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from pydantic import ValidationError

from modelyard.broker import (
    Delivery,
    Subscription,
    TopologyMismatchError,
    consume_forever,
)
from modelyard.contract.messages import HostControl
from worker.attempts.registry import AttemptRegistry
from worker.execution.discards import Discards
from worker.session.host_channel import HostChannel
from worker.session.lease import Lease
from worker.session.reporter import Reporter
from worker.session.transfers import PiecewiseTransfer

log = structlog.get_logger(__name__)

MAX_DELIVERIES = 64


class ControlConsumer:
    """Consumes the `HostControl` messages that are addressed to one incarnation."""

    def __init__(
        self,
        channel: HostChannel,
        *,
        reporter: Reporter,
        registry: AttemptRegistry,
        discards: Discards,
        lease: Lease,
        transfers: PiecewiseTransfer,
    ) -> None:
        self._channel = channel
        self._reporter = reporter
        self._registry = registry
        self._discards = discards
        self._lease = lease
        self._transfers = transfers
        self.attached = False
        """True while the broker has this consumer registered."""

    async def run(self) -> None:
        """Consume until cancelled.

        Raises `TopologyMismatchError` if the dispatcher reports that this host can't be used.
        """
        await consume_forever(
            self._subscribe,
            self._handle,
            name="control",
            max_items=MAX_DELIVERIES,
            # The queue itself may be gone: ask a dispatcher to declare it again.
            prepare=self._channel.say_hello,
        )

    @asynccontextmanager
    async def _subscribe(self) -> AsyncIterator[Subscription]:
        try:
            async with self._channel.control(prefetch=MAX_DELIVERIES) as subscription:
                self.attached = True
                yield subscription
        finally:
            self.attached = False

    async def _handle(self, subscription: Subscription, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                word = HostControl.model_validate_json(delivery.body)
            except ValidationError as error:
                log.warning("control.malformed", errors=error.error_count())
                continue
            if self._channel.is_addressed_by(word.host_id, word.incarnation):
                self._obey(word)
        await subscription.ack(deliveries)

    def _obey(self, word: HostControl) -> None:
        for cancel in word.cancels:
            repeated = self._registry.cancel(cancel)
            if repeated is not None:
                self._reporter.put(repeated)
        for repeat in word.repeats:
            latest = self._registry.latest(repeat)
            if latest is not None:
                self._reporter.put(latest)
        for answer in word.transfers:
            self._transfers.answered(answer)
        for discard in word.discards:
            self._discards.begin(discard)
        if word.renounce:
            self._lease.renounce()
        if word.unusable is not None:
            raise TopologyMismatchError(word.unusable)
