"""How long a load may wait at the most, given who else wants the same place."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelyard.contract.states import Verb

if TYPE_CHECKING:
    from bench.simulator.scenario import Scenario
    from modelyard.contract.capacity.ledger import Allocation
    from modelyard.store.records import JobRecord, OperationRecord

CREATE_S = 0.5
CLOCK_S = 0.001
"""Moments that are closer than this are the same."""
SWEEP_S = 2.0
"""Seconds between two looks at what waits, if nothing happens."""


@dataclass(slots=True)
class _Stay:
    """A job on a host, from its placement to its end."""

    allocation: Allocation
    model: str
    rank: int
    priority: int
    began_at: float
    left_at: float = math.inf


class Rivals:
    """All jobs that were ever on each host."""

    def __init__(self, scenario: Scenario) -> None:
        self._swap_wait_s = scenario.swap_wait_s
        self._models = {one.spec.name: one for one in scenario.models}
        self._stays: dict[str, list[_Stay]] = defaultdict(list)
        self._longest_s: dict[str, float] = defaultdict(float)
        self._priority: dict[str, int] = defaultdict(int)
        self._turns: dict[str, int] = defaultdict(lambda: 1)
        """Of each job: one, and one for each load that its client asks for by itself."""
        for one in scenario.arrivals:
            self._longest_s[one.job_id] = max(self._longest_s[one.job_id], one.takes_s)
            self._turns[one.job_id] += one.verb is Verb.DEPLOY_LOAD
            self._priority[one.job_id] = max(self._priority[one.job_id], one.priority)

    def come(
        self, allocation: Allocation, operation: OperationRecord, host_id: str, now: float
    ) -> None:
        """Note that a job was placed."""
        priority = self._priority[allocation.job_id]
        stay = _Stay(allocation, operation.model or "", operation.rank, priority, now)
        self._stays[host_id].append(stay)

    def go(self, host_id: str, job_id: str, now: float) -> None:
        """Note that a job has left its host."""
        for stay in self._stays[host_id]:
            if stay.allocation.job_id == job_id and stay.left_at == math.inf:
                stay.left_at = now

    def bound_s(self, load: OperationRecord, job: JobRecord, since: float) -> float:
        """Return how long a load may wait that has waited since a moment.

        Until it may take the place of what is in use, and then for the turns of each job that wants
        the same. One-shot jobs count if they were there or came before it. There is no bound where
        a rival is more urgent, or where containers keep the memory of the host that it needs.
        """
        needs_memory = job.spec is not None and bool(job.spec.resources.resident_memory)
        bound_s = self._swap_wait_s + SWEEP_S
        for stay in self._stays[job.host_id or ""]:
            held = stay.allocation
            if held.job_id == job.job_id or stay.left_at < since:
                continue
            if needs_memory and held.memory:
                return math.inf
            model = self._models[stay.model]
            shares_memory = needs_memory and bool(model.spec.resources.resident_memory)
            if not shares_memory and set(held.devices).isdisjoint(job.devices):
                continue
            if stay.priority > load.priority:
                return math.inf
            if held.temporary and stay.began_at > since + CLOCK_S and stay.rank > load.rank:
                continue
            bound_s += self._turn_s(stay) * self._turns[held.job_id]
        return bound_s

    def _turn_s(self, stay: _Stay) -> float:
        model, longest_s = self._models[stay.model], self._longest_s[stay.allocation.job_id]
        if stay.allocation.temporary:
            return CREATE_S + model.load_s + longest_s
        stays_s = model.spec.residency.min_resident_s + longest_s
        return model.load_s + stays_s + model.unload_s + SWEEP_S
