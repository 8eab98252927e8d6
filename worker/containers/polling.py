"""Pauses for polling until a deadline: short ones at first, then longer ones."""

import asyncio
import time

FIRST_PAUSE_S = 0.01
MAX_PAUSE_S = 0.25
_GROWTH = 1.5


class GrowingPauses:
    """Pauses between two tries: 10 ms at first, growing to 250 ms, none beyond the deadline."""

    def __init__(self, seconds: float) -> None:
        """Set the deadline `seconds` from now."""
        self._ends_at = time.monotonic() + seconds
        self._next = FIRST_PAUSE_S

    async def pause(self) -> bool:
        """Sleep until the next try; return false at once if the deadline has passed.

        The last pause ends at the deadline, so the last try comes then.
        """
        left = self._ends_at - time.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(min(self._next, left))
        self._next = min(self._next * _GROWTH, MAX_PAUSE_S)
        return True
