"""What hosts have at hand, as their inventories tell: written to the record when it has changed."""

from collections.abc import Iterable, Mapping

from modelyard.contract.capacity.local_content import LocalContent
from modelyard.store import Store


class LocalContents:
    """Writes what hosts have at hand.

    Each inventory tells all of it, and it seldom changes: so what was written last is kept, and
    only what differs is written. A new leader writes all of it once, and all of a host is written
    after each boot: the host may have been deleted before it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[str, LocalContent] = {}
        """By host."""

    def forget(self, host_ids: Iterable[str]) -> None:
        """Write what these hosts tell next, whatever was written last."""
        for host_id in host_ids:
            self._written.pop(host_id, None)

    async def record(self, told: Mapping[str, LocalContent]) -> None:
        """Write what current incarnations have told, by host; raises `StoreUnavailableError`."""
        news = {
            host_id: content
            for host_id, content in told.items()
            if self._written.get(host_id) != content
        }
        if news:
            await self._store.hosts.note_local_content(news)
            self._written |= news
