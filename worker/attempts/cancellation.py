"""Cancelling one attempt from outside, at whatever point it waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import CancelReason


class AttemptCancelledError(ModelyardError):
    """The dispatcher cancelled the attempt, or ended it because its time was over."""

    def __init__(self, reason: CancelReason) -> None:
        self.reason = reason
        timed_out = reason == "timed_out"
        super().__init__(ErrorCode.TIMED_OUT if timed_out else ErrorCode.CANCELLED)


class Cancellation:
    """The cancellation of one attempt; it can be requested at any time, and repeatedly."""

    def __init__(self) -> None:
        self.reason: CancelReason | None = None
        """Why the attempt was cancelled; None if it was not."""
        self._limit: asyncio.Timeout | None = None

    def request(self, reason: CancelReason) -> None:
        """Cancel the scope that is active now, or the next one. The first reason is kept."""
        self.reason = self.reason or reason
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())
            self._limit = None  # a scope is cancelled only once

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """Make the code inside cancellable; raises `AttemptCancelledError` if it was cancelled.

        A cancellation of the asyncio task itself passes through as `CancelledError`.
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
