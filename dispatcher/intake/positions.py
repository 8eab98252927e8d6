"""Positions in line, taken from the database in blocks."""

from dispatcher.leadership import Term
from modelyard.store import Store

BLOCK = 1_000


class Positions:
    """Gives out positions, each higher than all that were given out before.

    A block belongs to a term: one that a later leader takes has higher positions, so what is left
    of an earlier one may not be used any more.
    """

    def __init__(self, store: Store, term: Term) -> None:
        self._store = store
        self._term = term
        self._left = range(0)

    async def take(self, count: int) -> range:
        """Return `count` positions; what is left of a block that is too short is never used.

        Raises `StoreUnavailableError`, and `NotLeadingError` if the term is over.
        """
        if len(self._left) < count:
            self._left = await self._store.operations.next_positions(max(count, BLOCK))
        self._term.check()
        taken, self._left = self._left[:count], self._left[count:]
        return taken
