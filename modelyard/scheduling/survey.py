"""Looks at all hosts for one job: in a fleet of thousands this is what a placement costs. Pure.

The rules are those of `fitting`. What only depends on the kind of a host is asked once for each
kind; the rest is written out in one loop.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from modelyard.contract.capacity.ledger import Room, has_devices
from modelyard.contract.capacity.needs import ResidentNeed
from modelyard.scheduling.fitting import (
    OWN,
    Lacks,
    PlacementRequest,
    Refusal,
    Shortage,
    closed_to,
    lacking,
    shortage,
)
from modelyard.store.records import HostRecord

_FITS: Final = "fits"
_NO_SLOT = Shortage(Lacks.SLOTS, when_empty=False)
_NO_CPU = Shortage(Lacks.CPUS, when_empty=False)
NO_MEMORY = Shortage(Lacks.MEMORY, when_empty=False)


@dataclass(frozen=True, slots=True)
class Survey:
    """What all hosts say to one job."""

    fitting: list[tuple[HostRecord, Room]]
    refusals: Counter[Refusal]


def survey(hosts: Iterable[tuple[HostRecord, Room]], need: PlacementRequest) -> Survey:
    """Return the hosts that can take a job with this room, and why the others can't."""
    slots, millicpus = need.container.slots, need.container.millicpus
    memory = need.container.memory + (need.resident.memory if need.at_once else 0)
    count, job_id, amounts = need.container.devices, need.job_id, _Amounts(need.resident)
    fitting: list[tuple[HostRecord, Room]] = []
    of_kinds: dict[str, Refusal] = {}
    no_device: dict[str, Refusal] = {}
    refused: list[Refusal] = []
    for host, room in hosts:
        of_kind = of_kinds.get(host.kind)
        if of_kind is None:
            of_kind = of_kinds[host.kind] = _of_kind(host, need)
        slots_left, millicpus_left, memory_left, devices = room.numbers
        if of_kind is not _FITS:
            refused.append(of_kind)
        elif slots_left < slots and slots:
            refused.append(_NO_SLOT)
        elif millicpus_left < millicpus and millicpus:
            refused.append(_NO_CPU)
        elif memory_left < memory and memory:
            refused.append(NO_MEMORY)
        elif count and not has_devices(devices, amounts, count, loads=need.at_once):
            if host.kind not in no_device:
                no_device[host.kind] = shortage(host.total, need, Lacks.DEVICES, when_empty=False)
            refused.append(no_device[host.kind])
        elif job_id in host.held_by:
            refused.append(OWN)
        else:
            fitting.append((host, room))
    return Survey(fitting, _counted(refused))


def _counted(refused: list[Refusal]) -> Counter[Refusal]:
    """Count by identity first: there are few different refusals, and many hosts."""
    by_identity = {id(one): one for one in refused}
    counts: Counter[Refusal] = Counter()
    for key, count in Counter(map(id, refused)).items():
        counts[by_identity[key]] += count
    return counts


def _of_kind(host: HostRecord, need: PlacementRequest) -> Refusal:
    """Return why hosts of this kind refuse even when they are empty."""
    lacks = lacking(host.total, need, when_empty=True)
    lasting = shortage(host.total, need, lacks, when_empty=True) if lacks is not None else None
    return closed_to(host, need) or lasting or _FITS


class _Amounts(dict[str, int | None]):
    """What the model needs on a device, by the device's model: asked for once for each."""

    def __init__(self, need: ResidentNeed) -> None:
        super().__init__()
        self._need = need

    def __missing__(self, model: str) -> int | None:
        self[model] = self._need.on(model)
        return self[model]
