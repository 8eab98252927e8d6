"""The hosts in memory, so that no pass has to read them first.

The record is what counts; this is a copy of it. Writes of this process to a host mark it
(`Changes`), and it is read again before the next use. Gateways write a host's admission and drain:
`refresh` reads all hosts, at every sweep. A copy that is outdated does no harm: reservations are
guarded in the database, and one that fails marks its host.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

from modelyard.scheduling.placement import FreeCapacity, KeptOn, LearnedOf, PlacementPolicy
from modelyard.scheduling.survey import Table
from modelyard.store import Store
from modelyard.store.records import HostRecord


class Fleet:
    """All hosts of the record, as this dispatcher has last read them."""

    def __init__(self, store: Store, *, policy: PlacementPolicy = PlacementPolicy.BINPACK) -> None:
        self._store = store
        self._policy = policy
        self._hosts: dict[str, HostRecord] = {}
        self._table: Table | None = None
        """The same hosts as numbers, once they are needed."""
        self._outdated: set[str] = set()
        self._being_read: set[str] = set()
        """Hosts that were outdated when the read began that is under way."""
        self._complete = False
        self._when_gone: list[Callable[[Collection[str]], None]] = []
        self._reading = asyncio.Lock()
        """One read at a time: an earlier one must not undo what a later one has brought."""

    def when_gone(self, forget: Callable[[Collection[str]], None]) -> None:
        """Have `forget` called with hosts that were deleted."""
        self._when_gone.append(forget)

    @property
    def held(self) -> Mapping[str, HostRecord]:
        """All hosts by id as they are in memory, outdated or not; for looking at them."""
        return self._hosts

    async def hosts(self) -> Mapping[str, HostRecord]:
        """Return all hosts by id, in the order of their ids; raises `StoreUnavailableError`."""
        if not self._complete:
            await self.refresh()
        elif self._outdated or self._being_read:
            async with self._reading:
                if self._outdated:
                    await self._read(sorted(self._outdated))
        return self._hosts

    def capacity_of(
        self, hosts: Mapping[str, HostRecord], kept: KeptOn, learned: LearnedOf
    ) -> FreeCapacity:
        """Return what is left of some hosts, to be given away by the policy."""
        if hosts is not self._hosts:
            return FreeCapacity(hosts, kept, learned, policy=self._policy)
        self._table = self._table or Table(hosts.values())
        return FreeCapacity(hosts, kept, learned, policy=self._policy, table=self._table)

    async def refresh(self) -> None:
        """Read all hosts; raises `StoreUnavailableError`."""
        async with self._reading:
            await self._read(None)
        self._complete = True

    def mark(self, host_ids: Iterable[str]) -> None:
        """Mark hosts as changed: they are read before their next use."""
        self._outdated.update(host_ids)

    def replace(self, before: HostRecord, after: HostRecord) -> None:
        """Note what a write has made of a host, of which memory had `before` when it began.

        If memory has something else by now, or is being read, the host is marked.
        """
        host_id = before.host_id
        if self._hosts.get(host_id) is before and not self._reading.locked():
            self._hosts[host_id] = after
            if self._table is not None:
                self._table.put([after])
        else:
            self.mark([host_id])

    async def _read(self, host_ids: list[str] | None) -> None:
        self._being_read, self._outdated = self._outdated, set()
        try:
            found = await self._store.hosts.all(host_ids)
        except BaseException:
            self._outdated |= self._being_read
            raise
        finally:
            self._being_read = set()
        read = {host.host_id: host for host in found}
        # What was looked for and is not there was deleted.
        gone = (self._hosts.keys() if host_ids is None else set(host_ids)) - read.keys()
        if gone:
            for forget in self._when_gone:
                forget(gone)
        if not gone and read.keys() <= self._hosts.keys():
            self._hosts.update(read)
            if self._table is not None:
                self._table.put(found)
        else:
            self._table = None
            kept = {key: host for key, host in self._hosts.items() if key not in gone}
            self._hosts = dict(sorted((kept | read).items()))
