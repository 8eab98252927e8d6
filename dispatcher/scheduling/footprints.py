"""What models were measured to take: in memory, for every decision about room.

The record is what counts; only the leading dispatcher writes it, and through here. It is read when
the term begins, and by the sweep, since an earlier leader may have written late.
"""

import time
from collections import defaultdict

import structlog

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Footprint, Learned
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.scheduling.placement import LearnedOf
from modelyard.store import Store
from modelyard.store.capacity.footprints import FootprintKey, Peak, learned_of
from modelyard.store.records import HostRecord

log = structlog.get_logger(__name__)

REFRESH_S = 60.0


class LearnedFootprints:
    """All footprints of the record."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._learned: dict[tuple[str, str], Learned] | None = None
        """By model and image; None before they were read."""
        self._reads: list[dict[tuple[str, str], Learned]] = []
        """What was learned since each read began that is under way."""
        self._read_at = 0.0

    async def learned(self) -> LearnedOf:
        """Return what tells what was learned of a model; raises `StoreUnavailableError`."""
        if self._learned is None:
            await self.refresh()
        return self._of

    async def refresh(self) -> None:
        """Read all of them; raises `StoreUnavailableError`."""
        meanwhile: dict[tuple[str, str], Learned] = {}
        self._reads.append(meanwhile)
        try:
            found = learned_of(await self._store.footprints.all())
        finally:
            self._reads.remove(meanwhile)
        self._learned = {**found, **meanwhile}
        self._read_at = time.monotonic()

    async def refresh_if_old(self) -> None:
        """Read all of them unless that was a short time ago; raises `StoreUnavailableError`."""
        if time.monotonic() - self._read_at >= REFRESH_S:
            await self.refresh()

    async def learn(
        self, spec: ModelSpec, host: HostRecord | None, found: Footprint, *, new_load: bool
    ) -> None:
        """Note what a load of a model took on a host; raises `StoreUnavailableError`."""
        for device, peak in _peaks(host, found).items():
            key = FootprintKey(spec.name, spec.image, device)
            await self._store.footprints.learn(key, peak, new_load=new_load)
        known = learned_of(await self._store.footprints.of_model(spec.name))
        now = known.get((spec.name, spec.image), NOTHING_LEARNED)
        for meanwhile in self._reads:
            meanwhile[spec.name, spec.image] = now
        if self._learned is not None and self._of(spec) != now:
            self._learned[spec.name, spec.image] = now
            log.info(
                "footprint.learned",
                model=spec.name,
                image=spec.image,
                memory=now.memory,
                devices=dict(now.devices),
            )

    def _of(self, spec: ModelSpec) -> Learned:
        return (self._learned or {}).get((spec.name, spec.image), NOTHING_LEARNED)


def _peaks(host: HostRecord | None, found: Footprint) -> dict[str, Peak]:
    """Return the peaks by kind of device; of several devices of a kind the highest counts.

    No load took more than the host has, as it is recorded: what is learned holds for all hosts, so
    the word of one worker must not make a model too large for each of them.
    """
    capacity = host.capacity if host is not None else None
    devices = {one.uuid: one for one in capacity.devices} if capacity else {}
    most: dict[str, int] = defaultdict(int)
    for uuid, amount in found.devices.items():
        device = devices.get(uuid)
        if device is not None:
            most[device.model] = max(most[device.model], min(amount, device.memory))
    memory = found.memory
    if memory is not None and capacity is not None:
        memory = min(memory, capacity.allocatable_memory)
    if not most:
        return {} if memory is None else {"": Peak(load=found.load, memory=memory)}
    return {
        kind: Peak(load=found.load, memory=memory, device_memory=amount)
        for kind, amount in most.items()
    }
