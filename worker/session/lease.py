"""How long this worker may believe that its host is its own.

The dispatcher gives a host up `LOST_AFTER_S` after the last sign of life that it has recorded, and
what may run elsewhere then does. A worker can't know when that was; it knows when it *sent* the
last one that was confirmed, which is earlier, and gives itself up before that time is over. No
clocks of two machines are compared.
"""

import asyncio
import time
from collections.abc import Callable

from modelyard.contract.topology import LOST_AFTER_S

FENCE_S = LOST_AFTER_S * 0.8
"""Seconds without a renewal after which a worker gives itself up.

A loop that was blocked for 40 s right before a beat still has some seconds to send it, and what
must not outlive the lease can be ended before the dispatcher places it anew.
"""
_POLL_S = 1.0


def uptime_s() -> float:
    """Return seconds that also pass while the process is stopped or the machine is asleep."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Lease:
    """The lease of one incarnation. Once it is lost it stays lost."""

    def __init__(
        self,
        *,
        seconds: float = FENCE_S,
        clock: Callable[[], float] = uptime_s,
        on_renewal: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Prepare one that begins with its first renewal.

        `on_renewal` is called at each, with the time from which it counts.
        """
        self._seconds = seconds
        self._on_renewal = on_renewal
        self._ends_at: float | None = None
        self._lost = False
        self.clock = clock

    @property
    def lost(self) -> bool:
        """True once it was not renewed in time."""
        if self._ends_at is not None and self.clock() >= self._ends_at:
            self._lost = True
        return self._lost

    def renew(self, sent_at: float) -> None:
        """Note that a sign of life was confirmed, which was sent at `sent_at` or later."""
        if not self.lost:
            self._ends_at = max(self._ends_at or 0.0, sent_at + self._seconds)
            self._on_renewal(sent_at)

    def renounce(self) -> None:
        """Lose it at once: the dispatcher has given this incarnation up."""
        self._lost = True

    async def until_lost(self) -> None:
        """Return once it is lost."""
        while not self.lost:
            left = _POLL_S if self._ends_at is None else self._ends_at - self.clock()
            await asyncio.sleep(min(max(left, 0.01), _POLL_S))

    async def held(self) -> None:
        """Return at once while it is held; never if it is lost, for its incarnation is ended then.

        Whoever was frozen stands here when it thaws, and does nothing more.
        """
        if self.lost:
            await asyncio.Event().wait()
