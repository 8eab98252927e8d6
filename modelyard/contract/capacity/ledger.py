"""The ledger of a host: what jobs hold of its capacity, and what is left. Pure.

A job holds a container allocation from its placement until its container is gone, and a resident
allocation while its model is in memory. All are in one document of the record, one entry for each
job. No total is kept: what is allocated is the sum of the entries, here and in the guards of the
writes.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from modelyard.contract.capacity.needs import ContainerNeed, ResidentNeed
from modelyard.contract.capacity.offers import (
    Bytes,
    DeviceId,
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
    temporary: bool = False
    """True if it ends by itself: that of a TEMP."""
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
        temporary: bool = False,
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
            temporary=temporary,
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
        return self.takes_one_alone if amount is None else amount <= self.free

    @property
    def takes_one_alone(self) -> bool:
        """True if a model could have the device for itself now."""
        return self.tainted is None and self.untouched and self.free >= WHOLE * self.memory

    def could_take(self, need: ResidentNeed) -> bool:
        """Tell whether the device would have room for a model if nothing were on it."""
        amount = need.on(self.model)
        return amount is None or amount <= self.memory

    def given(self, need: ResidentNeed) -> int:
        """Return the bytes that a model with this need holds on it."""
        amount = need.on(self.model)
        return self.memory if amount is None else amount


@dataclass(frozen=True, slots=True)
class DevicesOfAKind:
    """The devices of one model on a host, as numbers for quick decisions."""

    model: str
    sizes: tuple[int, ...]
    """Bytes that each has, the least first."""
    free: tuple[int, ...]
    """Bytes that are free on each, the least first."""
    whole: int
    """Those that one model could have for itself."""

    @classmethod
    def of(cls, model: str, devices: Sequence[DeviceRoom]) -> "DevicesOfAKind":
        """Return the numbers of some devices of one model."""
        return cls(
            model,
            tuple(sorted([one.memory for one in devices])),
            tuple(sorted([one.free for one in devices])),
            sum([one.takes_one_alone for one in devices]),
        )


def has_devices(
    kinds: Sequence[DevicesOfAKind],
    amounts: Mapping[str, int | None],
    count: int,
    *,
    loads: bool,
) -> bool:
    """Tell whether enough devices could have a model, or, with `loads`, have room for it now.

    `amounts` has the bytes that it needs on a device, by the device's model; None: all of them.
    """
    fitting = 0
    for kind in kinds:
        amount, there = amounts[kind.model], kind.free if loads else kind.sizes
        if amount is None:
            fitting += kind.whole if loads else len(kind.sizes)
        else:
            fitting += len(there) - bisect_left(there, amount)
    return fitting >= count


@dataclass(frozen=True)
class Room:
    """What is left of a host. None means that it is not limited."""

    slots: int | None = None
    millicpus: int | None = None
    memory: int | None = None
    devices: Mapping[str, DeviceRoom] = field(default_factory=dict)

    @cached_property
    def kinds_of_devices(self) -> tuple[DevicesOfAKind, ...]:
        """The devices to which something new may go, by their model."""
        by_model: dict[str, list[DeviceRoom]] = defaultdict(list)
        for one in self.devices.values():
            if one.tainted is None:
                by_model[one.model].append(one)
        return tuple(DevicesOfAKind.of(model, there) for model, there in by_model.items())

    def has_devices(self, need: ResidentNeed, count: int, *, loads: bool) -> bool:
        """Tell whether so many devices could have a model, or, with `loads`, have room for it."""
        amounts = {one.model: need.on(one.model) for one in self.kinds_of_devices}
        return has_devices(self.kinds_of_devices, amounts, count, loads=loads)

    def without(self, taken: Allocation) -> "Room":
        """Return what is left after one more allocation."""
        return replace(
            self,
            slots=_less(self.slots, taken.slots),
            millicpus=_less(self.millicpus, taken.millicpus),
            memory=_less(self.memory, taken.all_memory),
            devices=_devices_less(
                self.devices, taken.devices, taken.resident.devices if taken.resident else {}
            ),
        )

    def without_memory(self, memory: int, devices: Mapping[str, int]) -> "Room":
        """Return what is left after models take so many bytes of the host and of its devices."""
        return replace(
            self,
            memory=_less(self.memory, memory),
            devices=_devices_less(self.devices, (), devices),
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
    allocations: Sequence[Allocation],
    used: Mapping[str, int] = MappingProxyType({}),
    taints: Mapping[str, DeviceTaint] = MappingProxyType({}),
) -> Room:
    """Return what is left of a host.

    `used` are the bytes of each device, by uuid, that were measured to be in use: somebody else may
    use it. Free is what is left of the memory after the larger one of allocated and measured: what
    jobs hold and do not use yet is not free, and what is used and held by no job neither.
    """
    slots = millicpus = memory = 0
    taken, bound = held_on_devices(allocations), Counter[str]()
    for one in allocations:
        slots += one.slots
        millicpus += one.millicpus
        memory += one.all_memory
        for uuid in one.devices:
            bound[uuid] += 1
    return Room(
        _less(total.slots, slots),
        _less(total.millicpus, millicpus),
        _less(total.memory, memory),
        {
            uuid: DeviceRoom(
                one.memory,
                min(one.free - taken[uuid], one.memory - used.get(uuid, 0)),
                one.bound + bound[uuid],
                one.untouched and uuid not in taken,
                taints.get(uuid),
                one.model,
            )
            for uuid, one in total.devices.items()
        },
    )


def held_on_devices(allocations: Iterable[Allocation]) -> Counter[str]:
    """Return the bytes that models in memory hold, by device."""
    held: Counter[str] = Counter()
    for one in allocations:
        if one.resident is not None:
            for uuid, amount in one.resident.devices.items():
                held[uuid] += amount
    return held


def used_part(total: Room, room: Room) -> float:
    """Return the part of a host that is used, 0 to 1: of slots, processors or memory the most."""
    parts = (
        1 - left / whole
        for whole, left in (
            (total.slots, room.slots),
            (total.millicpus, room.millicpus),
            (total.memory, room.memory),
        )
        if whole and left is not None
    )
    return max(parts, default=0.0)


def _less(left: int | None, taken: int) -> int | None:
    return None if left is None else left - taken


def _devices_less(
    devices: Mapping[str, DeviceRoom], bound: Iterable[str], taken: Mapping[str, int]
) -> Mapping[str, DeviceRoom]:
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
