"""Residents: brings models into memory for inferences that ask for them, and makes room.

A LOAD or UNLOAD that Modelyard decides on is an ordinary operation at the front of its job's line,
with its reason. Nothing that works is interrupted: an UNLOAD takes effect when the inferences that
run have ended, and those that wait behind it load the model again. What a crash leaves behind: the
operation is recorded, or it is not, and then the next pass decides anew.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from dispatcher.scheduling.eviction import Candidate, cheapest
from dispatcher.scheduling.memory import Memory
from dispatcher.scheduling.ordering import ON_DEMAND, LoadFirst
from dispatcher.scheduling.system_operations import period, record_in_front, system_operation
from modelyard.contract.capacity.ledger import WHOLE, DeviceRoom
from modelyard.contract.capacity.needs import ResidentNeed
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import OperationState, Verb
from modelyard.scheduling.leaving import Stays, is_leaving, why_it_stays
from modelyard.scheduling.placement import Kept, PlacementRequest, loadable_when_empty
from modelyard.store import Store
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import HostRecord, JobRecord, OperationRecord

log = structlog.get_logger(__name__)

MOST_AT_ONCE = 50
"""Operations for which one pass makes room."""
HOSTS_AT_ONCE = 5
"""Hosts that are looked at for an operation that is not on a host yet."""
KEPT_S = 30.0
"""Seconds for which room is kept after the last eviction for an operation."""
LOAD_S = 1.0
"""Seconds that a load counts for which has not been measured."""
MEMORY = "memory"
"""The host's memory, among the uuids of its devices."""


@dataclass(frozen=True, slots=True)
class Crowded:
    """An operation that could start if models were unloaded."""

    operation: OperationRecord
    request: PlacementRequest
    host_id: str | None = None
    """The host that its job is on; None: any host would do."""
    bound: tuple[str, ...] = ()
    """The devices that are bound to its job's container."""


@dataclass(frozen=True, slots=True)
class _KeptUntil:
    kept: Kept
    rank: int
    until: float
    """A moment of the monotonic clock."""


@dataclass(frozen=True, slots=True)
class _Way:
    """Models to unload on one host, so that an operation could start there."""

    cost: float
    host_id: str
    jobs: tuple[str, ...]


class Residents:
    """Loads models on demand, and unloads idle ones that others need the place of."""

    def __init__(self, store: Store, memory: Memory, *, swap_wait_s: float) -> None:
        """After `swap_wait_s` seconds of waiting also models that are in use make room."""
        self._store = store
        self._lines = memory.lines
        self._fleet = memory.fleet
        self._usage = memory.lines.usage
        self._swap_wait_s = swap_wait_s
        self._kept: dict[str, _KeptUntil] = {}
        """By job."""

    async def load_first(self, wanted: Sequence[LoadFirst]) -> list[QueuedEnding]:
        """Put a LOAD before each of these inferences; return those whose LOAD has failed.

        Raises `StoreUnavailableError`.
        """
        loads = {
            one.operation.operation_id: system_operation(
                one.job,
                Verb.DEPLOY_LOAD,
                f"on_demand/{one.operation.operation_id}/{one.job.version}",
                f"{ON_DEMAND}{one.operation.operation_id}",
            )
            for one in wanted
        }
        failed = await self._store.operation_queries.failed_loads(list(loads))
        await record_in_front(
            self._store, [load for key, load in loads.items() if key not in failed]
        )
        return [
            QueuedEnding(one.operation, OperationState.REJECTED, _not_loaded(failed[key]))
            for one in wanted
            if (key := one.operation.operation_id) in failed
        ]

    async def make_room(self, crowded: Sequence[Crowded]) -> set[str]:
        """Have models unloaded so that these operations can start; return the jobs to schedule.

        Raises `StoreUnavailableError`.
        """
        woken: set[str] = set()
        if not crowded:
            return woken
        hosts = await self._fleet.hosts()
        now = await self._store.time()
        tries = 0
        for one in crowded:
            ways: list[_Way] = []
            await asyncio.sleep(0)
            for host in _hosts_for(one, hosts):
                ways += _ways(one, host, await self._candidates(host, one, now))
            if ways:
                best = min(ways, key=lambda way: (way.cost, len(way.jobs), way.host_id))
                woken |= await self._evict(one, best, now)
                tries += 1
            if tries == MOST_AT_ONCE:
                break
        return woken

    def kept(self) -> list[Kept]:
        """Return what is being cleared for operations, so that nobody else takes it meanwhile.

        On each host for the most urgent one only: two that wait for each other would wait for ever.
        """
        now = time.monotonic()
        self._kept = {job_id: one for job_id, one in self._kept.items() if one.until > now}
        first: dict[str, _KeptUntil] = {}
        for one in sorted(self._kept.values(), key=lambda it: (it.rank, it.kept.job_id)):
            first.setdefault(one.kept.host_id, one)
        return [one.kept for one in first.values()]

    async def _candidates(self, host: HostRecord, one: Crowded, now: datetime) -> list[Candidate]:
        """Return the models on a host that may be unloaded; those that leave already cost nothing.

        If the operation has waited for long enough, also models with inferences in line.
        """
        accepted_at = one.operation.accepted_at
        waited_s = (now - accepted_at).total_seconds() if accepted_at else 0.0
        held = [it for it in host.reservations if it.resident and it.job_id != one.request.job_id]
        read = await self._lines.read([it.job_id for it in held])
        by_job = {line.job.job_id: line for line in read.lines}
        found: list[Candidate] = []
        for it in held:
            line = by_job.get(it.job_id)
            if line is None or it.resident is None or line.job.generation != it.generation:
                continue
            frees = {**it.resident.devices, MEMORY: it.resident.memory}
            if is_leaving(line):
                found.append(Candidate(it.job_id, 0.0, frees))
            elif (stays := why_it_stays(line, now)) is None or (
                stays is Stays.IN_USE and waited_s >= self._swap_wait_s
            ):
                found.append(Candidate(it.job_id, self._cost(line.job), frees))
        return found

    def _cost(self, job: JobRecord) -> float:
        return (job.load_s or LOAD_S) * (1e-6 + self._usage.rate(job.job_id))

    async def _evict(self, one: Crowded, way: _Way, now: datetime) -> set[str]:
        operation = one.operation
        if one.bound and way.jobs:
            # What is cleared stays free for it, as long as it takes others to leave.
            until = time.monotonic() + KEPT_S
            kept = Kept(way.host_id, one.request.job_id, one.request.resident, one.bound)
            self._kept[one.request.job_id] = _KeptUntil(kept, operation.rank, until)
        key = f"evict/{operation.operation_id}/{period(now)}"
        read = await self._lines.read(way.jobs)
        leaving = [line.job for line in read.lines if not is_leaving(line)]
        await record_in_front(
            self._store,
            [
                system_operation(
                    job,
                    Verb.DEPLOY_UNLOAD,
                    f"{key}/{job.version}",
                    f"evicted_for:{operation.operation_id}",
                )
                for job in leaving
            ],
        )
        for job in leaving:
            self._kept.pop(job.job_id, None)
            log.info(
                "model.evicted",
                job_id=job.job_id,
                host_id=way.host_id,
                evicted_for=operation.operation_id,
            )
        return {job.job_id for job in leaving}


def _hosts_for(one: Crowded, hosts: Mapping[str, HostRecord]) -> Iterable[HostRecord]:
    if one.host_id is not None:
        return [hosts[one.host_id]] if one.host_id in hosts else []
    fitting = [host for host in hosts.values() if loadable_when_empty(host, one.request)]
    return fitting[:HOSTS_AT_ONCE]


def _ways(one: Crowded, host: HostRecord, candidates: Sequence[Candidate]) -> list[_Way]:
    """Return how an operation could get room on a host: one way for each choice of devices."""
    need = one.request.resident
    memory = need.memory + (one.request.container.memory if one.host_id is None else 0)
    lacking: dict[str, int] = {}
    if host.room.memory is not None and host.room.memory < memory:
        lacking[MEMORY] = memory - host.room.memory
    if not need.devices or (one.host_id is not None and not one.bound):
        return _way(host, lacking, candidates)
    if one.bound:
        for uuid in one.bound:
            amount = _lacks(host, uuid, need)
            if amount is None:
                return []
            lacking[uuid] = amount
        return _way(host, lacking, candidates)
    singly: list[tuple[float, str]] = []
    amounts: dict[str, int] = {}
    for uuid in host.room.devices:
        amount = _lacks(host, uuid, need)
        if amount is None:
            continue
        amounts[uuid] = amount
        singly += [(way.cost, uuid) for way in _way(host, {uuid: amount}, candidates)]
    if len(singly) < need.devices:
        return []
    chosen = sorted(singly)[: need.devices]
    return _way(host, lacking | {uuid: amounts[uuid] for _, uuid in chosen}, candidates)


def _way(
    host: HostRecord, lacking: Mapping[str, int], candidates: Sequence[Candidate]
) -> list[_Way]:
    jobs = cheapest(lacking, candidates)
    if jobs is None:
        return []
    cost = {one.job_id: one.cost for one in candidates}
    return [_Way(sum(cost[job_id] for job_id in jobs), host.host_id, jobs)]


def _lacks(host: HostRecord, uuid: str, need: ResidentNeed) -> int | None:
    """Return the bytes that jobs have to free on a device; None if it could not take the model.

    What others than jobs use, as measured, is not freed by unloading.
    """
    device: DeviceRoom | None = host.total.devices.get(uuid)
    if device is None or not device.could_take(need) or uuid in host.taints:
        return None
    allocated = sum(
        it.resident.devices.get(uuid, 0) for it in host.reservations if it.resident is not None
    )
    used = next((one.memory_used for one in host.current_readings if one.uuid == uuid), 0)
    foreign = max(0, used - allocated)
    amount = need.on(device.model)
    if amount is None:
        return allocated if device.memory - foreign >= WHOLE * device.memory else None
    if amount > device.memory - foreign:
        return None
    return max(0, amount - (device.memory - foreign - allocated))


def _not_loaded(load: OperationRecord) -> ErrorInfo:
    """Return why an inference is rejected whose LOAD did not succeed."""
    error = load.error or ErrorInfo.of(ErrorCode.LOAD_FAILED)
    message = f"The model could not be loaded for it: {error.message}"
    return ErrorInfo(code=error.code, message=message, detail={"load": load.operation_id})
