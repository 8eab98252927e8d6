"""Devices in memory. They pass the same conformance suite as those of a driver."""

from collections.abc import Iterable, Mapping

from modelyard.contract.capacity.offers import Device, DeviceReading
from worker.devices.protocol import DevicesUnreadableError

GIB = 1 << 30


class FakeDevices:
    """Devices whose memory is used as the test says."""

    def __init__(self, devices: Iterable[Device] = ()) -> None:
        self.devices = list(devices)
        self.used: dict[str, int] = {}
        """Bytes in use by uuid."""
        self.running: dict[str, dict[int, int]] = {}
        """Bytes by uuid, then by process id; they count as used too."""
        self.broken: str | None = None
        """Why the driver does not answer; None: it does."""

    async def found(self) -> tuple[Device, ...]:
        self._answer()
        return tuple(self.devices)

    async def read(self) -> tuple[DeviceReading, ...]:
        self._answer()
        return tuple(
            DeviceReading(
                uuid=one.uuid,
                memory_used=self.used.get(one.uuid, 0) + sum(self._of(one.uuid).values()),
                utilisation=0,
                temperature_c=30,
                processes=len(self._of(one.uuid)),
            )
            for one in self.devices
        )

    async def programs(self) -> Mapping[str, Mapping[int, int]]:
        self._answer()
        return {one.uuid: dict(self._of(one.uuid)) for one in self.devices}

    def _of(self, uuid: str) -> Mapping[int, int]:
        return self.running.get(uuid, {})

    def _answer(self) -> None:
        if self.broken is not None:
            raise DevicesUnreadableError(self.broken)


def devices(*sizes: int) -> list[Device]:
    """Return devices of these sizes: `GPU-0`, `GPU-1` and so on."""
    return [
        Device(uuid=f"GPU-{index}", index=index, model="Test", memory=size)
        for index, size in enumerate(sizes)
    ]
