"""How long a load may wait at the most, given who else wants the same place."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from bench.simulator.rules import never_makes_room
from modelyard.contract.states import Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.simulator.scenario import Scenario
    from modelyard.contract.capacity.ledger import Allocation
    from modelyard.store.records import JobRecord, OperationRecord

CREATE_S = 0.5
CLOCK_S = 0.001
"""Moments that are closer than this are the same."""
SWEEP_S = 2.0
"""Seconds between two looks at what waits, if nothing happens."""
MEMORY, TURNS = "memory", "turns of one-shot jobs"
"""What jobs of a host contend for, beside its devices."""


@dataclass(slots=True)
class _Stay:
    """A job on a host, from its placement to its end."""

    allocation: Allocation
    model: str
    rank: int
    priority: int
    began_at: float
    left_at: float = math.inf


def _rivals(wanted: set[str], there: Iterable[tuple[_Stay, set[str]]]) -> list[_Stay]:
    """Return those that want the same, and those that want the same as these."""
    found: list[_Stay] = []
    left = [*there]
    while near := [one for one in left if not wanted.isdisjoint(one[1])]:
        found += [stay for stay, _ in near]
        left = [one for one in left if one not in near]
        wanted = wanted.union(*(wants for _, wants in near))
    return found


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

    def bound_s(
        self,
        load: OperationRecord,
        job: JobRecord,
        since: float,
        waiting: Iterable[OperationRecord],
    ) -> float:
        """Return how long a load may wait that has waited since a moment.

        Until it may take the place of what is in use, and then for the turns of each job that wants
        the same, or wants the same as one of those: a more urgent one keeps what it needs while it
        waits for the rest of it. So one that waits for a host keeps a device here until one-shot
        jobs have ended, whatever they hold; `waiting` are those that still do. One-shot jobs count
        if they were there or came before it. There is no bound where a rival is more urgent, or
        where containers keep the memory of the host that it needs. Nothing is kept for it while a
        rival that never makes room is there: its wait counts from when the last one has left.
        """
        there = [
            stay
            for stay in self._stays[job.host_id or ""]
            if stay.allocation.job_id != job.job_id
            and stay.left_at >= since
            and not (stay.allocation.temporary and self._came_behind(stay, load, since))
        ]
        needs_memory = job.spec is not None and bool(job.spec.resources.resident_memory)
        if needs_memory and any(stay.allocation.memory for stay in there):
            return math.inf
        ahead = [*self._placed_ahead(load, since)]
        ahead += [one.priority for one in waiting if one.rank < load.rank]
        wanted = {*job.devices, *([MEMORY] if needs_memory else []), *([TURNS] if ahead else [])}
        rivals = _rivals(wanted, [(stay, self._wants(stay)) for stay in there])
        if max([*ahead, *(stay.priority for stay in rivals)], default=-math.inf) > load.priority:
            return math.inf
        left_at = max((stay.left_at for stay in rivals if self._never_leaves(stay)), default=since)
        if left_at > since:
            return left_at - since + self.bound_s(load, job, left_at, waiting)
        turns = sum(self._turn_s(stay) * self._turns[stay.allocation.job_id] for stay in rivals)
        return self._swap_wait_s + SWEEP_S + turns

    def _came_behind(self, stay: _Stay, load: OperationRecord, since: float) -> bool:
        return stay.began_at > since + CLOCK_S and stay.rank > load.rank

    def _placed_ahead(self, load: OperationRecord, since: float) -> Iterator[int]:
        """Return the priorities of what waited for a host at the same time and went before it."""
        for stay in chain.from_iterable(self._stays.values()):
            if stay.began_at > since and stay.rank < load.rank:
                yield stay.priority

    def _wants(self, stay: _Stay) -> set[str]:
        held, resources = stay.allocation, self._models[stay.model].spec.resources
        wants = set(held.devices)
        if resources.resident_memory:
            wants.add(MEMORY)
        if held.temporary:
            wants |= {MEMORY, TURNS}
        return wants

    def _never_leaves(self, stay: _Stay) -> bool:
        return not stay.allocation.temporary and never_makes_room(self._models[stay.model].spec)

    def _turn_s(self, stay: _Stay) -> float:
        model, longest_s = self._models[stay.model], self._longest_s[stay.allocation.job_id]
        if stay.allocation.temporary:
            return CREATE_S + model.load_s + longest_s
        stays_s = model.spec.residency.min_resident_s + longest_s
        return model.load_s + stays_s + model.unload_s + SWEEP_S
