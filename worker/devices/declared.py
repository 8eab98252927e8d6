"""Devices that the operator declares: for accelerators that NVML does not know, and for tests."""

from collections.abc import Iterable, Mapping

from modelyard.contract.capacity.offers import Device, DeviceReading


class DeclaredDevices:
    """Devices as the settings name them. Nothing is measured of them."""

    def __init__(self, devices: Iterable[Device]) -> None:
        """Devices with the same index are numbered anew, in the order given."""
        given = tuple(devices)
        distinct = len({one.index for one in given}) == len(given)
        self._devices = (
            given
            if distinct
            else tuple(one.model_copy(update={"index": number}) for number, one in enumerate(given))
        )

    async def found(self) -> tuple[Device, ...]:
        """Return the devices that were declared."""
        return self._devices

    async def read(self) -> tuple[DeviceReading, ...]:
        """Return nothing: what the ledger says is all that is known of them."""
        return ()

    async def programs(self) -> Mapping[str, Mapping[int, int]]:
        """Return nothing, for the same reason."""
        return {}
