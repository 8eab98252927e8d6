"""The clock that leases are measured with."""

import time


def uptime_s() -> float:
    """Return the machine's uptime; it advances while a process is stopped or the machine sleeps."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
