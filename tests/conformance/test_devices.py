"""One suite for every `DeviceInventory`: declared devices, those in memory, and the driver's.

The driver's are tested on machines that have one; elsewhere it has no devices, which is tested too.
"""

import asyncio
import ctypes.util
import sys

import pytest

from modelyard.contract.messages import (
    MAX_HEARTBEAT_BYTES,
    EngineFacts,
    Heartbeat,
    HostOnline,
)
from tests.fakes.devices import GIB, FakeDevices, devices
from tests.support.waiting import eventually
from worker.devices.declared import DeclaredDevices
from worker.devices.holders import DeviceHolders
from worker.devices.nvml import NvmlDevices
from worker.devices.protocol import DeviceInventory
from worker.devices.taints import DeviceTaints
from worker.devices.watch import DeviceWatch
from worker.session.host_offer import HostOffer
from worker.settings import WorkerSettings

HAS_DRIVER = ctypes.util.find_library("nvidia-ml") is not None
TWO = devices(24 * GIB, 80 * GIB)


@pytest.fixture(params=["declared", "memory", "driver"])
async def inventory(request: pytest.FixtureRequest) -> DeviceInventory:
    if request.param == "declared":
        return DeclaredDevices(TWO)
    return FakeDevices(TWO) if request.param == "memory" else NvmlDevices()


async def test_devices_are_told_apart_and_stay_the_same(inventory: DeviceInventory) -> None:
    found = await inventory.found()
    assert len({one.uuid for one in found}) == len(found)
    assert [one.index for one in found] == list(range(len(found)))
    assert all(one.memory > GIB and one.model for one in found)
    assert await inventory.found() == found
    if not isinstance(inventory, NvmlDevices):
        assert len(found) == 2


async def test_a_driver_that_is_there_has_devices_and_no_other_has() -> None:
    assert bool(await NvmlDevices().found()) is HAS_DRIVER


async def test_what_is_measured_is_of_these_devices(inventory: DeviceInventory) -> None:
    found = {one.uuid: one for one in await inventory.found()}
    readings = await inventory.read()
    assert {one.uuid for one in readings} <= found.keys()
    assert all(0 <= one.memory_used <= found[one.uuid].memory for one in readings)
    if not isinstance(inventory, DeclaredDevices):
        assert len(readings) == len(found)


async def test_programs_are_of_these_devices(inventory: DeviceInventory) -> None:
    if isinstance(inventory, FakeDevices):
        inventory.running[TWO[1].uuid] = {17: 3 * GIB, 18: GIB}
    found = {one.uuid: one for one in await inventory.found()}
    programs = await inventory.programs()
    assert programs.keys() <= found.keys()
    for uuid, taken in programs.items():
        assert all(pid > 0 and 0 <= size <= found[uuid].memory for pid, size in taken.items())
    if isinstance(inventory, FakeDevices):
        assert programs == {TWO[0].uuid: {}, TWO[1].uuid: {17: 3 * GIB, 18: GIB}}
    if isinstance(inventory, DeclaredDevices):
        assert programs == {}


async def test_who_asks_at_the_same_time_gets_an_answer(inventory: DeviceInventory) -> None:
    found, *others = await asyncio.gather(
        inventory.found(), *(inventory.read() for _ in range(4)), inventory.found()
    )
    assert others[-1] == found


async def test_what_a_worker_tells_of_them_fits_into_its_messages(
    inventory: DeviceInventory,
) -> None:
    watch = DeviceWatch(inventory, DeviceTaints(inventory, within_s=1.0))
    offer = HostOffer(WorkerSettings(host_id="h", worker_cpus=8.0, worker_memory=GIB), watch)
    online = await offer.online(EngineFacts(version="1", api_version="1"), (), begun_known=True)
    await watch.measure()
    beat = offer.heartbeat("boot", running=0)
    assert HostOnline.model_validate_json(online.model_dump_json()) == online
    assert online.capacity is not None
    assert online.capacity.devices == await inventory.found()
    text = beat.model_dump_json()
    assert Heartbeat.model_validate_json(text) == beat
    assert len(text) < MAX_HEARTBEAT_BYTES


_TAKES_MEMORY = """
import ctypes, sys, time
cuda, handle, context, pointer = (
    ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
)
for code in (
    cuda.cuInit(0),
    cuda.cuDeviceGet(ctypes.byref(handle), 0),
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle),
    cuda.cuCtxSetCurrent(context),
    cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(int(sys.argv[1]))),
):
    assert code == 0, code
print("taken", flush=True)
time.sleep(600)
"""


async def test_what_no_container_holds_taints_nothing(inventory: DeviceInventory) -> None:
    taints = DeviceTaints(inventory, within_s=0.1)
    assert await taints.before_end("0" * 64, "job") is None
    await taints.update()
    readings = await inventory.read()
    assert taints.shown(readings) == readings


if HAS_DRIVER:

    async def test_memory_that_a_program_takes_is_measured_until_it_ends() -> None:
        inventory = NvmlDevices()
        (before, *_) = await inventory.read()
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _TAKES_MEMORY, str(4 * GIB), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert program.stdout is not None
            assert await program.stdout.readline() == b"taken\n"
            (during, *_) = await inventory.read()
            assert 4 * GIB <= during.memory_used - before.memory_used < 6 * GIB
            pid = program.pid
            holders = DeviceHolders(inventory, containers=lambda it: {"c"} if it == pid else ())
            held = await holders.held_by("c")
            assert 4 * GIB <= held[during.uuid] < 6 * GIB
            others = DeviceHolders(inventory, containers=lambda _: ())
            assert not any((await others.held_by("c")).values())
        finally:
            program.kill()
            await program.wait()

        async def freed() -> bool:
            (after, *_) = await inventory.read()
            return after.memory_used - before.memory_used < GIB // 4

        await eventually(freed, what="the memory of a program that was killed")

    async def test_memory_of_a_container_that_was_killed_is_free_in_time() -> None:
        inventory = NvmlDevices()
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _TAKES_MEMORY, str(4 * GIB), stdout=asyncio.subprocess.PIPE
        )
        pid = program.pid
        taints = DeviceTaints(
            inventory, within_s=5.0, containers=lambda it: {"c"} if it == pid else ()
        )
        try:
            assert program.stdout is not None
            assert await program.stdout.readline() == b"taken\n"
            leaving = await taints.before_end("c", "job")
            assert leaving is not None
            assert max(leaving.held.values()) >= 4 * GIB
        finally:
            program.kill()
            await program.wait()
        await taints.after_end(leaving)
        assert all(one.tainted is None for one in taints.shown(await inventory.read()))

    async def test_a_program_that_does_not_end_taints_its_device_until_it_does(
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("worker.devices.taints.TOLD_S", 0.1)
        inventory = NvmlDevices()
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _TAKES_MEMORY, str(GIB), stdout=asyncio.subprocess.PIPE
        )
        pid = program.pid
        taints = DeviceTaints(
            inventory, within_s=0.5, containers=lambda it: {"c"} if it == pid else ()
        )
        try:
            assert program.stdout is not None
            assert await program.stdout.readline() == b"taken\n"
            leaving = await taints.before_end("c", "job")
            assert leaving is not None
            await taints.after_end(leaving)
            marked = taints.shown(await inventory.read())
            assert [one.tainted.job_id for one in marked if one.tainted] == ["job"]
        finally:
            program.kill()
            await program.wait()

        async def free() -> bool:
            await taints.update()
            return all(one.tainted is None for one in taints.shown(await inventory.read()))

        await eventually(free, what="the end of the taint")
