"""The worker's lease on its host.

`LOST_AFTER_S` after the last heartbeat that it recorded, the dispatcher declares a host lost and
lets other hosts run its jobs. The worker does not know when the dispatcher recorded a heartbeat. It
knows when it *sent* the last confirmed one, which is earlier, and its lease ends before
`LOST_AFTER_S` have passed from then. So no decision compares the clocks of two machines.
"""

import asyncio
from collections.abc import Callable

from modelyard.contract.topology import HEARTBEAT_INTERVAL_S, LOST_AFTER_S
from modelyard.process.clock import uptime_s

WORKER_LEASE_S = LOST_AFTER_S * 0.8
"""Seconds without a renewal after which a worker loses its lease.

An event loop that was blocked for 40 s right before a heartbeat still has some seconds to send it.
Containers that must not outlive the lease can be stopped before the dispatcher places their jobs on
another host.
"""
_POLL_S = 1.0


class Lease:
    """The lease of one incarnation. A lost lease stays lost."""

    def __init__(
        self,
        *,
        seconds: float = WORKER_LEASE_S,
        renewal_interval_s: float = HEARTBEAT_INTERVAL_S,
        clock: Callable[[], float] = uptime_s,
        on_renewal: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Make a lease that begins with its first renewal.

        A heartbeat is to renew it every `renewal_interval_s` seconds.
        Each renewal calls `on_renewal` with the time, by `clock`, from which the lease counts.
        """
        self._seconds = seconds
        self.renewal_interval_s = renewal_interval_s
        self._on_renewal = on_renewal
        self._ends_at: float | None = None
        self._lost = False
        self.clock = clock

    @property
    def lost(self) -> bool:
        """True once the lease was not renewed in time, or was renounced."""
        if self._ends_at is not None and self.clock() >= self._ends_at:
            self._lost = True
        return self._lost

    @property
    def left_s(self) -> float | None:
        """Seconds until it is lost if it is not renewed; None before its first renewal."""
        return None if self._ends_at is None else max(0.0, self._ends_at - self.clock())

    def renew(self, sent_at: float) -> None:
        """Extend the lease: the broker has confirmed a message, sent at `sent_at` or later."""
        if not self.lost:
            self._ends_at = max(self._ends_at or 0.0, sent_at + self._seconds)
            self._on_renewal(sent_at)

    def renounce(self) -> None:
        """Lose the lease at once: the dispatcher no longer counts on this incarnation."""
        self._lost = True

    async def until_lost(self) -> None:
        """Return once the lease is lost."""
        while not self.lost:
            left = _POLL_S if self._ends_at is None else self._ends_at - self.clock()
            await asyncio.sleep(min(max(left, 0.01), _POLL_S))

    async def held(self) -> None:
        """Return at once while the lease is held; never return once it is lost.

        A process that was frozen past its lease stops here when it continues, and has no further
        effect: the end of the incarnation cancels the waiting task.
        """
        if self.lost:
            await asyncio.Event().wait()
