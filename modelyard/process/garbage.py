"""How often a service looks for reference cycles."""

import gc

GC_THRESHOLDS = (10_000, 50, 100)
"""A request or an operation makes hundreds of objects and nearly no cycles. With Python's own
thresholds the search for cycles took about a fifth of a gateway's processor time."""


def collect_rarely() -> None:
    """Look for cycles less often, and not at all among what exists now; call it once at start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
