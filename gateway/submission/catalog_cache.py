"""Which models and datasets the catalog has, so that a wrong name is told at the door."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from modelyard.store import Store

REMEMBERED_S = 5.0
"""How long a name counts as known; a name that is not known is always looked up."""

Lookup = Callable[[Iterable[str]], Awaitable[Mapping[str, object]]]


class NameCache:
    """A short memory of names of one shelf of the catalog.

    A name that was deleted meanwhile gets through; the dispatcher, which decides, refuses it.
    """

    def __init__(self, lookup: Lookup, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup
        self._clock = clock
        self._until: dict[str, float] = {}

    async def missing(self, names: Iterable[str]) -> set[str]:
        """Return those of the names that the catalog does not have."""
        now = self._clock()
        unsure = {name for name in names if self._until.get(name, 0.0) <= now}
        if not unsure:
            return set()
        found = await self._lookup(unsure)
        self._until.update(dict.fromkeys(found, now + REMEMBERED_S))
        return unsure - set(found)

    def forget(self, name: str) -> None:
        """Look the name up the next time."""
        self._until.pop(name, None)


class CatalogCache:
    """The memories of both shelves."""

    def __init__(self, store: Store) -> None:
        self.models = NameCache(store.models.get_many)
        self.datasets = NameCache(store.datasets.get_many)
