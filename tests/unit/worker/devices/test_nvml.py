"""What is made of a driver's answers: MIG instances, devices that are lost, drivers that hang."""

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from modelyard.contract.capacity.offers import Device, DeviceReading
from tests.support.waiting import eventually
from worker.devices import nvml
from worker.devices.nvml import NvmlDevices
from worker.devices.protocol import DevicesUnreadableError

GIB = 1 << 30
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
LOST = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
NOT_FOUND = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
NO_DRIVER = pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


@dataclass
class Gpu:
    """One GPU or instance of a driver that the test makes up."""

    uuid: str
    used: int = GIB
    free: int = 79 * GIB
    instances: list["Gpu"] = field(default_factory=list)
    mig: bool = False
    knows_mig: bool = True
    knows_load: bool = True
    load: int = 37
    temperature: int = 51
    name: bytes = b"NVIDIA H100"
    lost: bool = False
    taken: dict[int, int | None] = field(default_factory=lambda: {1: GIB // 2, 2: GIB // 2})
    """Bytes by process id; None where the driver may not look."""


class Driver:
    """Stands in for the functions of `pynvml` that are used."""

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = list(gpus)
        self.open = 0
        self.failure: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        self.answers.wait()
        if self.failure is not None:
            raise self.failure
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Gpu:  # noqa: N802
        if self.gpus[number].lost:
            raise LOST
        return self.gpus[number]

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> list[int]:  # noqa: N802
        if not gpu.knows_mig:
            raise NOT_SUPPORTED
        return [int(gpu.mig), int(gpu.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:  # noqa: ARG002, N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, number: int) -> Gpu:  # noqa: N802
        if number >= len(gpu.instances):
            raise NOT_FOUND
        return gpu.instances[number]

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:  # noqa: N802
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:  # noqa: N802
        return gpu.name.decode()

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu, version: int | None = None) -> Any:  # noqa: N802
        if version is None:
            return SimpleNamespace(total=gpu.used + gpu.free, used=gpu.used, free=gpu.free)
        if not gpu.knows_mig:
            raise NOT_SUPPORTED
        reserved = GIB // 2
        total = gpu.used + gpu.free + reserved
        return SimpleNamespace(total=total, reserved=reserved, used=gpu.used, free=gpu.free)

    def nvmlDeviceGetUtilizationRates(self, gpu: Gpu) -> Any:  # noqa: N802
        if not gpu.knows_load:
            raise NOT_SUPPORTED
        return SimpleNamespace(gpu=gpu.load, memory=5)

    def nvmlDeviceGetTemperatureV(self, gpu: Gpu, sensor: int) -> int:  # noqa: ARG002, N802
        if not gpu.knows_load:
            raise NOT_SUPPORTED
        return gpu.temperature

    def nvmlDeviceGetComputeRunningProcesses_v3(self, gpu: Gpu) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=amount) for pid, amount in gpu.taken.items()]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    for name in dir(Driver):
        if name.startswith("nvml"):
            monkeypatch.setattr(pynvml, name, getattr(made, name))
    return made


def device(uuid: str, index: int = 0) -> Device:
    return Device(uuid=uuid, index=index, model="NVIDIA H100", memory=80 * GIB)


async def test_memory_that_the_driver_keeps_for_itself_is_not_offered(driver: Driver) -> None:
    driver.gpus = [Gpu("GPU-a"), Gpu("GPU-b", knows_mig=False)]
    assert await NvmlDevices().found() == (device("GPU-a"), device("GPU-b", 1))
    assert driver.open == 0


async def test_a_gpu_in_mig_mode_is_its_instances(driver: Driver) -> None:
    parts = [Gpu("MIG-1"), Gpu("MIG-2", knows_load=False)]
    driver.gpus = [Gpu("GPU-a", mig=True, instances=parts), Gpu("GPU-b")]
    devices = NvmlDevices()
    assert await devices.found() == (
        device("MIG-1"), device("MIG-2", 1), device("GPU-b", 2),
    )  # fmt: skip
    readings = await devices.read()
    assert [one.uuid for one in readings] == ["MIG-1", "MIG-2", "GPU-b"]
    assert readings[1] == DeviceReading(uuid="MIG-2", memory_used=GIB, processes=2)
    assert readings[2] == DeviceReading(
        uuid="GPU-b", memory_used=GIB, utilisation=37, temperature_c=51, processes=2
    )


async def test_a_gpu_that_fell_off_the_bus_hides_no_other(driver: Driver) -> None:
    driver.gpus = [Gpu("GPU-a", lost=True), Gpu("GPU-b")]
    assert [one.uuid for one in await NvmlDevices().found()] == ["GPU-b"]
    assert [one.uuid for one in await NvmlDevices().read()] == ["GPU-b"]
    assert driver.open == 0


async def test_a_host_whose_driver_is_not_loaded_has_no_devices(driver: Driver) -> None:
    driver.failure = NO_DRIVER
    assert await NvmlDevices().found() == ()
    assert await NvmlDevices().read() == ()


async def test_a_driver_that_fails_is_not_taken_for_a_host_without_devices(driver: Driver) -> None:
    driver.failure = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(DevicesUnreadableError, match="version mismatch"):
        await NvmlDevices().found()


async def test_a_driver_that_hangs_is_asked_once(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "ANSWER_S", 0.05)
    driver.gpus = [Gpu("GPU-a")]
    driver.answers.clear()
    devices = NvmlDevices()
    try:
        with pytest.raises(DevicesUnreadableError, match="does not answer"):
            await devices.read()
        with pytest.raises(DevicesUnreadableError, match="has not answered the last question"):
            await devices.read()
    finally:
        driver.answers.set()
    monkeypatch.setattr(nvml, "ANSWER_S", 10.0)

    async def found() -> tuple[Device, ...] | None:
        with suppress(DevicesUnreadableError):
            return await devices.found()
        return None

    assert await eventually(found, what="the driver's answer") == (device("GPU-a"),)


async def test_programs_are_told_by_device_and_process(driver: Driver) -> None:
    parts = [Gpu("MIG-1", taken={7: GIB}), Gpu("MIG-2", taken={})]
    driver.gpus = [Gpu("GPU-a", mig=True, instances=parts), Gpu("GPU-b")]
    assert await NvmlDevices().programs() == {
        "MIG-1": {7: GIB},
        "MIG-2": {},
        "GPU-b": {1: GIB // 2, 2: GIB // 2},
    }


async def test_a_device_that_does_not_tell_what_each_program_takes_is_left_out(
    driver: Driver,
) -> None:
    driver.gpus = [Gpu("GPU-a", taken={1: GIB, 2: None}), Gpu("GPU-b"), Gpu("GPU-c", lost=True)]
    assert list(await NvmlDevices().programs()) == ["GPU-b"]


async def test_a_number_that_can_not_be_counts_as_not_known(driver: Driver) -> None:
    driver.gpus = [Gpu("GPU-a", load=(1 << 32) - 1, temperature=-300)]
    reading = DeviceReading(uuid="GPU-a", memory_used=GIB, processes=2)
    assert await NvmlDevices().read() == (reading,)


async def test_a_device_whose_memory_can_not_be_hides_no_other(driver: Driver) -> None:
    driver.gpus = [Gpu("GPU-a", used=-1), Gpu("GPU-b")]
    devices = NvmlDevices()
    assert [one.uuid for one in await devices.read()] == ["GPU-b"]
    driver.gpus[0] = Gpu("GPU-a", taken={1: -1})
    assert list(await devices.programs()) == ["GPU-b"]
    driver.gpus[0] = Gpu("GPU-a", taken={1: 1 << 60})
    assert list(await devices.programs()) == ["GPU-b"]


async def test_a_device_whose_name_is_no_text_hides_no_other(driver: Driver) -> None:
    driver.gpus = [Gpu("GPU-a", name=b"\xff"), Gpu("GPU-b")]
    assert [one.uuid for one in await NvmlDevices().found()] == ["GPU-b"]


async def test_a_device_that_the_driver_names_twice_is_one(driver: Driver) -> None:
    driver.gpus = [Gpu("GPU-a"), Gpu("GPU-a"), Gpu("GPU-b")]
    assert [one.uuid for one in await NvmlDevices().found()] == ["GPU-a", "GPU-b"]


async def test_an_answer_that_is_none_is_not_taken_for_a_host_without_devices(
    driver: Driver,
) -> None:
    driver.failure = ValueError("not UTF-8")
    with pytest.raises(DevicesUnreadableError, match="not UTF-8"):
        await NvmlDevices().read()


def test_a_driver_that_hangs_does_not_keep_a_process_from_its_end(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "ANSWER_S", 0.01)
    driver.answers.clear()

    async def ask() -> None:
        with suppress(DevicesUnreadableError):
            await NvmlDevices().read()

    process = threading.Thread(target=asyncio.run, args=(ask(),))
    process.start()
    process.join(10)
    ended = not process.is_alive()
    driver.answers.set()
    process.join(10)
    assert ended
