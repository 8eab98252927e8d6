"""What first come, first served would do with the same inferences on the same devices.

Every inference starts in the order of acceptance on its devices. Where its model is not in memory,
the models that were used least lately leave, as soon as they have finished, until it fits.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelyard.contract.capacity.needs import resident_need

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.simulator.scenario import Arrival, Scenario, SimulatedModel


@dataclass(slots=True)
class FirstComeFirstServed:
    """How often models left for others, and how long inferences waited."""

    swaps: int = 0
    waits: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class _Resident:
    model: SimulatedModel
    devices: tuple[str, ...]
    ends: list[float]
    """When the inferences that run end."""
    used_at: float


class _Server:
    def __init__(self, memory: dict[str, int]) -> None:
        self._memory = memory
        self._last_start: dict[str, float] = defaultdict(float)
        self._residents: dict[str, _Resident] = {}
        self.result = FirstComeFirstServed()

    def serve(self, arrival: Arrival, model: SimulatedModel, devices: tuple[str, ...]) -> None:
        start = max([arrival.at, *(self._last_start[uuid] for uuid in devices)])
        resident = self._residents.get(arrival.job_id)
        if resident is None:
            start = self._make_room(model, devices, start) + model.load_s
            resident = self._residents[arrival.job_id] = _Resident(model, devices, [], start)
        running = sorted(end for end in resident.ends if end > start)
        beside = model.spec.max_concurrency - 1
        if len(running) > beside:
            start = running[len(running) - beside - 1]
        resident.ends = [end for end in running if end > start] + [start + arrival.takes_s]
        resident.used_at = start
        for uuid in devices:
            self._last_start[uuid] = start
        self.result.waits[arrival.priority].append(start - arrival.at)

    def _make_room(self, model: SimulatedModel, devices: tuple[str, ...], start: float) -> float:
        for uuid in devices:
            while self._free(uuid) < self._needs(model, uuid):
                there = [job for job, one in self._residents.items() if uuid in one.devices]
                victim = self._residents.pop(
                    min(there, key=lambda job: self._residents[job].used_at)
                )
                self.result.swaps += 1
                start = max([start, *victim.ends]) + victim.model.unload_s
        return start

    def _free(self, uuid: str) -> int:
        there = (one for one in self._residents.values() if uuid in one.devices)
        return self._memory[uuid] - sum(self._needs(one.model, uuid) for one in there)

    def _needs(self, model: SimulatedModel, uuid: str) -> int:
        return resident_need(model.spec).device_memory or self._memory[uuid]


def serve(
    scenario: Scenario, inferences: Iterable[tuple[Arrival, tuple[str, ...], str]]
) -> FirstComeFirstServed:
    """Serve inferences, each with the devices and the model of its job."""
    models = {one.spec.name: one for one in scenario.models}
    memory = {
        f"{host.host_id}-gpu-{index}": size
        for host in scenario.hosts
        for index, size in enumerate(host.devices)
    }
    server = _Server(memory)
    for arrival, devices, model in sorted(inferences, key=lambda it: it[0].at):
        server.serve(arrival, models[model], devices)
    return server.result
