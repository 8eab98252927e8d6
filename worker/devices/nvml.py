"""NVIDIA GPUs and their MIG instances, as the driver's own library (NVML) tells about them.

A GPU in MIG mode is not a device itself: programs use its instances. Source: NVIDIA's NVML API
reference; the functions and error codes are those of `nvidia-ml-py`. Only this module imports it.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml
import structlog
from pydantic import ValidationError

from modelyard.contract.capacity.offers import MAX_BYTES, MAX_DEVICES, Device, DeviceReading
from modelyard.process.tasks import in_daemon_thread
from worker.devices.protocol import DevicesUnreadableError

log = structlog.get_logger(__name__)

ANSWER_S = 5.0
"""Seconds that the driver may take for one answer: a broken GPU can block its calls."""
_NO_DRIVER = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)
_UNUSABLE = (pynvml.NVMLError, ValueError)
"""The driver has no answer, or one that can't be: its text is not UTF-8, or no message takes it."""
_LIBRARY = threading.Lock()
"""One thread at a time asks the driver."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Found:
    """A device with the library's handle of it, which is valid until the library is shut down."""

    device: Device
    handle: Any


class NvmlDevices:
    """The GPUs of this host; a host without NVIDIA's driver has none."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._asking: asyncio.Future[Any] | None = None

    async def found(self) -> tuple[Device, ...]:
        """Return all GPUs and MIG instances, by index; raises `DevicesUnreadableError`."""
        return await self._ask(lambda: tuple(one.device for one in _devices()))

    async def read(self) -> tuple[DeviceReading, ...]:
        """Measure them; raises `DevicesUnreadableError`."""
        return await self._ask(_readings)

    async def programs(self) -> Mapping[str, Mapping[int, int]]:
        """Ask which programs compute on them; raises `DevicesUnreadableError`."""
        return dict(await self._ask(_programs))

    async def driver_version(self) -> str | None:
        """Return the driver's version; None without one. Raises `DevicesUnreadableError`."""
        found = await self._ask(lambda: (_text(pynvml.nvmlSystemGetDriverVersion()),))
        return found[0] if found else None

    async def _ask(self, question: Callable[[], tuple[T, ...]]) -> tuple[T, ...]:
        """Ask in a thread, one question at a time.

        While the driver has not answered the last one, which may be never, it is not asked again.
        """
        async with self._turn:
            if self._asking is not None and not self._asking.done():
                raise DevicesUnreadableError("the driver has not answered the last question yet")
            self._asking = in_daemon_thread(lambda: _with_library(question), name="nvml")
            try:
                async with asyncio.timeout(ANSWER_S):
                    found: tuple[T, ...] = await asyncio.shield(self._asking)
            except TimeoutError as error:
                raise DevicesUnreadableError("the driver does not answer") from error
            except (*_UNUSABLE, OSError) as error:
                raise DevicesUnreadableError(str(error)) from error
            return found


def _with_library(question: Callable[[], tuple[T, ...]]) -> tuple[T, ...]:
    """Answer with the library loaded each time anew: the driver may be replaced meanwhile."""
    with _LIBRARY:
        try:
            pynvml.nvmlInit()
        except _NO_DRIVER:
            return ()
        try:
            return question()
        finally:
            pynvml.nvmlShutdown()


def _devices() -> list[_Found]:
    found: list[_Found] = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        try:
            gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
            handles = list(_instances(gpu)) if _in_mig_mode(gpu) else [gpu]
            found += [
                _described(handle, index) for index, handle in enumerate(handles, start=len(found))
            ]
        except _UNUSABLE as error:  # the others are not hidden by it
            log.debug("device.unusable", index=number, error=str(error)[:200])
    found = list({one.device.uuid: one for one in found}.values())
    if len(found) > MAX_DEVICES:
        log.warning("devices.too_many", found=len(found), used=MAX_DEVICES)
    return found[:MAX_DEVICES]


def _in_mig_mode(gpu: object) -> bool:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(gpu)
    except pynvml.NVMLError_NotSupported:
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _instances(gpu: object) -> Iterator[object]:
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        with suppress(pynvml.NVMLError_NotFound):
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)


def _described(handle: object, index: int) -> _Found:
    memory = _memory(handle)
    device = Device(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        index=index,
        model=_text(pynvml.nvmlDeviceGetName(handle))[:128],
        memory=memory.free + memory.used,
    )
    return _Found(device, handle)


def _readings() -> tuple[DeviceReading, ...]:
    readings: list[DeviceReading] = []
    for one in _devices():
        with suppress(*_UNUSABLE):  # it is missing then, and the others are not
            readings.append(_measured(one))
    return tuple(readings)


def _measured(one: _Found) -> DeviceReading:
    """Measure a device; a number that can't be counts as not known.

    Raises `ValidationError` if that is the memory in use.
    """
    found = {
        "uuid": one.device.uuid,
        "memory_used": _memory(one.handle).used,
        "utilisation": _known(lambda: pynvml.nvmlDeviceGetUtilizationRates(one.handle).gpu),
        "temperature_c": _known(
            lambda: pynvml.nvmlDeviceGetTemperatureV(one.handle, pynvml.NVML_TEMPERATURE_GPU)
        ),
        "processes": _known(
            lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses_v3(one.handle))
        ),
    }
    try:
        return DeviceReading.model_validate(found)
    except ValidationError as error:
        impossible = {fault["loc"][0] for fault in error.errors()}
        possible = {name: value for name, value in found.items() if name not in impossible}
        return DeviceReading.model_validate(possible)


def _programs() -> tuple[tuple[str, Mapping[int, int]], ...]:
    found: list[tuple[str, Mapping[int, int]]] = []
    for one in _devices():
        with suppress(*_UNUSABLE):  # it is missing then, and the others are not
            running = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(one.handle)
            taken = {it.pid: it.usedGpuMemory for it in running}
            # The driver has no number where it may not look: all of them or nothing.
            if all(isinstance(it, int) and 0 <= it <= MAX_BYTES for it in taken.values()):
                found.append((one.device.uuid, taken))
    return tuple(found)


def _memory(handle: object) -> Any:  # noqa: ANN401 - a structure of the library
    """Return memory without what the driver keeps for itself, where it tells that apart."""
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _known(measure: Callable[[], int]) -> int | None:
    """Return a measurement; None if this device or its driver does not have it."""
    with suppress(*_UNUSABLE):
        return measure()
    return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
