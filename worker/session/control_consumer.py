"""Consumes control messages: cancels, discards, requests for reports, the end of an incarnation.

They have a queue of their own, so they never wait behind commands. A message lives there for a few
seconds and is addressed to one incarnation; the dispatcher repeats it until it sees the effect.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from pydantic import ValidationError

from modelyard.broker import (
    Broker,
    Delivery,
    Subscription,
    TopologyMismatchError,
    consume_forever,
)
from modelyard.contract.messages import HostControl
from modelyard.contract.topology import control_queue
from worker.attempts.registry import AttemptRegistry
from worker.execution.discards import Discards
from worker.session.enrolment import EnrolmentClient
from worker.session.lease import Lease
from worker.session.reporter import Reporter

log = structlog.get_logger(__name__)

MAX_DELIVERIES = 64


class ControlConsumer:
    """Consumes the `HostControl` messages that are addressed to one incarnation."""

    def __init__(  # noqa: PLR0913 - what a word of control reaches
        self,
        *,
        broker: Broker,
        enrolment: EnrolmentClient,
        reporter: Reporter,
        registry: AttemptRegistry,
        discards: Discards,
        lease: Lease,
        host_id: str,
        incarnation: str,
    ) -> None:
        self._broker = broker
        self._enrolment = enrolment
        self._reporter = reporter
        self._registry = registry
        self._discards = discards
        self._lease = lease
        self._host_id = host_id
        self._incarnation = incarnation
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
            prepare=self._enrolment.say_hello,
        )

    @asynccontextmanager
    async def _subscribe(self) -> AsyncIterator[Subscription]:
        queue = control_queue(self._host_id)
        try:
            async with self._broker.subscribe(queue, prefetch=MAX_DELIVERIES) as subscription:
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
            if (word.host_id, word.incarnation) == (self._host_id, self._incarnation):
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
        for discard in word.discards:
            self._discards.begin(discard)
        if word.renounce:
            self._lease.renounce()
        if word.unusable is not None:
            raise TopologyMismatchError(word.unusable)
