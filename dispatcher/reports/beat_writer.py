"""Writes heartbeats to the record, and tells of devices that are tainted or free again."""

from collections.abc import Iterable, Mapping

import structlog

from dispatcher.events import EventLog, host_event
from dispatcher.scheduling.scheduler import Scheduler
from modelyard.contract.capacity.offers import DeviceTaint, taints_of
from modelyard.contract.messages import Event, Heartbeat
from modelyard.contract.states import Liveness
from modelyard.store import Store
from modelyard.store.records import HostRecord

log = structlog.get_logger(__name__)

Taints = Mapping[str, DeviceTaint]
"""By uuid."""


class BeatWriter:
    """Writes the heartbeats of all hosts."""

    def __init__(self, store: Store, event_log: EventLog, scheduler: Scheduler) -> None:
        self._store = store
        self._event_log = event_log
        self._scheduler = scheduler
        self._taints: dict[str, Taints] = {}
        """By host, as recorded; of recorded hosts that this term has heard of."""

    def forget(self, host_ids: Iterable[str]) -> None:
        """Keep nothing of hosts that were deleted."""
        for host_id in host_ids:
            self._taints.pop(host_id, None)

    async def write(self, beats: Mapping[str, Heartbeat]) -> Mapping[str, str]:
        """Record a heartbeat of each host; return the incarnation that is recorded of each.

        Raises `StoreUnavailableError`.
        """
        await self._recall(beats)
        if await self._store.hosts.beat(beats.values()):
            self._tell(beats.values())
            return {host_id: one.incarnation for host_id, one in beats.items()}
        hosts = {one.host_id: one for one in await self._store.hosts.all(sorted(beats))}
        self._tell(one for one in beats.values() if _is_recorded(one, hosts.get(one.host_id)))
        return {host_id: host.incarnation or "" for host_id, host in hosts.items()}

    async def _recall(self, host_ids: Iterable[str]) -> None:
        """Read what an earlier leader has recorded of hosts that are new to this one."""
        unknown = [host_id for host_id in host_ids if host_id not in self._taints]
        if unknown:
            found = await self._store.hosts.all(unknown)
            self._taints |= {one.host_id: one.taints for one in found}

    def _tell(self, beats: Iterable[Heartbeat]) -> None:
        """Have events published about devices whose taint has begun or ended.

        A dispatcher that dies before tells nothing: the record has the taint.
        """
        events: list[Event] = []
        for beat in beats:
            host_id = beat.host_id
            before = self._taints.get(host_id, {})
            now = taints_of(beat.devices)
            self._taints[host_id] = now
            begun = [uuid for uuid in now if uuid not in before]
            over = [uuid for uuid in before if uuid not in now]
            if not begun and not over:
                continue
            self._store.changes.written(hosts=[host_id])
            for uuid in begun:
                detail = {"uuid": uuid, "bytes": now[uuid].memory, "job_id": now[uuid].job_id}
                log.warning("device.tainted", host_id=host_id, **detail)
                events.append(host_event(host_id, "device_tainted", beat.incarnation, **detail))
            for uuid in over:
                log.info("device.untainted", host_id=host_id, uuid=uuid)
                events.append(host_event(host_id, "device_untainted", beat.incarnation, uuid=uuid))
            if over:
                self._scheduler.wake_waiting()
        self._event_log.note(events)


def _is_recorded(beat: Heartbeat, host: HostRecord | None) -> bool:
    """Tell whether a heartbeat was not dropped; `host` is its host's record after the write."""
    if host is None or host.liveness is Liveness.LOST:
        return False
    return host.incarnation == beat.incarnation
