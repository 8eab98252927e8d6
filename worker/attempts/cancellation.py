"""Ending one attempt from outside, wherever it waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import CancelReason


class AttemptCancelledError(ModelyardError):
    """An attempt was ended from outside."""

    def __init__(self, reason: CancelReason) -> None:
        self.reason = reason
        timed_out = reason == "timed_out"
        super().__init__(ErrorCode.TIMED_OUT if timed_out else ErrorCode.CANCELLED)


class Cancellation:
    """The handle by which one attempt is ended; it may be pulled at any time, and again."""

    def __init__(self) -> None:
        self.reason: CancelReason | None = None
        """Why the attempt is to end; None as long as nobody wants it to."""
        self._limit: asyncio.Timeout | None = None

    def ask(self, reason: CancelReason) -> None:
        """End what is in the scope now, or is about to enter it. The first reason counts."""
        self.reason = self.reason or reason
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())
            self._limit = None  # once is enough

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """Let what is inside be ended; raises `AttemptCancelledError` if it was.

        A cancellation of the task itself passes as what it is.
        """
        if self.reason is not None:
            raise AttemptCancelledError(self.reason)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limit = limit
                try:
                    yield
                finally:
                    self._limit = None
        except TimeoutError as error:
            if not limit.expired() or self.reason is None:
                raise
            raise AttemptCancelledError(self.reason) from error
