"""Placement: which host a job goes to, and what it holds there. Pure.

A snapshot in, a decision with its reasons out. The rules are in docs/capacity.md.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.capacity.ledger import (
    Allocation,
    DeviceRoom,
    ResidentAllocation,
    Room,
)
from modelyard.contract.capacity.needs import (
    ContainerNeed,
    ResidentNeed,
    container_need,
    holds_while_loaded,
    need_beside,
    resident_need,
)
from modelyard.contract.capacity.offers import MILLI, DeviceTaint
from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.states import Admission, Liveness
from modelyard.store.records import HostRecord, JobRecord

LearnedOf = Callable[[ModelSpec], Learned]
"""Returns what was learned of a model."""

_LEAST_MILLICPUS, _LEAST_MEMORY = 10, 6 << 20
"""The smallest container that Docker makes."""


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What a job needs of its host."""

    job_id: str = ""
    generation: int = 1
    version: int = 0
    """The job's version, as the resident allocation names it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    container: ContainerNeed = field(default_factory=ContainerNeed)
    resident: ResidentNeed = field(default_factory=ResidentNeed)
    at_once: bool = False
    """True if the model comes into memory by the same operation."""
    avoid: frozenset[str] = frozenset()
    """Hosts that are chosen only if no other fits."""

    @classmethod
    def of(
        cls,
        job: JobRecord,
        spec: ModelSpec,
        learned: Learned,
        *,
        at_once: bool,
        avoid: frozenset[str] = frozenset(),
    ) -> "PlacementRequest":
        """Return what the next container of a job needs."""
        return cls(
            job_id=job.job_id,
            generation=job.next_generation,
            version=job.version,
            labels=spec.host_labels,
            container=container_need(spec, learned),
            resident=resident_need(spec, learned),
            at_once=at_once,
            avoid=avoid,
        )


@dataclass(frozen=True, slots=True)
class Placed:
    """The host that was chosen, and what the job holds of it."""

    host: HostRecord
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class Unplaced:
    """No host fits now; the reasons are for people."""

    reasons: tuple[str, ...]
    hopeless: bool = False
    """True if no known host would fit even when empty: only another host would help."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is being cleared on a host for the model of one job; others may not take it."""

    host_id: str
    job_id: str
    need: ResidentNeed
    devices: tuple[str, ...]


class FreeCapacity:
    """The hosts of one snapshot, and what earlier decisions of this pass left of them."""

    def __init__(
        self,
        hosts: Mapping[str, HostRecord],
        kept: Iterable[Kept] = (),
        learned: LearnedOf = lambda _: NOTHING_LEARNED,
    ) -> None:
        """`hosts` are by id; ties go to the first of them."""
        self.learned = learned
        self._hosts = hosts
        self._kept = tuple(kept)
        self._refused: dict[object, Unplaced] = {}
        """By what was needed: room only becomes less within a pass."""
        self._left: dict[str, Room] = {}
        """The room of hosts that this pass has taken something of."""

    def host(self, host_id: str) -> HostRecord | None:
        """Return a host of the snapshot."""
        return self._hosts.get(host_id)

    @property
    def any_left(self) -> bool:
        """True if some host has room for the smallest container."""
        least = PlacementRequest(
            container=ContainerNeed(millicpus=_LEAST_MILLICPUS, memory=_LEAST_MEMORY)
        )
        return any(
            _refusal(host, least, self._room(host, "")) is None for host in self._hosts.values()
        )

    def place(self, need: PlacementRequest) -> Placed | Unplaced:
        """Choose the host that is used least among those that fit, and take what the job needs.

        Hosts in `need.avoid`, where an attempt has failed, are chosen only if no other fits; hosts
        on which the model could not be loaded now, only if there is no other either. Ties go to the
        first host id, so that the same snapshot always gives the same answer.
        """
        labels = tuple(sorted(need.labels.items()))
        same_need = (labels, need.container, need.resident, need.at_once)
        if (known := self._refused.get(same_need)) is not None:
            return known
        refusals: Counter[_Refusal] = Counter()
        best: tuple[tuple[object, ...], HostRecord, Room, tuple[str, ...]] | None = None
        for host in self._hosts.values():
            room = self._room(host, need.job_id)
            refusal = _refusal(host, need, room)
            if refusal is not None:
                refusals[refusal] += 1
                continue
            devices = _chosen_devices(room, need)
            key = (
                host.host_id in need.avoid,
                not _loads_now(room, need, devices),
                _used_part(host.total, room, need.container),
                host.host_id,
            )
            if best is None or key < best[0]:
                best = key, host, room, devices
        if best is None:
            hopeful = any(_may_fit(host, need) for host in self._hosts.values())
            unplaced = Unplaced(_explain(refusals, need), hopeless=not hopeful)
            if _OWN not in refusals and not self._kept:
                self._refused[same_need] = unplaced
            return unplaced
        _, host, room, devices = best
        allocation = Allocation.of(
            need.job_id,
            need.generation,
            need.container,
            devices=devices,
            resident=_resident(need.resident, devices, room, need.version)
            if need.at_once
            else None,
        )
        self._left[host.host_id] = self._left_of(host).without(allocation)
        return Placed(host, allocation)

    def hold(self, job: JobRecord, spec: ModelSpec) -> ResidentAllocation | Unplaced | None:
        """Take what a job's model needs in memory, on the devices that are bound to its container.

        None if it needs no more than its container holds.
        """
        host = self._hosts.get(job.host_id or "")
        if not holds_while_loaded(spec) or host is None:
            return None
        held = host.reservation(job.job_id, job.generation)
        if held is None:
            return Unplaced((f"host {host.host_id} does not hold a place for this job yet",))
        need = need_beside(spec, self.learned(spec), held.memory)
        # A container of an older version has no devices bound: nobody knows which it uses.
        bound = held.devices if len(held.devices) == need.devices else ()
        room = self._room(host, job.job_id)
        if held.resident is not None:
            # It was given to an earlier attempt, which did not come to an end.
            return held.resident.model_copy(update={"version": job.version})
        reason = _not_loadable(room, need, bound)
        if reason is not None:
            return Unplaced((f"host {host.host_id} {reason}",))
        resident = _resident(need, bound, room, job.version)
        if resident is not None:
            self._left[host.host_id] = self._left_of(host).without_resident(resident)
        return resident

    def request_to_load(self, job: JobRecord, spec: ModelSpec) -> PlacementRequest:
        """Return what a job's model needs that `hold` did not get on its host."""
        learned = self.learned(spec)
        request = PlacementRequest.of(job, spec, learned, at_once=True)
        host = self._hosts.get(job.host_id or "")
        held = host.reservation(job.job_id, job.generation) if host else None
        if held is None:
            return request
        return replace(request, resident=need_beside(spec, learned, held.memory))

    def _left_of(self, host: HostRecord) -> Room:
        return self._left.get(host.host_id) or host.room

    def _room(self, host: HostRecord, job_id: str) -> Room:
        """Return what is left of a host for a job, without what is kept for others."""
        room = self._left_of(host)
        for kept in self._kept:
            if kept.host_id == host.host_id and kept.job_id != job_id and _still_waits(kept, host):
                resident = _resident(kept.need, kept.devices, room, 0)
                room = room if resident is None else room.without_resident(resident)
        return room


class _Lacks(Enum):
    """What a host has too little of."""

    SLOTS = "slots"
    CPUS = "cpus"
    MEMORY = "memory"
    DEVICES = "devices"


@dataclass(frozen=True, slots=True)
class _Shortage:
    lacks: _Lacks
    when_empty: bool
    """True if the host would have too little of it without any job."""
    wanted: str = ""
    """What it should have on a device, if that is what it lacks."""


_Refusal = str | _Shortage
_OWN = "still has a reservation of this job"


def _still_waits(kept: Kept, host: HostRecord) -> bool:
    """Tell whether the job that room is kept for has a container here and holds no memory yet."""
    return any(one.job_id == kept.job_id and one.resident is None for one in host.reservations)


def _refusal(host: HostRecord, need: PlacementRequest, room: Room) -> _Refusal | None:
    """Return why a host can't take a job now; the same for many hosts."""
    closed = _closed(host, need)
    if closed is not None:
        return closed
    for left, when_empty in ((host.total, True), (room, False)):
        lacks = _lacks(left, need, when_empty=when_empty)
        if lacks is not None:
            wanted = _wanted_text(left, need.resident) if lacks is _Lacks.DEVICES else ""
            return _Shortage(lacks, when_empty, wanted)
    if any(held.job_id == need.job_id for held in host.reservations):
        return _OWN
    return None


def _closed(host: HostRecord, need: PlacementRequest) -> str | None:
    if host.liveness is not Liveness.ONLINE:
        return f"is {host.liveness}"
    if host.admission is not Admission.OPEN:
        return f"is {host.admission}"
    for label, value in need.labels.items():
        if host.labels.get(label) != value:
            return f"does not have the label {label}={value}"
    return None


def _lacks(room: Room, need: PlacementRequest, *, when_empty: bool) -> _Lacks | None:
    """Return what there is too little of: now, or for the model too if the host were empty."""
    wanted, loads = need.container, need.at_once or when_empty
    if room.slots is not None and room.slots < wanted.slots:
        return _Lacks.SLOTS
    if room.millicpus is not None and room.millicpus < wanted.millicpus:
        return _Lacks.CPUS
    if room.memory is not None and room.memory < _memory(need, loads=loads):
        return _Lacks.MEMORY
    if not wanted.devices:
        return None
    devices = room.devices.values()
    if when_empty:
        fitting = sum(one.could_take(need.resident) for one in devices)
    elif loads:
        fitting = sum(one.takes(need.resident) for one in devices)
    else:  # binding takes no memory, and yet nothing new goes to a tainted device
        fitting = sum(one.could_take(need.resident) and one.tainted is None for one in devices)
    return _Lacks.DEVICES if fitting < wanted.devices else None


def loadable_when_empty(host: HostRecord, need: PlacementRequest) -> bool:
    """Tell whether a host would take a job now if no model were in memory on it."""
    if _closed(host, need) is not None or _lacks(host.total, need, when_empty=True) is not None:
        return False
    return _lacks(host.room, replace(need, at_once=False), when_empty=False) is None


def refusal_with_numbers(host: HostRecord, need: PlacementRequest) -> str | None:
    """Return why a host can't take a job now, with what it has; None if it can."""
    refusal = _refusal(host, need, host.room)
    if not isinstance(refusal, _Shortage):
        return refusal
    total, room = host.total, host.total if refusal.when_empty else host.room
    loads = need.at_once or refusal.when_empty
    tail = "even when empty" if refusal.when_empty else "now"
    match refusal.lacks:
        case _Lacks.SLOTS:
            return f"all of its {total.slots} slots are taken ({tail})"
        case _Lacks.CPUS:
            wanted, left = need.container.millicpus / MILLI, (room.millicpus or 0) / MILLI
            return f"it needs {wanted:g} CPUs, and {left:g} are free {tail}"
        case _Lacks.MEMORY:
            wanted_size = size_text(_memory(need, loads=loads))
            left_size = size_text(max(0, room.memory or 0))
            return f"it needs {wanted_size} of memory, and {left_size} are free {tail}"
        case _Lacks.DEVICES:
            wanted_there = _devices_text(need.resident, refusal.wanted)
            return f"it needs {wanted_there}; {_free_text(room)} {tail}"


def refusal_to_load(
    host: HostRecord, job: JobRecord, spec: ModelSpec, learned: Learned
) -> str | None:
    """Return why a job's model can't be loaded on its host now, with numbers; None if it can."""
    held = host.reservation(job.job_id, job.generation)
    if held is None or held.resident is not None or not holds_while_loaded(spec):
        return None
    need, room = need_beside(spec, learned, held.memory), host.room
    if _not_loadable(room, need, held.devices) is None:
        return None
    if room.memory is not None and room.memory < need.memory:
        left = size_text(max(0, room.memory))
        return f"it needs {size_text(need.memory)} of memory, and {left} are free"
    bound = {uuid: one for uuid, one in room.devices.items() if uuid in held.devices}
    there = replace(room, devices=bound)
    return f"it needs {_devices_text(need, _wanted_text(there, need))}; {_free_text(there)}"


def _wanted_text(room: Room, need: ResidentNeed) -> str:
    """Return how much of a device a model needs; empty if it needs all of it.

    Of several kinds of devices it may need different amounts: then of the one that comes first.
    """
    models = sorted({one.model for one in room.devices.values()}) or [""]
    amounts = [model for model in models if need.on(model) is not None]
    return need.text_on(amounts[0]) if amounts else ""


def _devices_text(need: ResidentNeed, wanted: str) -> str:
    count = "1 device" if need.devices == 1 else f"{need.devices} devices"
    return f"{wanted} on {count}" if wanted else f"{count} for itself"


def _free_text(room: Room) -> str:
    if not room.devices:
        return "there is no such device"
    parts = [
        _taint_text(uuid, one.tainted)
        if one.tainted is not None
        else f"{uuid} has {size_text(max(0, one.free))} of {size_text(one.memory)} free"
        for uuid, one in sorted(room.devices.items())
    ]
    return ", ".join(parts)


def _taint_text(uuid: str, taint: DeviceTaint) -> str:
    whose = f" by job {taint.job_id}" if taint.job_id else ""
    return f"the device {uuid} is tainted: {size_text(taint.memory)} not given back{whose}"


def _memory(need: PlacementRequest, *, loads: bool) -> int:
    return need.container.memory + (need.resident.memory if loads else 0)


def _words(refusal: _Refusal, need: PlacementRequest) -> str:
    if isinstance(refusal, str):
        return refusal
    free = "" if refusal.when_empty else " free"
    match refusal.lacks:
        case _Lacks.SLOTS:
            return f"has no{free} slot"
        case _Lacks.CPUS:
            return f"has less than {need.container.millicpus / MILLI:g} CPUs{free}"
        case _Lacks.MEMORY:
            memory = _memory(need, loads=need.at_once or refusal.when_empty)
            return f"has less than {size_text(memory)} of memory{free}"
        case _Lacks.DEVICES:
            few = "no device" if need.container.devices == 1 else "too few devices"
            if refusal.wanted:
                return f"has {few} with {refusal.wanted}{free}"
            return f"has {few}" if refusal.when_empty else f"has {few} for one model alone"


def _may_fit(host: HostRecord, need: PlacementRequest) -> bool:
    """Tell whether the host would fit if it were ONLINE, OPEN and empty."""
    return (
        host.liveness is not Liveness.LOST
        and _lacks(host.total, need, when_empty=True) is None
        and all(host.labels.get(label) == value for label, value in need.labels.items())
    )


def _chosen_devices(room: Room, need: PlacementRequest) -> tuple[str, ...]:
    """Return the devices for a container: those where its model can be loaded soonest.

    For a model that comes into memory now, the fullest ones that have room: so the others keep
    room for large models. Otherwise those with the most room for each container that sees them.
    """
    wanted = need.container.devices
    if not wanted:
        return ()

    def key(uuid: str) -> tuple[object, ...]:
        device = room.devices[uuid]
        ready = device.takes(need.resident)
        left = device.free if need.at_once else -device.free / (device.bound + 1)
        return not ready, left, device.bound, uuid

    fitting = [
        uuid
        for uuid, one in room.devices.items()
        if one.could_take(need.resident) and one.tainted is None
    ]
    return tuple(sorted(fitting, key=key)[:wanted])


def _loads_now(room: Room, need: PlacementRequest, devices: tuple[str, ...]) -> bool:
    if need.resident.nothing:
        return True
    after = None if room.memory is None else room.memory - need.container.memory
    enough = after is None or after >= need.resident.memory
    return enough and all(room.devices[uuid].takes(need.resident) for uuid in devices)


def _resident(
    need: ResidentNeed, devices: tuple[str, ...], room: Room, version: int
) -> ResidentAllocation | None:
    if need.nothing:
        return None
    given = {uuid: room.devices[uuid].given(need) for uuid in devices if uuid in room.devices}
    return ResidentAllocation(version=version, memory=need.memory, devices=given)


def _not_loadable(room: Room, need: ResidentNeed, bound: tuple[str, ...]) -> str | None:
    """Return why a model can't be loaded into its container now; None if it can."""
    if room.memory is not None and room.memory < need.memory:
        return f"has less than {size_text(need.memory)} of memory free"
    for uuid in bound:
        device: DeviceRoom | None = room.devices.get(uuid)
        if device is None:
            return f"does not have the device {uuid} any more"
        if not device.takes(need):
            return _why_it_does_not_take(uuid, device, need)
    return None


def _why_it_does_not_take(uuid: str, device: DeviceRoom, need: ResidentNeed) -> str:
    if device.tainted is not None:
        return f"can't use a device: {_taint_text(uuid, device.tainted)}"
    if need.on(device.model) is None:
        return f"does not have the device {uuid} for one model alone"
    wanted = need.text_on(device.model)
    if not device.could_take(need):
        return f"has only {size_text(device.memory)} on the device {uuid}, not {wanted}"
    return f"has less than {wanted} free on the device {uuid}"


def _used_part(total: Room, room: Room, taken: ContainerNeed) -> float:
    """Return the part of the host that is used after a placement: of what is used most."""
    parts = [
        1 - (left - more) / whole
        for whole, left, more in (
            (total.slots, room.slots, taken.slots),
            (total.millicpus, room.millicpus, taken.millicpus),
            (total.memory, room.memory, taken.memory),
        )
        if whole and left is not None
    ]
    return max(parts, default=0.0)


def _explain(refusals: Counter[_Refusal], need: PlacementRequest) -> tuple[str, ...]:
    if not refusals:
        return ("no host is registered",)
    counts: Counter[str] = Counter()
    for refusal, count in refusals.items():
        counts[_words(refusal, need)] += count
    return tuple(
        f"1 host {reason}" if count == 1 else f"{count} hosts: each {reason}"
        for reason, count in sorted(counts.items())
    )
