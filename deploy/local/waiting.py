"""The only loop that sleeps while it waits: a probe with a deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 0.05


def wait_until(probe: Callable[[], bool], seconds: float, what: str) -> None:
    """Call `probe` about every 50 ms until it is true.

    Raises TimeoutError, naming `what`, when `seconds` have passed. Exceptions of the probe pass
    through at once, so that a probe can end the wait.
    """
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() >= deadline:
            message = f"{what}: not within {seconds:g} s"
            raise TimeoutError(message)
        time.sleep(INTERVAL_S)
