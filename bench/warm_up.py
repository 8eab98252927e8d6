"""The warm-up of a measurement, which also says how much work a window of some seconds needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.measuring import Section

FIRST = 500
"""Operations of the first run, which is cold: connections, pools and caches are still made."""
MOST_RUNS = 3
"""Runs after the first one."""
_LONGER = 1.1
"""A run is sized for so many times the seconds that it needs, as its rate is only about known."""


async def warm_rate(measure: Callable[[int], Awaitable[Section]], seconds: float) -> float:
    """Warm up one kind of measurement; return the operations per second of its last run.

    `measure` does so many operations. The rate of the first run says nothing but how large the
    second one is. Each further run is sized by the one before, until one has taken `seconds`; after
    `MOST_RUNS` of them the last one counts, however short it was.
    """
    rate = (await measure(FIRST)).rate
    for _ in range(MOST_RUNS):
        section = await measure(math.ceil(rate * seconds * _LONGER))
        rate = section.rate
        if section.seconds >= seconds:
            break
    return rate
