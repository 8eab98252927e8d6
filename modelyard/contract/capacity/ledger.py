"""The ledger of a host: what jobs hold of its capacity, and what is left. Pure.

A job holds a container allocation from its placement until its container is gone, and a resident
allocation while its model is in memory. All are in one document of the record, one entry for each
job. No total is kept: what is allocated is the sum of the entries, here and in the guards of the
writes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from modelyard.contract.capacity.needs import ContainerNeed, ResidentNeed
from modelyard.contract.capacity.offers import (
    Bytes,
    DeviceId,
    DeviceReading,
    DeviceTaint,
    HostCapacity,
)

WHOLE = 0.9
"""The part of a device's memory that must be free before it is given to one model alone: a driver
and a display use some of it on an idle device."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ResidentAllocation(_Entry):
    """What a job holds while its model is in memory."""

    version: int = 0
    """The job's version when this was given, so that an earlier attempt can't take it back."""
    memory: Bytes = 0
    devices: dict[DeviceId, Bytes] = Field(default_factory=dict)
    """Bytes on each device; a whole device is all of its memory."""


class Allocation(_Entry):
    """What one generation of a job holds of its host."""

    job_id: str
    generation: int
    slots: int = 1
    millicpus: Annotated[int, Field(ge=0)] = 0
    memory: Bytes = 0
    devices: tuple[DeviceId, ...] = ()
    """The devices that are bound to its container."""
    resident: ResidentAllocation | None = None

    @property
    def all_memory(self) -> int:
        """Bytes of host memory of the container, and of its model while that is in memory."""
        return self.memory + (self.resident.memory if self.resident else 0)

    @classmethod
    def of(
        cls,
        job_id: str,
        generation: int,
        need: ContainerNeed,
        *,
        devices: tuple[str, ...] = (),
        resident: ResidentAllocation | None = None,
    ) -> "Allocation":
        """Return the allocation that meets a need."""
        return cls(
            job_id=job_id,
            generation=generation,
            slots=need.slots,
            millicpus=need.millicpus,
            memory=need.memory,
            devices=devices,
            resident=resident,
        )


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """One device: what it has, and what is left of it."""

    memory: int
    free: int
    """Bytes that neither a job holds nor, as measured, any program uses."""
    bound: int = 0
    """Containers that it is bound to."""
    untouched: bool = True
    """True if no job holds memory on it."""
    tainted: DeviceTaint | None = None
    """Set while memory of a container that has ended is still taken: nothing new goes there."""
    model: str = ""
    """What it is: models take more on one kind of device than on another."""

    def takes(self, need: ResidentNeed) -> bool:
        """Tell whether the device has room for a model now."""
        if self.tainted is not None:
            return False
        amount = need.on(self.model)
        if amount is None:
            return self.untouched and self.free >= WHOLE * self.memory
        return amount <= self.free

    def could_take(self, need: ResidentNeed) -> bool:
        """Tell whether the device would have room for a model if nothing were on it."""
        amount = need.on(self.model)
        return amount is None or amount <= self.memory

    def given(self, need: ResidentNeed) -> int:
        """Return the bytes that a model with this need holds on it."""
        amount = need.on(self.model)
        return self.memory if amount is None else amount


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of a host. None means that it is not limited."""

    slots: int | None = None
    millicpus: int | None = None
    memory: int | None = None
    devices: Mapping[str, DeviceRoom] = field(default_factory=dict)

    def without(self, taken: Allocation) -> "Room":
        """Return what is left after one more allocation."""
        return replace(
            self,
            slots=_less(self.slots, taken.slots),
            millicpus=_less(self.millicpus, taken.millicpus),
            memory=_less(self.memory, taken.all_memory),
            devices=_devices_less(self.devices, taken.devices, taken.resident),
        )

    def without_resident(self, taken: ResidentAllocation) -> "Room":
        """Return what is left after one more model is in memory."""
        return replace(
            self,
            memory=_less(self.memory, taken.memory),
            devices=_devices_less(self.devices, (), taken),
        )


def total_room(slots: int | None, capacity: HostCapacity | None) -> Room:
    """Return the room of an empty host; without `capacity` only its slots are known."""
    if capacity is None:
        return Room(slots)
    return Room(
        slots,
        capacity.allocatable_millicpus,
        capacity.allocatable_memory,
        {one.uuid: DeviceRoom(one.memory, one.memory, model=one.model) for one in capacity.devices},
    )


def room_left(
    total: Room,
    allocations: Iterable[Allocation],
    readings: Iterable[DeviceReading] = (),
    taints: Mapping[str, DeviceTaint] = MappingProxyType({}),
) -> Room:
    """Return what is left of a host.

    Of a device, what is measured counts as well: somebody else may use it. Free is what is left of
    the memory after the larger one of allocated and measured: what jobs hold and do not use yet is
    not free, and what is used and held by no job neither.
    """
    room = total
    for one in allocations:
        room = room.without(one)
    measured = {one.uuid: one.memory_used for one in readings}
    devices = {
        uuid: replace(
            one,
            free=min(one.free, one.memory - measured.get(uuid, 0)),
            tainted=taints.get(uuid),
        )
        for uuid, one in room.devices.items()
    }
    return replace(room, devices=devices)


def _less(left: int | None, taken: int) -> int | None:
    return None if left is None else left - taken


def _devices_less(
    devices: Mapping[str, DeviceRoom], bound: Iterable[str], resident: ResidentAllocation | None
) -> Mapping[str, DeviceRoom]:
    taken = resident.devices if resident else {}
    changed = {
        uuid: replace(
            devices[uuid],
            free=devices[uuid].free - taken.get(uuid, 0),
            bound=devices[uuid].bound + (uuid in bound),
            untouched=devices[uuid].untouched and uuid not in taken,
        )
        for uuid in {*bound, *taken}
        if uuid in devices
    }
    return {**devices, **changed} if changed else devices
