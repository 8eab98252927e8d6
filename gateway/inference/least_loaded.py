"""Which of several jobs takes the next inference: a pure rule over one reading of them.

A job's load is its open operations divided by how many inferences it may run at the same time. What
was chosen since the reading counts too, so the choices spread evenly however many there are.

Jobs whose model is in memory go first. The next copy is loaded only if all that are loaded or
being loaded have a backlog: a load takes long, and may take the place of another model.
"""

import heapq
import itertools
import random
from collections.abc import Container, Iterable

from modelyard.store.queries.serving_jobs import MOST_COUNTED, ServingJob, Stage

BACKLOG_ROUNDS = 4
"""A job has a backlog if it has this many times as many open operations as may run together."""


def has_backlog(open_operations: int, max_concurrency: int) -> bool:
    """Tell whether so much waits for a job that it is worth loading another copy."""
    return open_operations >= min(BACKLOG_ROUNDS * max_concurrency, MOST_COUNTED)


class _ByLoad:
    """Jobs, the least loaded first.

    Equals are in an order of chance: several gateways that read the same must not choose the same.
    """

    def __init__(self, jobs: Iterable[ServingJob]) -> None:
        shuffled = list(jobs)
        random.shuffle(shuffled)
        self._places = itertools.count()
        self._heap: list[tuple[float, int, int, ServingJob]] = []
        """Load, place among equals, open operations, job."""
        for job in shuffled:
            self.add(job)

    @property
    def load(self) -> float:
        """The load of the first; infinite if there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    @property
    def backlogged(self) -> bool:
        """True if there is none without a backlog."""
        return not self._heap or has_backlog(self._heap[0][2], self._heap[0][3].max_concurrency)

    def add(self, job: ServingJob) -> None:
        """Put a job among the others, with the load of the reading."""
        entry = (job.open / job.max_concurrency, next(self._places), job.open, job)
        heapq.heappush(self._heap, entry)

    def take(self) -> str:
        """Return the first, which has one open operation more from now on."""
        _, place, open_operations, job = self._heap[0]
        load = (open_operations + 1) / job.max_concurrency
        heapq.heapreplace(self._heap, (load, place, open_operations + 1, job))
        return job.job_id

    def drop(self, avoided: Container[str]) -> list[ServingJob]:
        """Take out the first ones as long as they are avoided, and return them."""
        dropped: list[ServingJob] = []
        while self._heap and self._heap[0][3].job_id in avoided:
            dropped.append(heapq.heappop(self._heap)[3])
        return dropped


class LeastLoaded:
    """The jobs of one reading, and what they were given since."""

    def __init__(self, jobs: Iterable[ServingJob]) -> None:
        known = list(jobs)
        resident = [one for one in known if one.stage is Stage.RESIDENT]
        # By the reading alone: a fast model has ended by now what it was given since.
        self._resident_keep_up = any(
            not has_backlog(one.open, one.max_concurrency) for one in resident
        )
        self._resident = _ByLoad(resident)
        self._loading = _ByLoad(one for one in known if one.stage is Stage.LOADING)
        self._unloaded = [one for one in reversed(known) if one.stage is Stage.UNLOADED]
        """Taken from the end, in the order of the reading: all gateways load the same one."""
        self._avoided = _ByLoad([])

    def next_job(self, avoid: Container[str] = ()) -> str | None:
        """Return the job that takes the next inference; None if there is none.

        One of `avoid` takes it only if there are no others.
        """
        for jobs in (self._resident, self._loading):
            for dropped in jobs.drop(avoid):
                self._avoided.add(dropped)
        chosen = self._pool(avoid)
        return chosen.take() if chosen.load < float("inf") else None

    def _pool(self, avoid: Container[str]) -> _ByLoad:
        """Return the jobs of which the least loaded takes the next inference."""
        if self._resident_keep_up and self._resident.load < float("inf"):
            return self._resident
        if not self._loading.backlogged:
            return self._loading
        while self._unloaded:
            job = self._unloaded.pop()
            if job.job_id not in avoid:
                self._loading.add(job)
                return self._loading
            self._avoided.add(job)
        pool = min(self._resident, self._loading, key=lambda jobs: jobs.load)
        return pool if pool.load < float("inf") else self._avoided
