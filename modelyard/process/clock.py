"""The clock that leases are measured with, and what is known of another machine's clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

DRIFT = 1e-4
"""Seconds by which two clocks may move apart each second."""
RESOLUTION_S = 0.001
"""The other clock shows whole milliseconds."""


def uptime_s() -> float:
    """Return the machine's uptime; it advances while a process is stopped or the machine sleeps."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True, slots=True)
class _Reading:
    time: datetime
    at: float
    error_s: float

    def error_at(self, at: float) -> float:
        return self.error_s + (at - self.at) * DRIFT

    def time_at(self, at: float) -> datetime:
        return self.time + timedelta(seconds=at - self.at)


class RemoteClock:
    """Another machine's clock, as far as answers have told it.

    An answer shows a moment between its question and its arrival, so the time is uncertain by half
    of what it took (Cristian's algorithm, 1989). The most certain answer counts, until its drift
    makes a later one more certain, or a later one contradicts it: the clock was set.
    """

    def __init__(self, *, clock: Callable[[], float] = uptime_s) -> None:
        self._clock = clock
        self._known: _Reading | None = None
        self._heard_at = float("-inf")
        self._latest: datetime | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the last answer; infinite if there was none."""
        return self._clock() - self._heard_at

    def hear(self, time: datetime, *, asked_at: float, answered_at: float) -> None:
        """Take an answer in; both moments are by this machine's clock."""
        fresh = _Reading(time, (asked_at + answered_at) / 2, (answered_at - asked_at) / 2)
        self._heard_at = answered_at
        if self._known is not None:
            known_error = self._known.error_at(answered_at)
            apart = abs(fresh.time_at(answered_at) - self._known.time_at(answered_at))
            contradicts = apart.total_seconds() > known_error + fresh.error_s + RESOLUTION_S
            if contradicts:
                self._latest = None
            elif known_error <= fresh.error_s:
                return
        self._known = fresh

    def now(self) -> datetime:
        """Return the time in whole milliseconds; it does not go back unless the clock was set.

        Raises `LookupError` if there was no answer.
        """
        if self._known is None:
            raise LookupError("The clock is not known.")
        now = self._known.time_at(self._clock())
        now = now.replace(microsecond=now.microsecond // 1_000 * 1_000)
        self._latest = now if self._latest is None else max(now, self._latest)
        return self._latest
