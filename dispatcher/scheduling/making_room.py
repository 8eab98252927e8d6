"""Making room: which models to unload on which host, so that an operation could start. Pure."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from itertools import islice

from dispatcher.scheduling.eviction import Candidate, cheapest
from dispatcher.scheduling.usage import Usage
from modelyard.contract.capacity.ledger import WHOLE, DeviceRoom
from modelyard.contract.capacity.needs import ResidentNeed
from modelyard.scheduling.fitting import lacks_memory, loadable_when_empty
from modelyard.scheduling.leaving import Stays, is_leaving, why_it_stays
from modelyard.scheduling.placement import Kept, Placed
from modelyard.scheduling.planning import Crowded
from modelyard.store.records import HostRecord, JobLine, JobRecord, OperationRecord

HOSTS_AT_ONCE = 5
"""Hosts that are looked at for an operation that is not on a host yet."""
KEPT_S = 30.0
"""Seconds for which room is kept after the last eviction for an operation."""
LOAD_S = 1.0
"""Seconds that a load counts for which has not been measured."""
MEMORY = "memory"
"""The host's memory, among the uuids of its devices."""


def hosts_for(one: Crowded, hosts: Mapping[str, HostRecord]) -> list[HostRecord]:
    """Return the hosts on which an operation could start, at most `HOSTS_AT_ONCE`."""
    if one.host_id is not None:
        return [hosts[one.host_id]] if one.host_id in hosts else []
    # What needs no device gets room only where models hold memory of the host.
    fitting = (
        host
        for host in hosts.values()
        if (one.need.devices or host.memory_of_models) and loadable_when_empty(host, one.request)
    )
    return list(islice(fitting, HOSTS_AT_ONCE))


@dataclass(frozen=True, slots=True)
class Way:
    """Models to unload on one host, so that an operation could start there."""

    cost: float
    host_id: str
    jobs: tuple[str, ...]
    devices: tuple[str, ...] = ()
    """Where the operation's model would be then."""


@dataclass(frozen=True, slots=True)
class RoomDecision:
    """How an operation gets room; nothing is set if nothing would help it."""

    way: Way | None = None
    """What to unload now; no models, if it has to wait for those that leave already."""
    later: Way | None = None
    """Set instead if nothing may be unloaded now, and it will have room when others have left."""
    elsewhere: Placed | None = None
    """Set instead if its job is to be created anew where its model has room."""


def residents_of(host: HostRecord, besides: Crowded) -> list[str]:
    """Return the jobs that hold memory where another one needs it, without that one."""
    need = besides.need
    return [
        one.job_id
        for one in host.reservations
        if one.resident
        and one.job_id != besides.request.job_id
        and (
            (need.memory and one.resident.memory)
            or (need.devices and not besides.bound)
            or not one.resident.devices.keys().isdisjoint(besides.bound)
        )
    ]


class _MayLeave(Enum):
    """Which models count as leaving to make room, besides those that do already."""

    IDLE = "idle"
    """Those that may be unloaded at once."""
    IN_USE = "in use"
    """Those with inferences in line too: those that run end first, the others load it again."""
    LATER = "later"
    """All that may have to leave at some time, and jobs that end by themselves."""


_LEAVE: Mapping[_MayLeave, frozenset[Stays | None]] = {
    _MayLeave.IDLE: frozenset({None}),
    _MayLeave.IN_USE: frozenset({None, Stays.IN_USE}),
    _MayLeave.LATER: frozenset({None, *Stays} - {Stays.BY_HAND, Stays.PINNED}),
}


def decide(
    one: Crowded,
    there: Iterable[tuple[HostRecord, Sequence[JobLine]]],
    now: datetime,
    *,
    swap_wait_s: float,
    usage: Usage,
) -> RoomDecision:
    """Return what to unload so that an operation could start, where that costs least.

    `there` has the hosts of `hosts_for`, each with the lines of its `residents_of`. After
    `swap_wait_s` seconds of waiting also models that are in use make room.

    No model has to leave that would be loaded again, while there is room elsewhere and a container
    starts there at once: then the job goes there. If it has to fetch its image first, it goes there
    only if nothing may be unloaded now.
    """
    offers = list(there)

    def cheapest_way(leaving: _MayLeave) -> Way | None:
        ways = [
            way
            for host, lines in offers
            for way in _ways(one, host, _candidates(host, lines, now, leaving, usage))
        ]
        return min(ways, key=lambda way: (way.cost, len(way.jobs), way.host_id), default=None)

    accepted_at = one.operation.accepted_at
    waited_s = (now - accepted_at).total_seconds() if accepted_at else -math.inf
    way = cheapest_way(_MayLeave.IN_USE if waited_s >= swap_wait_s else _MayLeave.IDLE)
    if way is not None and not (way.cost > 0 and one.elsewhere_at_hand):
        return RoomDecision(way)
    if one.elsewhere is not None:
        return RoomDecision(elsewhere=one.elsewhere)
    return RoomDecision(later=cheapest_way(_MayLeave.LATER))


def _candidates(
    host: HostRecord, lines: Iterable[JobLine], now: datetime, leaving: _MayLeave, usage: Usage
) -> list[Candidate]:
    """Return what would leave a host; what leaves already costs nothing."""
    found: list[Candidate] = []
    for line in lines:
        held = host.reservation(line.job.job_id, line.job.generation)
        if held is None or held.resident is None:
            continue
        frees = {**held.resident.devices, MEMORY: held.resident.memory}
        if is_leaving(line):
            found.append(Candidate(held.job_id, 0.0, frees))
        elif held.temporary:
            if leaving is _MayLeave.LATER:
                frees[MEMORY] += held.memory
                found.append(Candidate(held.job_id, 0.0, frees))
        elif why_it_stays(line, now) in _LEAVE[leaving]:
            found.append(Candidate(held.job_id, _reload_cost(line.job, usage), frees))
    return found


def _reload_cost(job: JobRecord, usage: Usage) -> float:
    """Return what it costs to have a model back: its last load, times how often it is used."""
    return (job.load_s or LOAD_S) * (1e-6 + usage.rate(job.job_id))


@dataclass(frozen=True, slots=True)
class _KeptUntil:
    kept: Kept
    operation: OperationRecord
    until: float
    """A moment of the monotonic clock."""


class KeptRoom:
    """What is being cleared for operations, so that nobody else takes it meanwhile."""

    def __init__(
        self, clock: Callable[[], float], waits: Callable[[OperationRecord], bool]
    ) -> None:
        """Keep nothing yet; `waits` tells whether an operation still waits."""
        self._clock = clock
        self._waits = waits
        self._kept: dict[str, _KeptUntil] = {}
        """By job; what ends first is the first."""
        self._on: dict[str, set[str]] = defaultdict(set)
        """The jobs for which something is kept, by host."""

    def follow(self, one: Crowded, decision: RoomDecision) -> None:
        """Keep room for an operation where models leave for it, now or later.

        As long as that takes: what is free there already is not given to others either. So is the
        place to which its job goes. None is kept any more if nothing would help.
        """
        way, elsewhere = decision.way or decision.later, decision.elsewhere
        if elsewhere is not None:
            self._keep(one, Way(0.0, elsewhere.host.host_id, (), elsewhere.allocation.devices))
        elif way is None:
            self.give_up(one.request.job_id)
        elif way.jobs or decision.later:
            self._keep(one, way)

    def _keep(self, one: Crowded, way: Way) -> None:
        """Keep what the operation needs where its model is bound to, or will be."""
        operation, job_id = one.operation, one.request.job_id
        kept = Kept(way.host_id, job_id, operation.rank, one.need, way.devices)
        self.give_up(job_id)
        self._kept[kept.job_id] = _KeptUntil(kept, operation, self._clock() + KEPT_S)
        self._on[kept.host_id].add(kept.job_id)

    def give_up(self, job_id: str) -> None:
        """Keep nothing for a job any more: its own model leaves, or nothing would help it."""
        known = self._kept.pop(job_id, None)
        if known is not None:
            there = self._on[known.kept.host_id]
            there.discard(job_id)
            if not there:
                del self._on[known.kept.host_id]

    def waiting_on(self, host_ids: Collection[str]) -> list[str]:
        """Return the jobs for which room is kept on some hosts."""
        return [one.job_id for host_id in host_ids for one in self.on(host_id)]

    def on(self, host_id: str) -> list[Kept]:
        """Return what is kept on a host now."""
        now = self._clock()
        while self._kept and (first := next(iter(self._kept.values()))).until <= now:
            self.give_up(first.kept.job_id)
        there = [self._kept[job_id] for job_id in self._on.get(host_id, ())]
        for one in there:
            if not self._waits(one.operation):
                self.give_up(one.kept.job_id)
        return [one.kept for one in there if one.kept.job_id in self._kept]


def _ways(one: Crowded, host: HostRecord, there: Sequence[Candidate]) -> list[Way]:
    """Return how an operation could get room on a host: one way for each choice of devices."""
    need = one.need
    lacking: dict[str, int] = {}
    if lacks_memory(host.room, need.memory):
        lacking[MEMORY] = need.memory - (host.room.memory or 0)
    if not need.devices or (one.host_id is not None and not one.bound):
        return _way(host, lacking, there)
    if one.bound:
        for uuid in one.bound:
            amount = _lacks(host, uuid, need)
            if amount is None:
                return []
            lacking[uuid] = amount
        return _way(host, lacking, there, one.bound)
    singly: list[tuple[float, str]] = []
    amounts: dict[str, int] = {}
    for uuid in host.room.devices:
        amount = _lacks(host, uuid, need)
        if amount is None:
            continue
        amounts[uuid] = amount
        singly += [(way.cost, uuid) for way in _way(host, {uuid: amount}, there)]
    if len(singly) < need.devices:
        return []
    chosen = tuple(uuid for _, uuid in sorted(singly)[: need.devices])
    return _way(host, lacking | {uuid: amounts[uuid] for uuid in chosen}, there, chosen)


def _way(
    host: HostRecord,
    lacking: Mapping[str, int],
    there: Sequence[Candidate],
    devices: tuple[str, ...] = (),
) -> list[Way]:
    jobs = cheapest(lacking, there)
    if jobs is None:
        return []
    cost = {one.job_id: one.cost for one in there}
    return [Way(sum(cost[job_id] for job_id in jobs), host.host_id, jobs, devices)]


def _lacks(host: HostRecord, uuid: str, need: ResidentNeed) -> int | None:
    """Return the bytes that jobs have to free on a device; None if it could not take the model.

    What others than jobs use, as measured, is not freed by unloading.
    """
    device: DeviceRoom | None = host.total.devices.get(uuid)
    if device is None or not device.could_take(need) or uuid in host.taints:
        return None
    allocated, foreign = host.held_on_devices[uuid], host.foreign_on_devices[uuid]
    amount = need.on(device.model)
    if amount is None:
        return allocated if device.memory - foreign >= WHOLE * device.memory else None
    if amount > device.memory - foreign:
        return None
    return max(0, amount - (device.memory - foreign - allocated))
