"""A budget of memory for large bodies: one that does not fit in waits, or is refused for now.

Small bodies pass freely: each is smaller than what a connection takes anyway.
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
"""Of large bodies that one gateway holds at once: eight batches of the largest size. While a body
is made durable it stands there up to four times, as it came and as text for either store."""
WAIT_S = 5.0
"""How long a body waits for room; then its client is asked to come back."""
MAX_WAITING = 64
"""Bodies that wait for room; the next one is refused at once."""
TELL_EVERY_S = 10.0
"""How often the log says that bodies are refused."""


class BudgetSpentError(ModelyardError):
    """There is no room for one more large body now."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.UNAVAILABLE, "Too many large bodies are in work; send it again in a moment."
        )


class BodyBudget:
    """Bytes that bodies may take at once, given out in the order in which they are asked for."""

    def __init__(self, total: int = BUDGET_BYTES) -> None:
        self._free = self._total = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._refused = 0
        self._told_at = float("-inf")

    @property
    def used(self) -> int:
        """Bytes that are given out now."""
        return self._total - self._free

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Give an empty share; whatever it has grown to comes back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._give(share.held)

    async def take(self, amount: int) -> None:
        """Take so many bytes out of the budget; raises `BudgetSpentError`."""
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
                self._admit()  # it may have stood in the way of a smaller one
            else:
                self._give(amount)  # its turn came in the very moment in which it left
            if isinstance(error, TimeoutError):
                raise self._refusal() from error
            raise

    def _refusal(self) -> BudgetSpentError:
        self._refused += 1
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            log.warning(
                "bodies.refused", count=self._refused, held=self.used, waiting=len(self._waiting)
            )
            self._refused, self._told_at = 0, now
        return BudgetSpentError()

    def _give(self, amount: int) -> None:
        self._free += amount
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            amount, turn = self._waiting.popleft()
            self._free -= amount
            if not turn.done():
                turn.set_result(None)


class Share:
    """What one body has of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.held = 0

    async def grow_to(self, size: int) -> None:
        """Make it so large; raises `BudgetSpentError`, and then it is as large as it was."""
        if size > self.held:
            await self._budget.take(size - self.held)
            self.held = size
