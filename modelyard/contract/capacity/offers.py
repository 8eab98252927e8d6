"""What a host offers, as its worker announces it, and what was measured of its devices."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_DEVICES = 64
MILLI = 1_000
"""Processors are counted in thousandths: whole numbers add up exactly."""

MAX_BYTES = 1 << 50
MAX_CPUS = 100_000

Bytes = Annotated[int, Field(ge=0, le=MAX_BYTES)]
Cpus = Annotated[float, Field(ge=0, le=MAX_CPUS, allow_inf_nan=False)]
DeviceId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_:/-]{0,127}$")]
"""A device's uuid as its driver names it, such as `GPU-8f2c...`. It is a key in MongoDB documents,
so it has no dot."""


class _Offer(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True
    )


class Device(_Offer):
    """One accelerator: a GPU, or a MIG instance of one."""

    uuid: DeviceId
    index: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Its number on the host, for people; Modelyard uses the uuid alone."""
    model: Annotated[str, StringConstraints(max_length=128)] = ""
    """What it is, such as `NVIDIA H100 80GB HBM3`."""
    memory: Annotated[Bytes, Field(gt=0)]
    """Bytes of memory that it has for programs."""


class DeviceTaint(_Offer):
    """Memory of a device that did not become free when a container ended.

    Nothing new goes to the device until it is measured to be free.
    """

    memory: Bytes
    """Bytes that are still taken."""
    job_id: Annotated[str, StringConstraints(max_length=128)] = ""
    """Whose container it was."""


class DeviceReading(_Offer):
    """What was measured of one device."""

    uuid: DeviceId
    memory_used: Bytes
    """Bytes in use by anyone, other programs on the host among them."""
    utilisation: Annotated[int, Field(ge=0, le=100)] | None = None
    """Percent of the time in which it was at work; null if the device does not tell."""
    temperature_c: Annotated[int, Field(ge=-273, le=1_000)] | None = None
    processes: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    """Programs that compute on it."""
    tainted: DeviceTaint | None = None
    """Set while memory of a container that has ended is still taken."""


def taints_of(readings: Iterable[DeviceReading]) -> dict[str, DeviceTaint]:
    """Return the tainted devices by uuid."""
    return {one.uuid: one.tainted for one in readings if one.tainted is not None}


class HostCapacity(_Offer):
    """What a host has, what is kept from that for the system, and its devices."""

    cpus: Cpus
    memory: Bytes
    reserved_cpus: Cpus = 0.0
    reserved_memory: Bytes = 0
    devices: Annotated[tuple[Device, ...], Field(max_length=MAX_DEVICES)] = ()

    @model_validator(mode="after")
    def _no_device_twice(self) -> "HostCapacity":
        if len({one.uuid for one in self.devices}) < len(self.devices):
            raise ValueError("two devices have the same uuid")
        return self

    @property
    def allocatable_millicpus(self) -> int:
        """Thousandths of processors for containers."""
        return max(0, millicpus(self.cpus) - millicpus(self.reserved_cpus))

    @property
    def allocatable_memory(self) -> int:
        """Bytes of host memory for containers."""
        return max(0, self.memory - self.reserved_memory)


def millicpus(cpus: float) -> int:
    """Return processors in thousandths, as they are counted."""
    return round(cpus * MILLI)
