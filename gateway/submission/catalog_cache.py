"""A cache of the catalog's names, so that the gateway can refuse an unknown model or dataset."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from gateway.caches.newest import Newest
from modelyard.contract.messages import JobRequest
from modelyard.store import Store

REMEMBERED_S = 5.0
"""How long a name stays in the cache; a name that is not in it is always looked up."""
MAX_NAMES = 10_000

Lookup = Callable[[Iterable[str]], Awaitable[Mapping[str, object]]]


class NameCache:
    """A short-lived cache of the names of one kind of catalog entry.

    A name that was deleted meanwhile may pass; the dispatcher checks it again and rejects it.
    """

    def __init__(self, lookup: Lookup, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup
        self._clock = clock
        self._until: Newest[str, float] = Newest(MAX_NAMES)

    async def missing(self, names: Iterable[str]) -> set[str]:
        """Return the names that the catalog does not have."""
        now = self._clock()
        unsure = {name for name in names if self._until.get(name, 0.0) <= now}
        if not unsure:
            return set()
        found = await self._lookup(unsure)
        self._until.update(dict.fromkeys(found, now + REMEMBERED_S))
        return unsure - set(found)

    def has(self, name: str | None) -> bool:
        """Tell whether a name is in the cache; null counts as known, for it needs no lookup."""
        return name is None or self._until.get(name, 0.0) > self._clock()

    def forget(self, name: str) -> None:
        """Remove the name from the cache, so that it is looked up the next time."""
        self._until.pop(name, None)


class CatalogCache:
    """The caches of model names and of dataset names."""

    def __init__(self, store: Store) -> None:
        self.models = NameCache(store.models.get_many)
        self.datasets = NameCache(store.datasets.get_many)

    def knows(self, requests: Iterable[JobRequest]) -> bool:
        """Tell whether all names of these requests are in the cache."""
        return all(
            self.models.has(one.model) and self.datasets.has(one.dataset) for one in requests
        )
