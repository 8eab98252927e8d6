"""Whether this machine's clock agrees with another one."""

from datetime import datetime

from modelyard.doctor.diagnosis import Diagnosis, ok, warning

ABOUT = "clock"
MOST_OFFSET_S = 1.0


def check_offset(theirs: datetime, before: datetime, after: datetime, whose: str) -> Diagnosis:
    """Compare a clock, asked between two moments of ours, with ours.

    Nothing that Modelyard decides depends on it: it goes by the database's clock. But lines of logs
    of different machines can't be put in order.
    """
    middle = before + (after - before) / 2
    offset_s = (theirs - middle).total_seconds()
    uncertain_s = (after - before).total_seconds() / 2
    seen = f"{offset_s:+.3f} s from {whose} (±{uncertain_s:.3f} s)"
    if abs(offset_s) - uncertain_s > MOST_OFFSET_S:
        return warning(
            ABOUT,
            seen,
            "Synchronise the clocks of both machines, for example with chrony. Modelyard's "
            "decisions do not depend on them, but the times in logs do.",
        )
    return ok(ABOUT, seen)
