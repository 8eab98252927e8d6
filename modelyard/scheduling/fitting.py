"""Which hosts fit: what a job needs against what a host has. Pure.

A refusal is the first rule that a host breaks. Most words for people are in `refusals`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from modelyard.contract.capacity.footprints import Learned
from modelyard.contract.capacity.ledger import Room
from modelyard.contract.capacity.needs import (
    ContainerNeed,
    ResidentNeed,
    container_need,
    resident_need,
)
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.catalog.images import full_reference
from modelyard.contract.states import Liveness
from modelyard.store.records import HostRecord, JobRecord

OWN = "still has a reservation of this job"
KEPT_FOR_OTHERS = "keeps what is free for a more urgent operation"


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
    temporary: bool = False
    """True if the job ends by itself, as a TEMP does."""
    rank: int = 0
    """The operation's: what is kept for operations behind it is not kept from it."""
    awaits: bool = True
    """False if no host is kept for it where it does not fit now."""
    avoid: frozenset[str] = frozenset()
    """Hosts that are chosen only if no other fits."""
    image: str = ""
    """The full reference of its image."""
    dataset: str | None = None
    """The volume or folder of its dataset; None if it mounts none."""

    @classmethod
    def of(
        cls,
        job: JobRecord,
        spec: ModelSpec,
        learned: Learned,
        *,
        at_once: bool,
        dataset: DatasetSpec | None = None,
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
            image=full_reference(spec.image),
            dataset=dataset.place if dataset and spec.dataset_mount is not None else None,
        )


class Lacks(Enum):
    """What a host has too little of."""

    SLOTS = "slots"
    CPUS = "cpus"
    MEMORY = "memory"
    DEVICES = "devices"


@dataclass(frozen=True, slots=True)
class Shortage:
    """A host has too little of something."""

    lacks: Lacks
    when_empty: bool
    """True if the host would have too little of it without any job."""
    wanted: str = ""
    """What it should have on a device, if that is what it lacks."""


Refusal = str | Shortage


def refusal_of(host: HostRecord, need: PlacementRequest, room: Room) -> Refusal | None:
    """Return why a host can't take a job now; the same for many hosts."""
    closed = closed_to(host, need)
    if closed is not None:
        return closed
    for left, when_empty in ((host.total, True), (room, False)):
        if (lacks := lacking(left, need, when_empty=when_empty)) is not None:
            return shortage(left, need, lacks, when_empty=when_empty)
    return OWN if need.job_id in host.held_by else None


def lacking_now(host: HostRecord, need: PlacementRequest) -> Lacks | None:
    """Return what others hold of a host that refuses a job; None if that is not why it refuses."""
    refusal = refusal_of(host, need, host.room)
    if not isinstance(refusal, Shortage) or refusal.when_empty:
        return None
    return refusal.lacks


def shortage(room: Room, need: PlacementRequest, lacks: Lacks, *, when_empty: bool) -> Shortage:
    """Return the refusal of a host that has too little of something."""
    wanted = wanted_text(room, need.resident) if lacks is Lacks.DEVICES else ""
    return Shortage(lacks, when_empty, wanted)


def wanted_text(room: Room, need: ResidentNeed) -> str:
    """Return how much of a device a model needs; empty if it needs all of it.

    Of several kinds of devices it may need different amounts: then of the one that comes first.
    """
    models = sorted({one.model for one in room.devices.values()}) or [""]
    amounts = [model for model in models if need.on(model) is not None]
    return need.text_on(amounts[0]) if amounts else ""


def closed_to(host: HostRecord, need: PlacementRequest) -> str | None:
    """Return why a host takes no job of this kind, whatever room it has."""
    if not host.is_open:
        return not_open(host)
    for label, value in need.labels.items():
        if host.labels.get(label) != value:
            return without_label(label, value)
    return None


def not_open(host: HostRecord) -> str:
    """Return why a host takes no job."""
    return f"is {host.admission if host.liveness is Liveness.ONLINE else host.liveness}"


def without_label(label: str, value: str) -> str:
    """Return the refusal of a host that does not have a label."""
    return f"does not have the label {label}={value}"


def lacking(room: Room, need: PlacementRequest, *, when_empty: bool) -> Lacks | None:
    """Return what there is too little of: now, or for the model too if the host were empty.

    What is not needed is never lacking, even where less than nothing is left.
    """
    wanted, loads = need.container, need.at_once or when_empty
    if room.slots is not None and room.slots < wanted.slots and wanted.slots:
        return Lacks.SLOTS
    if room.millicpus is not None and room.millicpus < wanted.millicpus and wanted.millicpus:
        return Lacks.CPUS
    memory = wanted.memory + need.resident.memory if loads else wanted.memory
    if lacks_memory(room, memory):
        return Lacks.MEMORY
    # On an empty host it is enough that the devices could have it; also, nothing is bound to a
    # device that is tainted.
    now = need.at_once and not when_empty
    if wanted.devices and not room.has_devices(need.resident, wanted.devices, loads=now):
        return Lacks.DEVICES
    return None


def lacks_memory(room: Room, wanted: int) -> bool:
    """Tell whether there are less than so many bytes of memory; none are never lacking."""
    return room.memory is not None and room.memory < wanted and wanted > 0


def loadable_when_empty(host: HostRecord, need: PlacementRequest) -> bool:
    """Tell whether a host would take a job now if no model were in memory on it."""
    if closed_to(host, need) is not None or lacking(host.total, need, when_empty=True) is not None:
        return False
    room = host.room
    if room.memory is not None:
        room = replace(room, memory=room.memory + host.memory_of_models)
    return lacking(room, replace(need, at_once=False), when_empty=False) is None


def chosen_devices(room: Room, need: PlacementRequest) -> tuple[str, ...]:
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
