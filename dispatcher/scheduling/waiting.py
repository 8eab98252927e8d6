"""How much waits: asked of the record now and then, for whoever looks at the metrics."""

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from modelyard.contract.errors import StoreUnavailableError
from modelyard.store import Store

if TYPE_CHECKING:
    from modelyard.store.operation_queries import WaitingOfVerb

log = structlog.get_logger(__name__)

EVERY_S = 10.0
SHARE = 50
"""The pause is at least so many times what the question took, so it never is a load."""
MOST_COUNTED = 20_000
"""Of more operations that wait, only the oldest are counted."""


class WaitingOperations:
    """The operations that wait, by verb, as they were when the record was last asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.by_verb: dict[str, WaitingOfVerb] = {}

    async def run(self) -> None:
        """Ask again and again until cancelled."""
        while True:
            began = time.monotonic()
            try:
                self.by_verb = await self._store.operation_queries.waiting_by_verb(
                    most=MOST_COUNTED
                )
            except StoreUnavailableError as error:
                log.debug("waiting.not_counted", error=str(error))
            await asyncio.sleep(max(EVERY_S, SHARE * (time.monotonic() - began)))
