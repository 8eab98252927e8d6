"""What must never happen, written down without the code that is to keep to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.catalog.images import full_reference
from modelyard.contract.states import JobState
from modelyard.store.records import HostRecord

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from bench.simulator.scenario import SimulatedHost
    from modelyard.contract.catalog.entries import ModelSpec
    from modelyard.store.records import JobRecord


class BrokenRuleError(Exception):
    """The dispatcher's rules did what they must never do."""


def host_record(host: SimulatedHost, images: Iterable[str]) -> HostRecord:
    """Return a host that has just come online, and has these images."""
    devices = tuple(
        Device(uuid=f"{host.host_id}-gpu-{index}", index=index, memory=memory)
        for index, memory in enumerate(host.devices)
    )
    return HostRecord(
        host_id=host.host_id,
        incarnation="boot",
        slots=None,
        capacity=HostCapacity(cpus=host.cpus, memory=host.memory, devices=devices),
        images=frozenset(map(full_reference, images)),
    )


def spec_of(job: JobRecord) -> ModelSpec:
    """Return the model of a job that is on a host."""
    if job.spec is None:
        raise BrokenRuleError(f"{job.job_id} has no model.")
    return job.spec


def check_that_nothing_is_given_twice(host: HostRecord) -> None:
    """Raise `BrokenRuleError` if jobs hold more of a host than it has."""
    capacity, millicpus, memory = host.capacity, 0, 0
    if capacity is None:
        return
    devices = {one.uuid: one.memory for one in capacity.devices}
    for held in host.reservations:
        millicpus += held.millicpus
        memory += held.memory
        if held.resident is not None:
            memory += held.resident.memory
            for uuid, amount in held.resident.devices.items():
                devices[uuid] -= amount
    short = [uuid for uuid, left in devices.items() if left < 0]
    if millicpus > capacity.cpus * 1_000 or memory > capacity.memory or short:
        raise BrokenRuleError(f"{host.host_id} gives more than it has: {host.reservations}")


def never_makes_room(model: ModelSpec) -> bool:
    """Tell whether a model stays in memory whoever needs its place."""
    return model.residency.pinned or not model.residency.on_demand


def check_that_it_may_be_evicted(job: JobRecord, now: datetime) -> None:
    """Raise `BrokenRuleError` if a model has to stay although others need its place."""
    model, resident_s = spec_of(job), _resident_s(job, now)
    if never_makes_room(model) or resident_s < model.residency.min_resident_s:
        raise BrokenRuleError(f"{job.job_id} had to stay in memory and was evicted.")


def check_that_it_may_leave_idle(job: JobRecord, now: datetime) -> None:
    """Raise `BrokenRuleError` if a model has to stay although nobody uses it."""
    residency, resident_s = spec_of(job).residency, _resident_s(job, now)
    if residency.pinned or resident_s < residency.min_resident_s:
        raise BrokenRuleError(f"{job.job_id} had to stay in memory and was unloaded as idle.")


def _resident_s(job: JobRecord, now: datetime) -> float:
    if job.loaded_at is None or job.state is not JobState.LOADED:
        raise BrokenRuleError(f"{job} is to be unloaded and is not in memory.")
    return (now - job.loaded_at).total_seconds()
