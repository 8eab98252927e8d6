"""Placement: which host a job goes to, and what it holds there. Pure.

A snapshot in, a decision with its reasons out. The rules are in docs/capacity.md.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation, Room, used_part
from modelyard.contract.capacity.needs import (
    ContainerNeed,
    ResidentNeed,
    holds_while_loaded,
    need_beside,
)
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.scheduling.fitting import (
    KEPT_FOR_OTHERS,
    OWN,
    PlacementRequest,
    Refusal,
    chosen_devices,
    closed_to,
    loads_now,
    may_fit,
)
from modelyard.scheduling.locality import nearest
from modelyard.scheduling.refusals import not_loadable, summed_up
from modelyard.scheduling.survey import survey
from modelyard.store.records import HostRecord, JobRecord

LearnedOf = Callable[[ModelSpec], Learned]
"""Returns what was learned of a model."""

_LEAST_MILLICPUS, _LEAST_MEMORY = 10, 6 << 20
"""The smallest container that Docker makes."""


UNEVEN = 0.25
"""The part of a host by which it may be used more than another one and still be chosen by `SPREAD`,
because it has what a job needs."""
PLACEMENT_NOTE = "placement"
"""The leading dispatcher's note of its policy, for those who explain what it would do."""


class PlacementPolicy(StrEnum):
    """Which of the hosts that would start a job equally soon is taken."""

    BINPACK = "binpack"
    """The one that is used most: the others keep room for large models."""
    SPREAD = "spread"
    """The one that is used least."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The host that was chosen, and what the job holds of it."""

    host: HostRecord
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class Unplaced:
    """No host fits now; the reasons are for people."""

    reasons: tuple[str, ...]
    hopeless: bool = False
    """True if no known host would fit even when empty: only another host would help."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is being cleared on a host for the model of one job; operations behind it can't have it.

    Those before it can: otherwise two that wait for each other would wait for ever.
    """

    host_id: str
    job_id: str
    rank: int
    need: ResidentNeed
    devices: tuple[str, ...]


class FreeCapacity:
    """The hosts of one snapshot, and what earlier decisions of this pass left of them."""

    def __init__(
        self,
        hosts: Mapping[str, HostRecord],
        kept: Iterable[Kept] = (),
        learned: LearnedOf = lambda _: NOTHING_LEARNED,
        *,
        policy: PlacementPolicy = PlacementPolicy.BINPACK,
    ) -> None:
        """`hosts` are by id; ties go to the first of them."""
        self.learned = learned
        self._hosts = hosts
        self._policy = policy
        self._kept: dict[str, list[Kept]] = {}
        for one in kept:
            self._kept.setdefault(one.host_id, []).append(one)
        self._refused: dict[object, Unplaced] = {}
        """By what was needed: room only becomes less within a pass."""
        self._left: dict[str, Room] = {}
        """The room of hosts that this pass has taken something of."""
        self._awaited: dict[str, Allocation] = {}
        """By host: what a more urgent operation waits for there. What it needs and others leave
        over is not given to operations behind it."""
        self._nowhere: set[object] = set()
        """What no host had room for at once, likewise, with the model in memory."""
        self._awaiting: set[tuple[tuple[str, str], ...]] = set()
        """The labels of those for which a host is kept: one operation for each set of labels."""

    def host(self, host_id: str) -> HostRecord | None:
        """Return a host of the snapshot."""
        return self._hosts.get(host_id)

    @property
    def any_left(self) -> bool:
        """True if some host has room for the smallest container."""
        least = PlacementRequest(
            container=ContainerNeed(millicpus=_LEAST_MILLICPUS, memory=_LEAST_MEMORY)
        )
        return bool(survey(self._rooms(least), least).fitting)

    def place(self, need: PlacementRequest) -> Placed | Unplaced:
        """Choose the host where the job can start soonest, and take what it needs.

        In this order: hosts in `need.avoid`, where an attempt has failed, only if no other fits;
        then those on which the model can be loaded now; then those that have its image and its
        dataset, or its image; then by the policy. With `SPREAD` only hosts that are used not much
        more than another one are compared by what they have: otherwise all jobs of a model would
        go to the first host that pulled its image. Ties go to the first host id, so that the same
        snapshot always gives the same answer. If no host fits, the one that will fit by itself is
        kept for it: what it needs there is given to no operation that is decided on later in this
        pass.
        """
        labels = tuple(sorted(need.labels.items()))
        same_need = (labels, need.container, need.resident, need.at_once)
        if (known := self._refused.get(same_need)) is not None:
            return known
        found = survey(self._rooms(need), need)
        if found.fitting:
            return self._take(need, *self._best(found.fitting, need))
        unplaced = self._unplaced(need, found.refusals)
        if not found.refusals[OWN] and not self._kept:
            self._refused[same_need] = unplaced
        if need.awaits and not unplaced.hopeless and labels not in self._awaiting:
            self._await(need, labels)
        return unplaced

    def hold(
        self, job: JobRecord, spec: ModelSpec, rank: int
    ) -> ResidentAllocation | Unplaced | None:
        """Take what a job's model needs in memory, on the devices that are bound to its container.

        None if it needs no more than its container holds. `rank` is that of the operation.
        """
        host = self._hosts.get(job.host_id or "")
        if not holds_while_loaded(spec) or host is None:
            return None
        held = host.reservation(job.job_id, job.generation)
        if held is None:
            return Unplaced((f"host {host.host_id} does not hold a place for this job yet",))
        if held.resident is not None:
            # It was given to an earlier attempt, which did not come to an end.
            return held.resident.model_copy(update={"version": job.version})
        need = need_beside(spec, self.learned(spec), held.memory)
        # A container of an older version has no devices bound: nobody knows which it uses.
        bound = held.devices if len(held.devices) == need.devices else ()
        room = self._room(host, PlacementRequest(job_id=job.job_id, rank=rank))
        reason = not_loadable(room, need, bound)
        if reason is not None and not_loadable(self._left_of(host), need, bound) is None:
            reason = KEPT_FOR_OTHERS
        if reason is not None:
            return Unplaced((f"host {host.host_id} {reason}",))
        resident = _resident(need, bound, room, job.version)
        if resident is not None:
            self._left[host.host_id] = self._left_of(host).without_memory(
                resident.memory, resident.devices
            )
        return resident

    def request_to_load(self, job: JobRecord, spec: ModelSpec) -> PlacementRequest:
        """Return what a job's model needs that `hold` did not get on its host."""
        learned = self.learned(spec)
        request = PlacementRequest.of(job, spec, learned, at_once=True)
        host = self._hosts.get(job.host_id or "")
        held = host.reservation(job.job_id, job.generation) if host else None
        if held is None:
            return request
        return replace(request, resident=need_beside(spec, learned, held.memory))

    def elsewhere(self, job: JobRecord, spec: ModelSpec, rank: int) -> Placed | None:
        """Choose where an unloaded job can be created anew with room for its model, and take that.

        Other devices of its own host go first: its image and its dataset are there. None if there
        is no such place. The allocation is that of the new container; of the model the room is only
        taken from those who are decided on later in this pass.
        """
        learned, dataset = self.learned(spec), job.dataset_spec
        need = PlacementRequest.of(job, spec, learned, at_once=True, dataset=dataset)
        need = replace(need, rank=rank)
        if (here := self._other_devices(job, spec, need)) is not None:
            return here
        labels = tuple(sorted(need.labels.items()))
        same_need = (labels, need.container, need.resident)
        kept_for_it = any(one.job_id == job.job_id for it in self._kept.values() for one in it)
        if same_need in self._nowhere and not kept_for_it:
            return None
        others = ((host, room) for host, room in self._rooms(need) if host.host_id != job.host_id)
        fitting = survey(others, need).fitting
        if not fitting:
            self._nowhere.add(same_need)
            return None
        host, room = self._best(fitting, need)
        taken = self._take(need, host, room)
        return replace(taken, allocation=taken.allocation.model_copy(update={"resident": None}))

    def _other_devices(
        self, job: JobRecord, spec: ModelSpec, need: PlacementRequest
    ) -> Placed | None:
        """Take room for a model on other devices of the host that its job is on.

        Its new container holds what the old one did.
        """
        host = self._hosts.get(job.host_id or "")
        held = host.held_by.get(job.job_id) if host is not None else None
        if host is None or held is None or held.resident is not None or not need.container.devices:
            return None
        if held.generation != job.generation:  # as a dispatcher left it that died; the sweep helps
            return None
        room = self._room(host, need)
        model = need_beside(spec, self.learned(spec), held.memory)
        if closed_to(host, need) is not None or not_loadable(room, model, ()) is not None:
            return None
        if not room.has_devices(model, need.container.devices, loads=True):
            return None
        devices = chosen_devices(room, replace(need, resident=model))
        given = {uuid: room.devices[uuid].given(model) for uuid in devices}
        self._left[host.host_id] = self._left_of(host).without_memory(model.memory, given)
        container = held.model_copy(update={"generation": job.next_generation, "devices": devices})
        return Placed(host, Allocation(**container.model_dump(exclude={"token"})))

    def _best(
        self, fitting: list[tuple[HostRecord, Room]], need: PlacementRequest
    ) -> tuple[HostRecord, Room]:
        """Return the host to take: of those that are left after each rule, by the policy."""
        if need.avoid:
            fitting = [one for one in fitting if one[0].host_id not in need.avoid] or fitting
        if not need.at_once and not need.resident.nothing:
            fitting = [one for one in fitting if loads_now(one[1], need)] or fitting
        if self._policy is PlacementPolicy.SPREAD:
            most = min(self._used_part(host) for host, _ in fitting) + UNEVEN
            fitting = [one for one in fitting if self._used_part(one[0]) <= most]
        fitting = nearest(fitting, need)
        used = [self._used_part(host) for host, _ in fitting]
        wanted = max(used) if self._policy is PlacementPolicy.BINPACK else min(used)
        equal = [one for one, part in zip(fitting, used, strict=True) if part == wanted]
        return min(equal, key=lambda one: one[0].host_id)

    def _used_part(self, host: HostRecord) -> float:
        if self._left and (left := self._left.get(host.host_id)) is not None:
            return used_part(host.total, left)
        return host.used_part

    def _take(self, need: PlacementRequest, host: HostRecord, room: Room) -> Placed:
        allocation = _allocation(need, chosen_devices(room, need), room)
        self._left[host.host_id] = self._left_of(host).without(allocation)
        return Placed(host, allocation)

    def _unplaced(self, need: PlacementRequest, refusals: Counter[Refusal]) -> Unplaced:
        refusals.update(self._correction(need))
        of_kinds = {host.kind: host for host in self._hosts.values()}
        hopeful = any(may_fit(host, need) for host in of_kinds.values())
        return Unplaced(summed_up(refusals, need), hopeless=not hopeful)

    def _correction(self, need: PlacementRequest) -> Counter[Refusal]:
        """Return what to add to refusals, so that room which is kept for others is called that."""
        hosts = [self._hosts[host_id] for host_id in self._awaited]
        kept = [one for one, _ in survey(((it, self._left_of(it)) for it in hosts), need).fitting]
        if not kept:
            return Counter()
        correction = Counter[Refusal]({KEPT_FOR_OTHERS: len(kept)})
        correction.subtract(survey(((it, self._room(it, need)) for it in kept), need).refusals)
        return correction

    def _await(self, need: PlacementRequest, labels: tuple[tuple[str, str], ...]) -> None:
        """Keep a host for an operation: one on which it fits once what ends by itself has ended.

        Of those the one that is used least. Nothing is kept where jobs would have to leave that may
        stay for ever.
        """
        self._awaiting.add(labels)
        hosts = (
            (host, host.lasting_room)
            for host_id, host in self._hosts.items()
            if host_id not in self._awaited
        )
        fitting = survey(hosts, need).fitting
        if fitting:
            host, _ = min(fitting, key=lambda one: (one[0].used_part, one[0].host_id))
            room = self._left_of(host)
            self._awaited[host.host_id] = _allocation(need, chosen_devices(room, need), room)

    def _rooms(self, need: PlacementRequest) -> Iterable[tuple[HostRecord, Room]]:
        """Return all hosts with what a job could be given there."""
        special = {*self._left, *self._awaited, *self._kept}
        if not special:
            return ((host, host.room) for host in self._hosts.values())
        return (
            (host, self._room(host, need) if host_id in special else host.room)
            for host_id, host in self._hosts.items()
        )

    def _left_of(self, host: HostRecord) -> Room:
        return self._left.get(host.host_id) or host.room

    def _room(self, host: HostRecord, need: PlacementRequest) -> Room:
        """Return what is left of a host for a job, without what is kept for others."""
        room = self._left_of(host)
        if host.host_id in self._awaited:
            room = room.without(self._awaited[host.host_id])
        ahead = [
            one
            for one in self._kept.get(host.host_id, ())
            if one.rank <= need.rank and one.job_id != need.job_id and _still_waits(one, host)
        ]
        return _without(room, ahead) if ahead else room


def _still_waits(kept: Kept, host: HostRecord) -> bool:
    """Tell whether the job that room is kept for holds no memory here yet."""
    held = host.held_by.get(kept.job_id)
    return held is None or held.resident is None


def _without(room: Room, kept: Iterable[Kept]) -> Room:
    """Return what is left when all of these have got what is kept for them."""
    memory, devices = 0, Counter[str]()
    for one in kept:
        memory += one.need.memory
        for uuid in one.devices:
            if uuid in room.devices:
                devices[uuid] += room.devices[uuid].given(one.need)
    return room.without_memory(memory, devices)


def _allocation(need: PlacementRequest, devices: tuple[str, ...], room: Room) -> Allocation:
    return Allocation.of(
        need.job_id,
        need.generation,
        need.container,
        devices=devices,
        temporary=need.temporary,
        resident=_resident(need.resident, devices, room, need.version) if need.at_once else None,
    )


def _resident(
    need: ResidentNeed, devices: tuple[str, ...], room: Room, version: int
) -> ResidentAllocation | None:
    if need.nothing:
        return None
    given = {uuid: room.devices[uuid].given(need) for uuid in devices if uuid in room.devices}
    return ResidentAllocation(version=version, memory=need.memory, devices=given)
