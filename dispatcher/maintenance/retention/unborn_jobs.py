"""Jobs of which nothing ever came, because no operation on them could start."""

from typing import TYPE_CHECKING

from modelyard.store import Store

if TYPE_CHECKING:
    from modelyard.store.paging import Position

PAGE = 200
STALE_S = 30.0
"""Seconds for which a job is left alone: a gateway records it beside its first operation."""


class UnbornJobs:
    """A repair of the sweep: deletes what the end of a rejected operation left behind.

    The writer of that end deletes its job at once; this is for crashes, and for gateways that
    recorded the job afterwards.
    """

    def __init__(self, store: Store) -> None:
        self._deletions = store.deletions
        self._after: Position | None = None

    async def delete(self) -> None:
        """Look at the next page of them; raises `StoreUnavailableError`."""
        page = await self._deletions.stale_unborn_jobs(
            older_than_s=STALE_S, after=self._after, limit=PAGE
        )
        self._after = page.next
        if page.items:
            await self._deletions.unborn_jobs(one.job_id for one in page.items)
