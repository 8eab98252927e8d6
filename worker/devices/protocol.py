"""The devices of a host as the worker sees them, whatever tells about them."""

from collections.abc import Mapping
from typing import Protocol

from modelyard.contract.capacity.offers import Device, DeviceReading


class DevicesUnreadableError(Exception):
    """The devices can't be asked now; the message says why."""


class DeviceInventory(Protocol):
    """Finds and measures devices. Every method raises `DevicesUnreadableError`.

    Implementations: `worker.devices.nvml` and `worker.devices.declared`; both pass
    `tests/conformance/test_devices.py`.
    """

    async def found(self) -> tuple[Device, ...]:
        """Return all devices of the host, by index; none if it has none."""

    async def read(self) -> tuple[DeviceReading, ...]:
        """Measure the devices. One that does not answer is missing in the result."""

    async def programs(self) -> Mapping[str, Mapping[int, int]]:
        """Return the bytes of each device's memory that programs take: by uuid, then by process id.

        A device that can't tell all of them is missing in the result.
        """
