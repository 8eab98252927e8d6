"""The words for why hosts refuse, for `waiting_for` and for explanations. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from modelyard.contract.capacity.footprints import Learned
from modelyard.contract.capacity.ledger import DeviceRoom, Room
from modelyard.contract.capacity.needs import ResidentNeed, holds_while_loaded, need_beside
from modelyard.contract.capacity.offers import MILLI, DeviceTaint
from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.scheduling.fitting import (
    Lacks,
    PlacementRequest,
    Refusal,
    Shortage,
    lacks_memory,
    refusal_of,
    wanted_text,
)
from modelyard.store.records import HostRecord, JobRecord


def summed_up(refusals: Mapping[Refusal, int], need: PlacementRequest) -> tuple[str, ...]:
    """Return how many hosts refuse for which reason, such as `2 hosts: each has no free slot`."""
    if not refusals:
        return ("no host is registered",)
    counts: Counter[str] = Counter()
    for refusal, count in refusals.items():
        if count:
            counts[_words(refusal, need)] += count
    return tuple(
        f"1 host {reason}" if count == 1 else f"{count} hosts: each {reason}"
        for reason, count in sorted(counts.items())
    )


def refusal_with_numbers(host: HostRecord, need: PlacementRequest) -> str | None:
    """Return why a host can't take a job now, with what it has; None if it can."""
    refusal = refusal_of(host, need, host.room)
    if not isinstance(refusal, Shortage):
        return refusal
    total, room = host.total, host.total if refusal.when_empty else host.room
    memory = _memory(need, refusal)
    tail = "even when empty" if refusal.when_empty else "now"
    match refusal.lacks:
        case Lacks.SLOTS:
            return f"all of its {total.slots} slots are taken ({tail})"
        case Lacks.CPUS:
            wanted, left = need.container.millicpus / MILLI, (room.millicpus or 0) / MILLI
            return f"it needs {wanted:g} CPUs, and {left:g} are free {tail}"
        case Lacks.MEMORY:
            left_size = size_text(max(0, room.memory or 0))
            return f"it needs {size_text(memory)} of memory, and {left_size} are free {tail}"
        case Lacks.DEVICES:
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
    if not_loadable(room, need, held.devices) is None:
        return None
    if lacks_memory(room, need.memory):
        left = size_text(max(0, room.memory or 0))
        return f"it needs {size_text(need.memory)} of memory, and {left} are free"
    bound = {uuid: one for uuid, one in room.devices.items() if uuid in held.devices}
    there = replace(room, devices=bound)
    return f"it needs {_devices_text(need, wanted_text(there, need))}; {_free_text(there)}"


def lacks_to_load(host: HostRecord, job: JobRecord, spec: ModelSpec, learned: Learned) -> Lacks:
    """Return what its host has too little of for a model that can't be loaded there now."""
    held = host.reservation(job.job_id, job.generation)
    memory = need_beside(spec, learned, held.memory if held else 0).memory
    return Lacks.MEMORY if lacks_memory(host.room, memory) else Lacks.DEVICES


def not_loadable(room: Room, need: ResidentNeed, bound: tuple[str, ...]) -> str | None:
    """Return why a model can't be loaded into its container now; None if it can."""
    if lacks_memory(room, need.memory):
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


def _words(refusal: Refusal, need: PlacementRequest) -> str:
    if isinstance(refusal, str):
        return refusal
    free = "" if refusal.when_empty else " free"
    match refusal.lacks:
        case Lacks.SLOTS:
            return f"has no{free} slot"
        case Lacks.CPUS:
            return f"has less than {need.container.millicpus / MILLI:g} CPUs{free}"
        case Lacks.MEMORY:
            return f"has less than {size_text(_memory(need, refusal))} of memory{free}"
        case Lacks.DEVICES:
            few = "no device" if need.container.devices == 1 else "too few devices"
            if refusal.wanted:
                return f"has {few} with {refusal.wanted}{free}"
            return f"has {few}" if refusal.when_empty else f"has {few} for one model alone"


def _memory(need: PlacementRequest, refusal: Shortage) -> int:
    loads = need.at_once or refusal.when_empty
    return need.container.memory + (need.resident.memory if loads else 0)


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
