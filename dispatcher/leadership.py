"""Leadership: of all dispatchers one leads, for a term at a time; the others stand by.

A lease in MongoDB names the leader. Its times are chosen for this:

- `LEADER_LEASE_S`: after a leader was killed, a standby leads this and one poll later at most.
- `MARGIN_S`: a leader stops so much before the lease can end, so that its tasks have ended when
  another dispatcher begins.
- `RENEW_EVERY_S`: MongoDB may be away for the rest, 3.5 s at least, before a term ends. A step-down
  of a primary takes less. A primary that dies takes longer, and then the term ends although no
  other dispatcher can lead: the leader can't know whether MongoDB is away for all or for it alone.

A leader that was frozen, or whose calls are still under way, may write after its term. The guards
of its writes make that harmless (decision 0028); the lease keeps it rare.
"""

import asyncio
import random
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from modelyard.contract.errors import ErrorCode, ModelyardError, StoreUnavailableError
from modelyard.process.clock import uptime_s
from modelyard.process.crash_points import crash_point
from modelyard.process.tasks import TaskGroup, unending
from modelyard.store.leases import DISPATCHER, Leases

log = structlog.get_logger(__name__)

LEADER_LEASE_S = 6.0
"""Seconds for which a lease lasts by the database's clock, from its last renewal."""
RENEW_EVERY_S = 1.5
"""Seconds between two renewals."""
MARGIN_S = 1.0
"""Seconds before the earliest end of the lease at which the leader's term is over."""
RETRY_AFTER_S = 0.25
"""Seconds after which a renewal that failed is sent again."""
POLL_S = 1.0
"""Seconds, on average, between two attempts of a standby to lead."""


class NotLeadingError(ModelyardError):
    """This dispatcher's term is over."""

    def __init__(self, term: int) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, f"Term {term} is over.")


class Term:
    """One term of a leader. Once it is over it stays so."""

    def __init__(
        self, number: int, acquired_at: float, *, clock: Callable[[], float] = uptime_s
    ) -> None:
        """`acquired_at` is when the call that acquired the lease was sent, by `clock`."""
        self.number = number
        self._clock = clock
        self._ends_at = _end(acquired_at)

    @property
    def left_s(self) -> float:
        """Seconds until the term is over if the lease is not renewed; not above 0 once it is."""
        return self._ends_at - self._clock()

    def check(self) -> None:
        """Raise `NotLeadingError` if the term is over."""
        if self.left_s <= 0:
            self.end()
            raise NotLeadingError(self.number)

    def renewed(self, sent_at: float) -> None:
        """Extend the term: the lease was renewed by a call that was sent at `sent_at`."""
        if self.left_s > 0:
            self._ends_at = max(self._ends_at, _end(sent_at))

    def end(self) -> None:
        """End the term for good."""
        self._ends_at = float("-inf")


class Leadership:
    """One dispatcher's part in who leads."""

    def __init__(
        self,
        leases: Leases,
        *,
        notes: Mapping[str, str] | None = None,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        """Leave `notes` for other processes on how this dispatcher leads.

        `on_answer` is called whenever the database has answered: while standing by and leading.
        """
        self._leases = leases
        self._on_answer = on_answer
        self._notes = notes
        self._holder = uuid.uuid4().hex

    async def lead(self, work: Callable[[Term], Coroutine[Any, Any, None]]) -> None:
        """Stand by until this dispatcher leads; then do `work` until the term is over.

        `work` runs until it is cancelled, or until `Term.check` raises `NotLeadingError` in it.
        Any other error of it is raised, after the lease was released.
        """
        term = await self._next_term()
        crash_point("dispatcher.lease.after_acquire")
        with structlog.contextvars.bound_contextvars(term=term.number):
            log.info("dispatcher.leading")
            try:
                async with TaskGroup() as tasks:
                    for one in (self._renew(term), _until_over(term), work(term)):
                        tasks.create_task(unending(one))
            except* NotLeadingError:
                log.warning("dispatcher.term_over")
            finally:
                await self._release(term)

    async def _next_term(self) -> Term:
        """Stand by until this dispatcher leads."""
        standing_by = waiting = False
        while True:
            sent_at = uptime_s()
            try:
                number = await self._leases.acquire(
                    DISPATCHER, self._holder, seconds=LEADER_LEASE_S, notes=self._notes
                )
            except StoreUnavailableError as error:
                if not waiting:
                    log.warning("dispatcher.waiting", error=str(error))
                standing_by, waiting = False, True
            else:
                self._on_answer()
                if number is not None:
                    return Term(number, sent_at)
                if not standing_by:
                    log.info("dispatcher.standing_by")
                standing_by, waiting = True, False
            await asyncio.sleep(POLL_S * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, keeps no secret

    async def _renew(self, term: Term) -> None:
        """Renew the lease until the term is over; raises `NotLeadingError` then."""
        pause_s, failing = RENEW_EVERY_S, False
        while True:
            await asyncio.sleep(pause_s)
            term.check()
            sent_at = uptime_s()
            try:
                if not await self._leases.renew(
                    DISPATCHER, self._holder, term=term.number, seconds=LEADER_LEASE_S
                ):
                    term.end()
                term.check()
                term.renewed(sent_at)
                self._on_answer()
                pause_s, failing = RENEW_EVERY_S, False
            except StoreUnavailableError as error:
                if not failing:
                    left_s = round(max(term.left_s, 0.0), 1)
                    log.warning("lease.not_renewed", left_s=left_s, error=str(error))
                pause_s, failing = RETRY_AFTER_S, True

    async def _release(self, term: Term) -> None:
        """Let others lead at once; if MongoDB is away, the lease ends by itself."""
        term.end()
        try:
            await self._leases.release(DISPATCHER, self._holder, term=term.number)
        except StoreUnavailableError as error:
            log.warning("lease.not_released", error=str(error))


async def _until_over(term: Term) -> None:
    """Raise `NotLeadingError` once the term is over."""
    while True:
        term.check()
        await asyncio.sleep(min(term.left_s, RENEW_EVERY_S))


def _end(sent_at: float) -> float:
    return sent_at + LEADER_LEASE_S - MARGIN_S
