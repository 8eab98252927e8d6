"""Reads of MongoDB: bounded in time, refused at once while it is down, grouped into one query."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from gateway.availability import TOOK_LONG, Availability
from modelyard.contract.errors import SlowQueryError, StoreUnavailableError
from modelyard.process.batching import Coalescer
from modelyard.store import Store
from modelyard.store.records import OperationRecord

READ_S = 1.8
"""Longest time of a read in seconds; a slower one is answered with 503."""
MAX_GROUP = 500

T = TypeVar("T")


class BoundedReads:
    """Reads the store for the routes. Every method raises `StoreUnavailableError`."""

    def __init__(self, store: Store, availability: Availability) -> None:
        self._store = store
        self._availability = availability
        # Concurrent reads of single operations share one query.
        self._operations: Coalescer[str, OperationRecord | None] = Coalescer(
            self._read_group, max_items=MAX_GROUP
        )

    async def run(self) -> None:
        """Run the grouped reads until cancelled."""
        await self._operations.run()

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a read of the store."""
        return await self._availability.ask(call, within_s=READ_S)

    async def ask_for_much(self, call: Callable[[], Awaitable[T]], *, filtered: bool = False) -> T:
        """As `ask`, for what reads as much as a client asks for, such as lists.

        That it takes long does not mark MongoDB as down: one client's list would take it from all.
        With `filtered` a client chose what is looked for, and can choose otherwise:
        `SlowQueryError` is raised if MongoDB ended the query.
        """
        try:
            return await self._availability.ask(call, within_s=READ_S, may_be_slow=True)
        except SlowQueryError as error:
            if filtered:
                raise
            raise StoreUnavailableError(TOOK_LONG) from error

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """Return one operation; null if it is unknown, or was deleted."""
        return await self.ask(lambda: self._operations.submit(operation_id))

    async def _read_group(self, wanted: Sequence[str]) -> list[OperationRecord | None]:
        found = await self._store.operation_queries.get_many(sorted(set(wanted)))
        known = {key: one for key, one in found.items() if not one.deleted}
        return [known.get(operation_id) for operation_id in wanted]
