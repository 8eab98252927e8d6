"""How long a placement takes while very many operations wait for a host.

What a pass reads of them is read by the dispatcher's own code: the most urgent ones from the
record, and their jobs from its memory, which holds no more than `MAX_JOBS`. The record is made up
here; what MongoDB takes with very many that wait is measured by `make bench-scale`.
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, cast

from bench.simulator.scenario import SimulatedModel
from bench.simulator.world import BEGINNING
from dispatcher.scheduling.lines import MAX_JOBS, Lines
from modelyard.contract.states import OperationState, Verb
from modelyard.scheduling.ordering import CatalogEntries
from modelyard.scheduling.placement import FreeCapacity, KeptOn
from modelyard.scheduling.planning import URGENT, make_plan
from modelyard.scheduling.reading import urgent_jobs
from modelyard.scheduling.survey import Table
from modelyard.store.jobs import JobLines
from modelyard.store.records import JobLine, JobRecord, OperationRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.contract.catalog.entries import ModelSpec
    from modelyard.scheduling.fitting import PlacementRequest
    from modelyard.scheduling.placement import Placed, Unplaced
    from modelyard.store import Store
    from modelyard.store.records import HostRecord

WAITS = "waits"
NEEDS = 500
"""Different needs of those that wait: more than a pass looks at, so it decides on each of them."""


@dataclass(slots=True)
class PassTimes:
    """Seconds of CPU: of each placement that was tried, and of each pass."""

    placements: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)


class _Record:
    """Stands for the store, with the operations that wait in the order of their ranks."""

    def __init__(self, models: Sequence[ModelSpec], waiting: int) -> None:
        self.jobs = self.operation_queries = self
        self._models = models
        self._waiting = waiting
        self._others: dict[str, OperationRecord] = {}

    def put(self, job_id: str, model: ModelSpec, rank: int) -> None:
        """Put an operation in line that is not among those that wait."""
        self._others[job_id] = _operation(job_id, model, rank)

    async def without_host(self, *, limit: int) -> list[OperationRecord]:
        """Return the most urgent ones."""
        return [self._waits(number) for number in range(min(limit, self._waiting))]

    async def lines(self, job_ids: Sequence[str]) -> JobLines:
        """Return jobs, each with its one operation."""
        found: list[JobLine] = []
        for job_id in job_ids:
            kind, _, number = job_id.partition("-")
            one = self._waits(int(number)) if kind == WAITS else self._others[job_id]
            found.append(JobLine(job=JobRecord(job_id=job_id), operations=(one,)))
        return JobLines(tuple(found), frozenset())

    def _waits(self, number: int) -> OperationRecord:
        return _operation(f"{WAITS}-{number}", self._models[number % len(self._models)], number)


def _operation(job_id: str, model: ModelSpec, rank: int) -> OperationRecord:
    at_once = model.resources.gpus > 0
    return OperationRecord(
        operation_id=f"op-{job_id}",
        job_id=job_id,
        verb=Verb.TEMP if at_once else Verb.DEPLOY_CREATE,
        state=OperationState.QUEUED,
        model=model.name,
        has_input=at_once,
        input_json="1" if at_once else None,
        line=rank,
        rank=rank,
        accepted_at=BEGINNING,
    )


class _TimedCapacity(FreeCapacity):
    """Notes how long each placement takes."""

    took: list[float]

    def place(self, need: PlacementRequest) -> Placed | Unplaced:
        began = time.process_time()
        placed = super().place(need)
        self.took.append(time.process_time() - began)
        return placed


def times_beside_waiting(
    fleet: dict[str, HostRecord], kept: KeptOn, *, waiting: int, passes: int
) -> PassTimes:
    """Return how long passes take in which one operation is placed beside so many that wait.

    Each of those has a need that no host has room for now. Before each pass a host has changed.
    Raises `ValueError` if an operation is not placed, or one that has no room is.
    """
    return asyncio.run(_times(fleet, kept, waiting, passes))


async def _times(
    fleet: dict[str, HostRecord], kept: KeptOn, waiting: int, passes: int
) -> PassTimes:
    waits, comes = [_waits(one) for one in range(NEEDS)], [_comes(one) for one in range(passes)]
    record = _Record(waits, waiting)
    store = cast("Store", record)
    lines = Lines(store)
    for first in (MAX_JOBS, URGENT):  # as after many passes: the most urgent were used last
        await lines.read(f"{WAITS}-{number}" for number in range(min(waiting, first)))
    catalog = CatalogEntries({one.name: one for one in (*waits, *comes)}, {})
    table = Table(fleet.values())
    FreeCapacity(fleet, kept, table=table).any_left  # noqa: B018 - as after a leader's first pass
    times = PassTimes()
    gc.freeze()  # as the dispatcher does
    for number, host_id in enumerate(islice(cycle([*fleet]), passes)):
        job_id = f"comes-{number}"
        record.put(job_id, comes[number], waiting + number)
        await lines.read([job_id])  # intake has it in memory
        changed = fleet[host_id].model_copy(update={"running": number})
        fleet[host_id] = changed
        began = time.process_time()
        table.put([changed])
        there = [*(await lines.read([job_id])).lines]
        there += (await lines.read(await urgent_jobs(store, besides=[job_id]))).lines
        capacity = _TimedCapacity(fleet, kept, table=table)
        capacity.took = times.placements
        plan = make_plan(there, catalog, capacity)
        times.passes.append(time.process_time() - began)
        if [one.job.job_id for one in plan.dispatches] != [job_id]:
            raise ValueError(f"{job_id} should be placed, and was not: {plan.dispatches}")
        for one in plan.explained:
            lines.replace(one)
    gc.unfreeze()
    return times


def _waits(number: int) -> ModelSpec:
    """Return a model that no host has room for: all GPUs at once, or nearly all processors."""
    more = number / 1_000
    needs = {"gpus": 8, "cpus": 1 + more} if number % 2 else {"cpus": 120 + more}
    return SimulatedModel.of(f"{WAITS}-{number}", {**needs}, load_s=1).spec


def _comes(number: int) -> ModelSpec:
    """Return a model that fits on most hosts, or on half of those with a label."""
    name, cpus = f"comes-{number}", 1 + number / 1_000
    if number % 2:
        needs = {"gpus": 1, "gpu_memory": "40g", "cpus": cpus}
        return SimulatedModel.of(name, {**needs}, load_s=1).spec
    needs = {"gpus": 2, "gpu_memory": "70g", "cpus": cpus}
    return SimulatedModel.of(name, {**needs}, load_s=1, host_labels={"zone": "a"}).spec
