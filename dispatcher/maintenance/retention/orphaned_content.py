"""Removes stored inputs and results that no operation refers to."""

import time

import structlog

from modelyard.store import Store
from modelyard.store.content.retention import LOOKED_AT_S

log = structlog.get_logger(__name__)

EVERY_S = LOOKED_AT_S
"""Seconds between two looks, each at up to a thousand files."""


class OrphanedContent:
    """Looks for what a crash, an answer that broke off or a client has left in GridFS."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looked_at = float("-inf")

    async def remove(self) -> None:
        """Remove inputs of a day ago that no operation names, and results of no use.

        Raises `StoreUnavailableError`.
        """
        now = time.monotonic()
        if now - self._looked_at < EVERY_S:
            return
        removed = await self._store.content_retention.remove_orphans()
        self._looked_at = now
        if removed:
            log.info("content.orphans_removed", count=removed)
