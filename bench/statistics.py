"""Percentiles, medians and spreads; no I/O."""

import math
from collections.abc import Sequence
from statistics import median


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` percent of all do not exceed."""
    ordered = sorted(values)
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]


def with_spread(values: Sequence[float], unit: str = "", digits: int = 0) -> str:
    """Return the median and, of several values, the least and the greatest: `240 (230-260)/s`."""
    middle = f"{median(values):,.{digits}f}"
    if len(values) == 1:
        return middle + unit
    return f"{middle} ({min(values):,.{digits}f}-{max(values):,.{digits}f}){unit}"
