"""Measures the host's devices again and again, for the heartbeats."""

import asyncio
from collections.abc import Iterable

import structlog

from modelyard.contract.capacity.offers import Device, DeviceReading
from worker.devices.protocol import DeviceInventory, DevicesUnreadableError
from worker.devices.taints import DeviceTaints

log = structlog.get_logger(__name__)

INTERVAL_S = 2.0
ATTEMPTS = 5
"""How often the devices are asked for when a worker boots; after that it offers none."""
AGAIN_S = 1.0


class DeviceWatch:
    """The last measurement of each device."""

    def __init__(self, inventory: DeviceInventory, taints: DeviceTaints) -> None:
        self._inventory = inventory
        self._taints = taints
        self._unreadable = False
        self._measured: tuple[DeviceReading, ...] = ()

    def latest(self) -> tuple[DeviceReading, ...]:
        """Return the last measurements: none while devices can't be measured.

        A tainted device is among them in any case.
        """
        return self._taints.shown(self._measured)

    def record_told(self, readings: Iterable[DeviceReading]) -> None:
        """Record that a heartbeat with these measurements was confirmed."""
        self._taints.record_told(readings)

    async def found(self) -> tuple[Device, ...]:
        """Return the host's devices; none, and a log line, if they can't be found in time."""
        for attempt in range(ATTEMPTS):
            try:
                return await self._inventory.found()
            except DevicesUnreadableError as error:
                log.warning("devices.not_found", error=str(error), attempt=attempt + 1)
            await asyncio.sleep(AGAIN_S)
        return ()

    async def run(self) -> None:
        """Measure every `INTERVAL_S` seconds until cancelled."""
        while True:
            await self.measure()
            await asyncio.sleep(INTERVAL_S)

    async def measure(self) -> None:
        """Measure once; never raises."""
        try:
            self._measured = await self._inventory.read()
        except DevicesUnreadableError as error:
            if not self._unreadable:
                log.warning("devices.unreadable", error=str(error))
            self._unreadable, self._measured = True, ()
        else:
            self._unreadable = False
            await self._taints.update()
