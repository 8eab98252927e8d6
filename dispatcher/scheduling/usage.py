"""When each job's model was used last, and how often lately: in memory, for the leading dispatcher.

A dispatcher that has just begun to lead knows nothing. Whoever asks for a job that is not known
here reads its last use from the record, and notes it.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

HALF_LIFE_S = 600.0
"""Seconds after which a use counts half."""
MAX_JOBS = 20_000


@dataclass(slots=True)
class _Used:
    at: float
    count: float
    """Uses, each halved every `HALF_LIFE_S` since."""


class Usage:
    """A bounded number of jobs, the latest used."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: OrderedDict[str, _Used] = OrderedDict()

    def note(self, job_id: str, *, ago_s: float = 0.0) -> None:
        """Note that an operation of this job has ended, so many seconds ago."""
        at = self._clock() - ago_s
        before = self._used.get(job_id)
        count = 1.0
        if before is not None:
            at = max(at, before.at)
            count += before.count * _left(at - before.at)
        self._used[job_id] = _Used(at, count)
        self._used.move_to_end(job_id)
        while len(self._used) > MAX_JOBS:
            self._used.popitem(last=False)

    def busy(self, job_id: str) -> None:
        """Note that the job has operations now, which counts as no further use."""
        used = self._used.get(job_id)
        if used is None:
            self.note(job_id)
        else:
            now = self._clock()
            used.count *= _left(now - used.at)
            used.at = now

    def idle_s(self, job_id: str) -> float | None:
        """Return the seconds since the last use; None if it is not known."""
        used = self._used.get(job_id)
        return None if used is None else self._clock() - used.at

    def rate(self, job_id: str) -> float:
        """Return about how often the job was used lately, per second."""
        used = self._used.get(job_id)
        if used is None:
            return 0.0
        return used.count * _left(self._clock() - used.at) * math.log(2) / HALF_LIFE_S


def _left(seconds: float) -> float:
    return float(0.5 ** (seconds / HALF_LIFE_S))
