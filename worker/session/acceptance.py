"""What lies between the delivery of commands and its ack.

Work begins at once. A delivery is acked when the broker has confirmed a report of each attempt in
it: from then on the dispatcher's record and this process carry the work. Until then the journal
does: if this process dies, the next worker reports what had begun. A host that has no journal
reports each attempt, and waits for the confirm, before the attempt begins.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence

from modelyard.broker import Delivery, Subscription
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.messages import OperationReport
from modelyard.process.crash_points import crash_point
from worker.attempts.attempt import Attempt
from worker.attempts.journal import AttemptJournal, AttemptKey, key_of
from worker.attempts.registry import AttemptRegistry
from worker.session.reporter import Reporter


class _Held:
    """One delivery, and its attempts of which no report is confirmed yet."""

    def __init__(
        self, subscription: Subscription, delivery: Delivery, keys: Collection[AttemptKey]
    ) -> None:
        self.subscription = subscription
        self.delivery = delivery
        self.keys = set(keys)


class Acceptance:
    """The accepted commands of one incarnation of which no report is confirmed yet."""

    def __init__(
        self, reporter: Reporter, journal: AttemptJournal, registry: AttemptRegistry
    ) -> None:
        """Learn from `reporter` what the broker has confirmed, for `journal` and `registry` too."""
        self._reporter = reporter
        self._registry = registry
        self._journal = journal
        self._by_attempt: dict[AttemptKey, list[_Held]] = {}
        self._to_ack: list[_Held] = []
        self._ack_waiting = asyncio.Event()
        reporter.on_confirmed = self._confirmed
        registry.on_silenced = self._silenced

    async def run(self) -> None:
        """Ack deliveries until cancelled."""
        while True:
            await self._ack_waiting.wait()
            self._ack_waiting.clear()
            held, self._to_ack = self._to_ack, []
            for subscription in dict.fromkeys(one.subscription for one in held):
                crash_point("worker.before_ack")
                try:
                    await subscription.ack(
                        [one.delivery for one in held if one.subscription is subscription]
                    )
                except BrokerUnavailableError as error:
                    # They come again, and the registry recognises their commands.
                    subscription.on_lost(error.message)

    def hold(
        self, subscription: Subscription, delivery: Delivery, reports: Iterable[AttemptKey]
    ) -> None:
        """Ack a delivery once a report of each of these attempts is confirmed."""
        held = _Held(subscription, delivery, set(reports))
        for key in held.keys:
            self._by_attempt.setdefault(key, []).append(held)
        self._ack_if_due(held)

    async def secure(self, attempts: Sequence[Attempt]) -> None:
        """Return once no crash can hide that these attempts have begun; then they may begin."""
        if not self._journal.record([attempt.command for attempt in attempts]):
            await self._reporter.deliver([attempt.latest for attempt in attempts])

    def repeat(self, report: OperationReport) -> None:
        """Publish a report again, or that a command was refused."""
        self._reporter.put(report)

    def _silenced(self, attempt: Attempt) -> None:
        """Wait no longer for a report of an attempt that reports nothing more.

        It stays in the journal: whoever silenced it may die before the record says so.
        """
        self._settle(key_of(attempt.command))

    def _confirmed(self, reports: Sequence[OperationReport]) -> None:
        self._journal.reported(reports)
        self._registry.confirmed(reports)
        for report in reports:
            self._settle(key_of(report))

    def _settle(self, key: AttemptKey) -> None:
        for held in self._by_attempt.pop(key, ()):
            held.keys.discard(key)
            self._ack_if_due(held)

    def _ack_if_due(self, held: _Held) -> None:
        if not held.keys:
            self._to_ack.append(held)
            self._ack_waiting.set()
