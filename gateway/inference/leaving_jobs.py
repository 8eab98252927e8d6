"""Jobs that are about to leave memory, or to end, because this gateway accepts a request for that.

The record says so a moment later. An inference that came behind such a request would be REJECTED.
"""

import itertools
import time
from collections.abc import Callable

LEAVING_S = 1.0
"""How long a job is marked; by then each reading of the record says so."""
MAX_LEAVING = 10_000


class LeavingJobs:
    """The jobs that are marked, for `LEAVING_S` seconds each."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def mark(self, job_id: str) -> None:
        """Mark a job, before the request is accepted that takes its model out of memory."""
        now = self._clock()
        self._until.pop(job_id, None)
        self._until[job_id] = now + LEAVING_S
        for oldest in list(itertools.islice(self._until, 2)):
            if self._until[oldest] <= now or len(self._until) > MAX_LEAVING:
                del self._until[oldest]

    def __contains__(self, job_id: object) -> bool:
        return isinstance(job_id, str) and self._until.get(job_id, 0.0) > self._clock()

    def __len__(self) -> int:
        return len(self._until)
