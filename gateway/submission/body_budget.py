"""A memory budget for large bodies: a body that does not fit waits, or is refused for now.

Small bodies do not count: each is smaller than the memory that a connection needs anyway.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from modelyard.contract.errors import ErrorCode, ModelyardError

log = structlog.get_logger(__name__)

BUDGET_BYTES = 64 << 20
"""Most bytes of large bodies that one gateway holds at once: eight batches of the largest size.
While a body is made durable, memory holds it up to four times: as received, and as text for each
store."""
WAIT_S = 5.0
"""How long a body waits for its share; then its client is asked to try again."""
MAX_WAITING = 64
"""Most bodies that may wait for their share; any further one is refused at once."""
LOG_EVERY_S = 10.0
"""Least seconds between two log lines about refused bodies."""


class BudgetSpentError(ModelyardError):
    """The budget has no room for another large body now."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.UNAVAILABLE,
            "Too many large bodies are being handled; send the request again in a moment.",
        )


class BodyBudget:
    """The bytes that large bodies may use at once; requests for shares are served in order."""

    def __init__(self, total: int = BUDGET_BYTES) -> None:
        self._free = self._total = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._refused = 0
        self._logged_at = float("-inf")

    @property
    def used(self) -> int:
        """The bytes that are in use now."""
        return self._total - self._free

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Yield an empty share that may grow; return all of it to the budget at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._return(share.held)

    async def take(self, amount: int) -> None:
        """Take bytes out of the budget, or wait for them; raises `BudgetSpentError`."""
        if not self._waiting and amount <= self._free:
            self._free -= amount
            return
        if len(self._waiting) >= MAX_WAITING or amount > self._total:
            raise self._refusal()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (amount, turn)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(WAIT_S):
                await turn
        except BaseException as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._admit()  # a smaller one behind it may fit
            else:
                self._return(amount)  # it got its bytes in the moment in which it gave up
            if isinstance(error, TimeoutError):
                raise self._refusal() from error
            raise

    def _refusal(self) -> BudgetSpentError:
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            log.warning(
                "bodies.refused", count=self._refused, held=self.used, waiting=len(self._waiting)
            )
            self._refused, self._logged_at = 0, now
        return BudgetSpentError()

    def _return(self, amount: int) -> None:
        self._free += amount
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            amount, turn = self._waiting.popleft()
            self._free -= amount
            if not turn.done():
                turn.set_result(None)


class Share:
    """The part of the budget that one body uses."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.held = 0

    async def grow_to(self, size: int) -> None:
        """Grow to `size` bytes; raises `BudgetSpentError`, which leaves the share unchanged."""
        if size > self.held:
            await self._budget.take(size - self.held)
            self.held = size
