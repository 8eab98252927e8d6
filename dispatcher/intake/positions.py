"""Positions in line, taken from the database in blocks."""

from modelyard.store import Store

BLOCK = 1_000


class Positions:
    """Gives out positions, each higher than all that were given out before.

    The leading dispatcher has one of these: a block that another dispatcher takes later has higher
    positions, so one that comes back to lead may not use the rest of its own.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._left = range(0)

    async def take(self, count: int) -> range:
        """Return `count` positions; what is left of a block that is too short is never used.

        Raises `StoreUnavailableError`.
        """
        if len(self._left) < count:
            self._left = await self._store.operations.next_positions(max(count, BLOCK))
        taken, self._left = self._left[:count], self._left[count:]
        return taken
