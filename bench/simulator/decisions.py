"""How long one placement takes over a large fleet."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

from bench.simulator.scenario import GIB
from modelyard.contract.capacity.ledger import ResidentAllocation
from modelyard.contract.capacity.needs import ContainerNeed, ResidentNeed
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.placement import FreeCapacity
from modelyard.store.records import HostRecord, Reservation

if TYPE_CHECKING:
    from random import Random

JOBS_ON_A_HOST = 12


def busy_fleet(hosts: int, devices: int, random: Random) -> dict[str, HostRecord]:
    """Return hosts on which a dozen jobs each hold something."""
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
                _held(f"job-{number}-{one}", random.choice(there).uuid, random)
                for one in range(JOBS_ON_A_HOST)
            ),
        )
    return fleet


def _held(job_id: str, device: str, random: Random) -> Reservation:
    size = random.choice((5, 10, 20)) * GIB
    return Reservation(
        job_id=job_id,
        generation=1,
        token="",
        millicpus=2_000,
        memory=4 * GIB,
        devices=(device,),
        resident=ResidentAllocation(devices={device: size}),
    )


def decision_times(fleet: dict[str, HostRecord], decisions: int) -> list[float]:
    """Return the seconds of CPU that each decision took; no two ask for the same."""
    for host in fleet.values():  # as after the first pass of a leader
        FreeCapacity({host.host_id: host}).place(_asked(0))
    took: list[float] = []
    gc.freeze()  # as the dispatcher does
    for number in range(decisions):
        capacity = FreeCapacity(fleet)
        began = time.process_time()
        capacity.place(_asked(number))
        took.append(time.process_time() - began)
    gc.unfreeze()
    return took


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
