"""Looking again and again until a deadline: often at first, then less."""

import asyncio
import time

FIRST_S = 0.01
MOST_S = 0.25
_GROWTH = 1.5


class GrowingPauses:
    """The pauses between two looks: 10 ms at first, growing to 250 ms, none past the deadline."""

    def __init__(self, seconds: float) -> None:
        """Set the deadline `seconds` from now."""
        self._ends_at = time.monotonic() + seconds
        self._next = FIRST_S

    async def again(self) -> bool:
        """Sleep until the next look; false if the last one is over.

        The last pause ends at the deadline, so that there is a look then.
        """
        left = self._ends_at - time.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(min(self._next, left))
        self._next = min(self._next * _GROWTH, MOST_S)
        return True
