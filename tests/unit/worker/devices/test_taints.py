"""Memory of a device that should be free: it is waited for, then the device is tainted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from modelyard.contract.capacity.offers import MAX_DEVICES, DeviceTaint
from tests.fakes.devices import GIB, FakeDevices, devices
from tests.support.waiting import eventually
from worker.devices import taints as module
from worker.devices.declared import DeclaredDevices
from worker.devices.taints import DeviceTaints, Leaving

OURS, OTHER = "c1", "c2"
A, B = "GPU-0", "GPU-1"


class Host:
    """Two devices; process 1 is in our container and process 2 in another one."""

    def __init__(self) -> None:
        self.inventory = FakeDevices(devices(8 * GIB, 8 * GIB))
        self.inventory.used = {A: GIB // 4}  # nobody's, as a display's
        self.inventory.running = {A: {1: 4 * GIB, 2: GIB}, B: {2: GIB}}
        self.taints = DeviceTaints(
            self.inventory,
            within_s=0.2,
            containers=lambda pid: {OURS if pid == 1 else OTHER},
        )

    async def leaving(self) -> Leaving:
        found = await self.taints.before_end(OURS, "job-1")
        assert found is not None
        return found

    def end(self) -> None:
        """End the container; its memory is free."""
        del self.inventory.running[A][1]

    async def marks(self) -> dict[str, DeviceTaint]:
        """Return the taints as a heartbeat would tell them."""
        marked = self.taints.shown(await self.inventory.read())
        return {one.uuid: one.tainted for one in marked if one.tainted is not None}


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    monkeypatch.setattr(module, "TOLD_S", 0.01)
    async with asyncio.timeout(20):
        yield Host()


async def test_memory_that_is_free_when_its_container_has_ended_taints_nothing(host: Host) -> None:
    leaving = await host.leaving()
    assert leaving.held == {A: 4 * GIB}
    host.end()
    await host.taints.after_end(leaving)
    assert await host.marks() == {}


async def test_memory_that_becomes_free_a_little_later_is_waited_for(host: Host) -> None:
    leaving = await host.leaving()
    after = asyncio.create_task(host.taints.after_end(leaving))
    await asyncio.sleep(0)
    assert not after.done()
    host.end()
    await after
    assert await host.marks() == {}


async def test_a_process_that_does_not_end_taints_its_device_until_it_does(host: Host) -> None:
    await host.taints.after_end(await host.leaving())
    assert await host.marks() == {A: DeviceTaint(memory=4 * GIB, job_id="job-1")}
    host.inventory.running[A][1] = GIB
    await host.taints.update()
    assert (await host.marks())[A].memory == GIB
    host.end()
    await host.taints.update()
    assert await host.marks() == {}


async def test_memory_that_no_process_has_any_more_taints_too(host: Host) -> None:
    leaving = await host.leaving()
    host.end()
    host.inventory.used[A] += 3 * GIB
    await host.taints.after_end(leaving)
    assert await host.marks() == {A: DeviceTaint(memory=3 * GIB, job_id="job-1")}
    host.inventory.used[A] -= 3 * GIB
    await host.taints.update()
    assert await host.marks() == {}


async def test_what_others_take_meanwhile_is_theirs(host: Host) -> None:
    leaving = await host.leaving()
    host.end()
    host.inventory.running[A][2] = 6 * GIB
    host.inventory.running[B][7] = 6 * GIB
    await host.taints.after_end(leaving)
    assert await host.marks() == {}


async def test_no_more_is_blamed_on_a_container_than_it_held(host: Host) -> None:
    leaving = await host.leaving()
    host.end()
    host.inventory.used[A] += 7 * GIB
    await host.taints.after_end(leaving)
    assert (await host.marks())[A].memory == 4 * GIB


async def test_a_container_that_holds_nothing_leaves_nothing(host: Host) -> None:
    host.inventory.running[A][1] = 1
    assert await host.taints.before_end(OURS, "job-1") is None


async def test_of_a_device_that_can_not_be_asked_nothing_is_claimed(host: Host) -> None:
    leaving = await host.leaving()
    host.inventory.broken = "the driver does not answer"
    assert await host.taints.before_end(OURS, "job-1") is None
    await host.taints.after_end(leaving)
    assert host.taints.shown(()) == ()


async def test_a_taint_lasts_while_its_device_can_not_be_asked(host: Host) -> None:
    await host.taints.after_end(await host.leaving())
    host.end()
    host.inventory.broken = "the driver does not answer"
    await host.taints.update()
    (told,) = host.taints.shown(())
    assert (told.uuid, told.tainted) == (A, DeviceTaint(memory=4 * GIB, job_id="job-1"))
    host.inventory.broken = None
    await host.taints.update()
    assert host.taints.shown(()) == ()


async def tainting(host: Host) -> asyncio.Task[None]:
    """Return what waits until the new taint of a device is told."""
    after = asyncio.create_task(host.taints.after_end(await host.leaving()))

    async def tainted() -> bool:
        return bool(host.taints._tainted)

    await eventually(tainted, what="the taint")
    return after


async def test_a_container_counts_as_gone_once_a_heartbeat_has_told_of_its_taint(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLD_S", 10.0)
    earlier = host.taints.shown(await host.inventory.read())
    after = await tainting(host)
    composed = host.taints.shown(await host.inventory.read())
    host.taints.record_told(earlier)
    assert (await asyncio.wait((after,), timeout=0.01))[1] == {after}
    host.taints.record_told(composed)
    async with asyncio.timeout(5):
        await after


async def test_a_taint_that_has_ended_need_not_be_told(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLD_S", 10.0)
    after = await tainting(host)
    host.end()
    await host.taints.update()
    async with asyncio.timeout(5):
        await after


async def test_tainted_devices_go_before_others_if_there_are_too_many(host: Host) -> None:
    await host.taints.after_end(await host.leaving())
    readings = await FakeDevices(devices(*[GIB] * (MAX_DEVICES + 1))).read()
    shown = host.taints.shown(one for one in readings if one.uuid != A)
    assert len(shown) == MAX_DEVICES
    assert shown[0].uuid == A


async def test_declared_devices_are_never_tainted() -> None:
    taints = DeviceTaints(DeclaredDevices(devices(8 * GIB)), within_s=0.1)
    assert await taints.before_end(OURS, "job-1") is None
