"""Devices whose memory did not become free when a container ended.

A driver gives the memory of a process back within a fraction of a second after its end. Now and
then it does not: the process hangs in the driver, or the driver has lost track. Nothing that is
loaded there afterwards finds the memory that it was promised. So the device is tainted until it is
measured to be free. A restart of this process forgets that; what is measured of the device still
counts then.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import structlog

from modelyard.contract.capacity.offers import (
    MAX_DEVICES,
    DeviceReading,
    DeviceTaint,
    taints_of,
)
from modelyard.process.tasks import in_daemon_thread
from worker.devices.cgroups import containers_of
from worker.devices.protocol import DeviceInventory, DevicesUnreadableError

log = structlog.get_logger(__name__)

NOTHING = 64 << 20
"""Bytes that count as nothing: a driver's own use varies by some."""
FIRST_PAUSE_S, MOST_PAUSE_S = 0.05, 0.5
TOLD_S = 8.0
"""Seconds in which a heartbeat should have told of a new taint."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A container that is about to end, and what it holds of devices."""

    container_id: str
    job_id: str
    held: dict[str, int]
    unowned: dict[str, int]
    """Bytes of each of these devices that no program was seen to hold then."""


class DeviceTaints:
    """Follows memory of devices that should be free."""

    def __init__(
        self,
        inventory: DeviceInventory,
        *,
        within_s: float,
        containers: Callable[[int], Collection[str]] = containers_of,
    ) -> None:
        """`within_s`: seconds after a container's end until its memory must be free."""
        self._inventory = inventory
        self._within_s = within_s
        self._containers = containers
        self._tainted: dict[tuple[str, str], tuple[Leaving, int]] = {}
        """By device and container: what is still taken, in bytes."""
        self._untold: dict[str, asyncio.Event] = {}
        """By device: set once a heartbeat that told of its taint is confirmed, or it is free."""

    async def before_end(self, container_id: str, job_id: str) -> Leaving | None:
        """Look what a container holds that is about to end; None if that is nothing, or unknown."""
        try:
            inside, unowned = await self._look(container_id)
        except DevicesUnreadableError as error:
            log.info("device.unmeasured", container_id=container_id, reason=str(error))
            return None
        held = {uuid: amount for uuid, amount in inside.items() if amount > NOTHING}
        return Leaving(container_id, job_id, held, unowned) if held else None

    async def after_end(self, leaving: Leaving) -> None:
        """Return once the memory of a container that has ended is free, or its devices tainted.

        A heartbeat that tells of a new taint is confirmed before this returns, unless none can be
        sent for `TOLD_S` seconds.
        """
        left = await self._left_in_time(leaving)
        for uuid, amount in left.items():
            log.warning(
                "device.tainted",
                uuid=uuid,
                bytes=amount,
                job_id=leaving.job_id,
                container_id=leaving.container_id,
            )
            self._tainted[uuid, leaving.container_id] = (leaving, amount)
        if left:
            untold = [self._untold.setdefault(uuid, asyncio.Event()) for uuid in left]
            try:
                async with asyncio.timeout(TOLD_S):
                    for told in untold:
                        await told.wait()
            except TimeoutError:
                log.info("device.taint_not_told", job_id=leaving.job_id)

    async def update(self) -> None:
        """Measure the tainted devices; those that are free are not tainted any more."""
        for (uuid, container_id), (leaving, _) in tuple(self._tainted.items()):
            try:
                left = await self._left(leaving)
            except DevicesUnreadableError:
                continue
            if left.get(uuid, NOTHING + 1) > NOTHING:
                if uuid in left:
                    self._tainted[uuid, container_id] = (leaving, left[uuid])
                continue
            del self._tainted[uuid, container_id]
            log.info("device.untainted", uuid=uuid, job_id=leaving.job_id)
        self._end_waits(self._untold.keys() - {uuid for uuid, _ in self._tainted})

    def record_told(self, readings: Iterable[DeviceReading]) -> None:
        """Record that a heartbeat with these readings was confirmed."""
        self._end_waits(taints_of(readings))

    def _end_waits(self, uuids: Iterable[str]) -> None:
        for uuid in uuids:
            if uuid in self._untold:
                self._untold.pop(uuid).set()

    def shown(self, readings: Iterable[DeviceReading]) -> tuple[DeviceReading, ...]:
        """Return readings with the taints, also of devices that were not read.

        There are at most `MAX_DEVICES`, tainted devices first.
        """
        taints: dict[str, DeviceTaint] = {}
        for (uuid, _), (leaving, amount) in self._tainted.items():
            before = taints[uuid].memory if uuid in taints else 0
            taints[uuid] = DeviceTaint(memory=before + amount, job_id=leaving.job_id)
        found = {one.uuid: one for one in readings}
        for uuid, taint in taints.items():
            reading = found.get(uuid) or DeviceReading(uuid=uuid, memory_used=taint.memory)
            found[uuid] = reading.model_copy(update={"tainted": taint})
        tainted_first = sorted(found.values(), key=lambda one: one.tainted is None)
        return tuple(tainted_first[:MAX_DEVICES])

    async def _left_in_time(self, leaving: Leaving) -> dict[str, int]:
        """Return what is still taken after `within_s` seconds; nothing if it became free before."""
        loop = asyncio.get_running_loop()
        ends_at, pause_s = loop.time() + self._within_s, FIRST_PAUSE_S
        while True:
            try:
                left = await self._left(leaving)
            except DevicesUnreadableError as error:
                log.info("device.unmeasured", job_id=leaving.job_id, reason=str(error))
                left = {}
            taken = {uuid: amount for uuid, amount in left.items() if amount > NOTHING}
            if left and not taken:
                return {}
            if loop.time() >= ends_at:
                return taken
            await asyncio.sleep(pause_s)
            pause_s = min(MOST_PAUSE_S, 2 * pause_s)

    async def _left(self, leaving: Leaving) -> dict[str, int]:
        """Return what is still taken of each device that the container held some of.

        Either its processes are still there, or nobody's: no more than it held, and beyond what
        was nobody's before.
        """
        inside, unowned = await self._look(leaving.container_id)
        return {
            uuid: max(inside[uuid], min(held, unowned[uuid] - leaving.unowned[uuid]), 0)
            for uuid, held in leaving.held.items()
            if uuid in inside
        }

    async def _look(self, container_id: str) -> tuple[dict[str, int], dict[str, int]]:
        """Return what a container holds of each device, and what is in use and nobody's."""
        # What ends in between counts as nobody's for a moment, and what begins the other way.
        used = {one.uuid: one.memory_used for one in await self._inventory.read()}
        programs = await self._inventory.programs()
        return await in_daemon_thread(
            lambda: self._sums(used, programs, container_id), name="device-programs"
        )

    def _sums(
        self,
        used: Mapping[str, int],
        programs: Mapping[str, Mapping[int, int]],
        container_id: str,
    ) -> tuple[dict[str, int], dict[str, int]]:
        inside: dict[str, int] = {}
        unowned: dict[str, int] = {}
        for uuid, taken in programs.items():
            if uuid in used:
                ours = (pid for pid in taken if container_id in self._containers(pid))
                inside[uuid] = sum(taken[pid] for pid in ours)
                unowned[uuid] = used[uuid] - sum(taken.values())
        return inside, unowned
