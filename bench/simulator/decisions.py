"""How long one placement takes over a large fleet."""

from __future__ import annotations

import gc
import time
from itertools import cycle
from typing import TYPE_CHECKING

from bench.simulator.scenario import GIB
from modelyard.contract.capacity.ledger import ResidentAllocation
from modelyard.contract.capacity.needs import ContainerNeed, ResidentNeed
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.placement import FreeCapacity, Kept, KeptOn
from modelyard.scheduling.survey import Table
from modelyard.store.records import HostRecord, Reservation

if TYPE_CHECKING:
    from random import Random

JOBS_ON_A_HOST = 12


def busy_fleet(hosts: int, devices: int, random: Random) -> dict[str, HostRecord]:
    """Return hosts on which a dozen jobs each hold something; one of them ends by itself."""
    fleet: dict[str, HostRecord] = {}
    for number in range(hosts):
        there = tuple(
            Device(uuid=f"gpu-{number}-{index}", index=index, memory=80 * GIB)
            for index in range(devices)
        )
        host_id = f"h{number:05}"
        fleet[host_id] = HostRecord(
            host_id=host_id,
            incarnation="boot",
            slots=None,
            labels={"zone": random.choice("ab")},
            capacity=HostCapacity(cpus=128, memory=1_024 * GIB, devices=there),
            reservations=tuple(
                _held(f"job-{number}-{one}", random.choice(there).uuid, random, ends=one == 0)
                for one in range(JOBS_ON_A_HOST)
            ),
        )
    return fleet


def _held(job_id: str, device: str, random: Random, *, ends: bool) -> Reservation:
    size = random.choice((5, 10, 20)) * GIB
    return Reservation(
        job_id=job_id,
        generation=1,
        token="",
        millicpus=2_000,
        memory=4 * GIB,
        devices=(device,),
        temporary=ends,
        resident=ResidentAllocation(devices={device: size}),
    )


def decision_times(fleet: dict[str, HostRecord], decisions: int, kept: KeptOn) -> list[float]:
    """Return the seconds of CPU that each decision took; no two ask for the same.

    Each is that of a pass of its own, after one of the hosts has changed.
    """
    table = Table(fleet.values())
    FreeCapacity(fleet, table=table).place(_asked(1))  # as after the first pass of a leader
    took: list[float] = []
    gc.freeze()  # as the dispatcher does
    for number, host in zip(range(decisions), cycle(fleet.values()), strict=False):
        fleet[host.host_id] = changed = host.model_copy(update={"running": number})
        began = time.process_time()
        table.put([changed])
        FreeCapacity(fleet, kept, table=table).place(_asked(number))
        took.append(time.process_time() - began)
    gc.unfreeze()
    return took


def keep_nothing(_: str) -> tuple[Kept, ...]:
    """Return what is kept on a host if nothing waits."""
    return ()


def kept_on(fleet: dict[str, HostRecord]) -> KeptOn:
    """Return the room that is kept on each host of a fleet, for the first of many that wait."""
    need = ResidentNeed(0, 1, 5 * GIB)

    def kept(host_id: str) -> list[Kept]:
        device = next(iter(fleet[host_id].room.devices))
        return [Kept(host_id, f"waits-{one}", 0, need, (device,)) for one in "ab"]

    return kept


def _asked(number: int) -> PlacementRequest:
    """Return a need: some fit nearly everywhere, some on hosts with a label, some nowhere."""
    job_id, millicpus = f"new-{number}", 1_000 + number
    match number % 4:
        case 0:
            container, resident = (
                ContainerNeed(millicpus, GIB, 1),
                ResidentNeed(0, 1, 40 * GIB),
            )
        case 1:
            container, resident = ContainerNeed(millicpus, GIB, 8), ResidentNeed(0, 8, None)
        case 2:
            container, resident = ContainerNeed(millicpus, GIB, 2), ResidentNeed(0, 2, 70 * GIB)
        case _:
            container, resident = ContainerNeed(127_000 + number, GIB), ResidentNeed()
    return PlacementRequest(
        job_id=job_id,
        container=container,
        resident=resident,
        at_once=number % 4 < 2,  # noqa: PLR2004
        labels={"zone": "a"} if number % 4 == 2 else {},  # noqa: PLR2004
    )
