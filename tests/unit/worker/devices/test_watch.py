"""Devices that can't be asked for a while."""

import pytest

from tests.fakes.devices import GIB, FakeDevices, devices
from worker.devices import watch
from worker.devices.taints import DeviceTaints
from worker.devices.watch import DeviceWatch


def watching(inventory: FakeDevices) -> DeviceWatch:
    return DeviceWatch(inventory, DeviceTaints(inventory, within_s=0.1))


async def test_devices_that_are_found_late_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = FakeDevices(devices(GIB))
    inventory.broken = "the driver is being replaced"

    async def mend(_: float) -> None:
        inventory.broken = None

    monkeypatch.setattr("worker.devices.watch.asyncio.sleep", mend)
    assert await watching(inventory).found() == tuple(devices(GIB))


async def test_a_worker_whose_devices_are_never_found_offers_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "AGAIN_S", 0.0)
    inventory = FakeDevices(devices(GIB))
    inventory.broken = "version mismatch"
    assert await watching(inventory).found() == ()


async def test_an_old_measurement_is_never_told_as_a_new_one() -> None:
    inventory = FakeDevices(devices(GIB))
    inventory.used["GPU-0"] = 5
    devices_watch = watching(inventory)
    await devices_watch.measure()
    (measured,) = devices_watch.latest()
    assert measured.memory_used == 5
    inventory.broken = "the GPU is lost"
    await devices_watch.measure()
    assert not devices_watch.latest()
    inventory.broken = None
    await devices_watch.measure()
    assert devices_watch.latest() == (measured,)
