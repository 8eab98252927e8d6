"""Retention: the leader removes old records, some at a time, beside everything else.

What must not go is left out by the query of each batch: operations that have not ended, jobs that
have a container or operations. Nothing is kept in memory but how far a look has come, so a new
leader begins anew and finds what is left.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from dispatcher.leadership import Term
from modelyard.contract.errors import StoreUnavailableError
from modelyard.store import Store

if TYPE_CHECKING:
    from modelyard.store.deleting.old_records import Place

log = structlog.get_logger(__name__)

BATCH = 200
"""Most records of a kind that are removed at once: some milliseconds of MongoDB's time."""
LEAST_PAUSE_S = 0.05
"""Least seconds between two batches while there is more to remove; else as long as the last took.

So it keeps up with what ends, and leaves at least half of the time to everything else.
"""
REST_S = 60.0
"""Seconds between two looks otherwise."""
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class KeptDays:
    """For how many days what is kept after its end; 0 is for ever."""

    operations: int
    results: int
    events: int
    dead_letters: int


class Retention:
    """Removes what is older than it is kept for."""

    def __init__(self, store: Store, term: Term, kept: KeptDays) -> None:
        self._records = store.old_records
        self._term = term
        self._results_after: Place | None = None
        self._jobs_after: Place | None = None
        # Results go with their operations, if they do not go before them.
        earlier = kept.operations == 0 or kept.results < kept.operations
        self._kinds = (
            ("operations", kept.operations, self._operations),
            ("jobs", kept.operations, self._jobs),
            ("results", kept.results if earlier else 0, self._results),
            ("events", kept.events, self._events),
            ("dead_letters", kept.dead_letters, self._dead_letters),
        )

    async def run(self) -> None:
        """Remove for ever; raises `NotLeadingError` once the term is over."""
        failing = False
        while True:
            self._term.check()
            more, began = False, time.monotonic()
            try:
                more = await self.remove()
                failing = False
            except StoreUnavailableError as error:
                if not failing:
                    log.warning("retention.store_unavailable", error=str(error))
                failing = True
            took_s = time.monotonic() - began
            await asyncio.sleep(max(LEAST_PAUSE_S, took_s) if more else REST_S)

    async def remove(self) -> bool:
        """Remove one batch of each kind; return whether there may be more.

        Raises `StoreUnavailableError` and `NotLeadingError`.
        """
        more = False
        for kind, days, remove in self._kinds:
            if days == 0:
                continue
            self._term.check()
            count, is_more = await remove(days * DAY_S)
            more |= is_more
            if count:
                log.info("retention.removed", kind=kind, count=count, kept_days=days)
        return more

    async def _operations(self, older_than_s: float) -> tuple[int, bool]:
        count = await self._records.operations(older_than_s=older_than_s, limit=BATCH)
        return count, count == BATCH

    async def _results(self, older_than_s: float) -> tuple[int, bool]:
        before = self._results_after
        count, self._results_after = await self._records.results(
            older_than_s=older_than_s, after=before, limit=BATCH
        )
        return count, self._results_after != before

    async def _jobs(self, older_than_s: float) -> tuple[int, bool]:
        count, self._jobs_after = await self._records.jobs(
            older_than_s=older_than_s, after=self._jobs_after, limit=BATCH
        )
        return count, self._jobs_after is not None

    async def _events(self, older_than_s: float) -> tuple[int, bool]:
        count = await self._records.events(older_than_s=older_than_s, limit=BATCH)
        return count, count == BATCH

    async def _dead_letters(self, older_than_s: float) -> tuple[int, bool]:
        count = await self._records.dead_letters(older_than_s=older_than_s, limit=BATCH)
        return count, count == BATCH
