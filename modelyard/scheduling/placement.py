"""Placement: which host a job goes to, and what it holds there. Pure.

A snapshot in, a decision with its reasons out. The rules are in docs/capacity.md.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import chain, islice

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation, Room
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
    chosen_devices,
    closed_to,
    lacking,
)
from modelyard.scheduling.locality import nearest
from modelyard.scheduling.refusals import not_loadable, summed_up
from modelyard.scheduling.survey import NO_MEMORY, Rows, Survey, Table
from modelyard.store.records import HostRecord, JobRecord

LearnedOf = Callable[[ModelSpec], Learned]
"""Returns what was learned of a model."""

_LEAST_MILLICPUS, _LEAST_MEMORY = 10, 6 << 20
"""The smallest container that Docker makes."""


UNEVEN = 0.25
"""The part of a host by which it may be used more than another one and still be chosen by `SPREAD`,
because it has what a job needs."""
BEHIND_ALL = 1 << 62
"""A rank that no operation reaches: of what need not have room, so that it leaves what is kept for
those that do."""
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
    crowded: bool = False
    """True if it may help that models leave memory."""


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


KeptOn = Callable[[str], Sequence[Kept]]
"""Returns what is being cleared on a host."""


class FreeCapacity:
    """The hosts of one snapshot, and what earlier decisions of this pass left of them."""

    def __init__(
        self,
        hosts: Mapping[str, HostRecord],
        kept: KeptOn = lambda _: (),
        learned: LearnedOf = lambda _: NOTHING_LEARNED,
        *,
        policy: PlacementPolicy = PlacementPolicy.BINPACK,
        table: Table | None = None,
    ) -> None:
        """`hosts` are by id; `table` has the same, if it is known."""
        self.learned = learned
        self._hosts = hosts
        self._all = table
        self._policy = policy
        self._kept = kept
        self._refused: dict[object, Unplaced] = {}
        """By what was needed: room only becomes less within a pass."""
        self._left: dict[str, Room] = {}
        """The room of hosts that this pass has taken something of."""
        self._lasting: dict[str, Room] = {}
        """The lasting room of hosts that this pass has taken something of which stays."""
        self._awaited: dict[str, Allocation] = {}
        """By host: what a more urgent operation waits for there. What it needs and others leave
        over is not given to operations behind it."""
        self._nowhere: set[object] = set()
        """What no host had room for at once, likewise, with the model in memory."""
        self._awaiting: set[tuple[tuple[str, str], ...]] = set()
        """The labels of those for which a host is kept: one operation for each set of labels."""
        self._last: tuple[Survey, PlacementRequest] | None = None
        """The one for which a host is to be kept before the next decision, if there is one."""

    def host(self, host_id: str) -> HostRecord | None:
        """Return a host of the snapshot."""
        return self._hosts.get(host_id)

    @cached_property
    def _table(self) -> Table:
        """The hosts as numbers; a pass that places nothing does not need them."""
        return (self._all or Table(self._hosts.values())).fork()

    @property
    def any_left(self) -> bool:
        """True if some host has room for the smallest container."""
        least = PlacementRequest(
            container=ContainerNeed(millicpus=_LEAST_MILLICPUS, memory=_LEAST_MEMORY)
        )
        return self._best(self._table.survey(least).fitting, least) is not None

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
        self._await_for_last()
        labels = tuple(sorted(need.labels.items()))
        same_need = (labels, need.container, need.resident, need.at_once)
        if (known := self._refused.get(same_need)) is not None:
            return known
        found = self._table.survey(need)
        if (best := self._best(found.fitting, need)) is not None:
            return self._take(need, *best)
        refusals = self._table.refusals(found, need)
        own = sum(self._holds_already(row, need) for row in found.fitting)
        refusals += Counter({OWN: own, KEPT_FOR_OTHERS: len(found.fitting) - own})
        hopeful = self._table.could_help(found, need)
        # Most operations are spared a look at what is in memory, which would not help them.
        crowded = (need.at_once and not need.resident.nothing) or (
            refusals[NO_MEMORY] > 0 and self._models_hold_memory
        )
        unplaced = Unplaced(
            summed_up(refusals, need), hopeless=not hopeful, crowded=hopeful and crowded
        )
        kept = any(self._kept(self._table.hosts[row].host_id) for row in found.fitting)
        if not own and not kept:
            self._refused[same_need] = unplaced
        if need.awaits and not unplaced.hopeless and labels not in self._awaiting:
            self._awaiting.add(labels)
            self._last = found, need
        return unplaced

    def hold(
        self, job: JobRecord, spec: ModelSpec, rank: int
    ) -> ResidentAllocation | Unplaced | None:
        """Take what a job's model needs in memory, on the devices that are bound to its container.

        None if it needs no more than its container holds. `rank` is that of the operation.
        """
        self._await_for_last()
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
            memory, devices = resident.memory, resident.devices
            self._give(host, lambda left: left.without_memory(memory, devices), stays=True)
        return resident

    def request_to_load(self, job: JobRecord, spec: ModelSpec) -> PlacementRequest:
        """Return what a job's model needs that `hold` did not get on its host."""
        learned = self.learned(spec)
        request = PlacementRequest.of(job, spec, learned, at_once=True, dataset=job.dataset_spec)
        host = self._hosts.get(job.host_id or "")
        held = host.reservation(job.job_id, job.generation) if host else None
        if held is None:
            return request
        return replace(request, resident=need_beside(spec, learned, held.memory))

    def elsewhere(self, job: JobRecord, spec: ModelSpec) -> Placed | None:
        """Choose where an unloaded job can be created anew with room for its model, and take that.

        Other devices of its own host go first: its image and its dataset are there. None if there
        is no such place. What is kept for anybody else is no room, however long the job has waited:
        the models that left have left for that one, which would have others leave instead. The
        allocation is that of the new container; of the model the room is only taken from those who
        are decided on later in this pass.
        """
        self._await_for_last()
        learned, dataset = self.learned(spec), job.dataset_spec
        need = PlacementRequest.of(job, spec, learned, at_once=True, dataset=dataset)
        need = replace(need, rank=BEHIND_ALL)
        if (here := self._other_devices(job, spec, need)) is not None:
            return here
        labels = tuple(sorted(need.labels.items()))
        same_need = (labels, need.container, need.resident)
        if same_need in self._nowhere:
            return None
        found = self._table.survey(need).fitting
        # Nor does it go where it is: there is what it waits for.
        others = [row for row in found if self._table.hosts[row].host_id != job.host_id]
        best = self._best(others, need)
        if best is None:
            if not found:  # otherwise room is kept, perhaps for one that needs as much
                self._nowhere.add(same_need)
            return None
        taken = self._take(need, *best)
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
        self._give(host, lambda left: left.without_memory(model.memory, given), stays=True)
        container = held.model_copy(update={"generation": job.next_generation, "devices": devices})
        return Placed(host, Allocation(**container.model_dump(exclude={"token"})))

    def _best(self, fitting: Rows, need: PlacementRequest) -> tuple[HostRecord, Room] | None:
        """Return the host to take, with what the job could be given there; None if all is kept."""
        hosts = self._table.hosts
        avoided = [row for row in fitting if hosts[row].host_id in need.avoid] if need.avoid else []
        others = [row for row in fitting if row not in avoided] if avoided else fitting
        return self._first(others, need) or self._first(avoided, need)

    def _first(self, fitting: Rows, need: PlacementRequest) -> tuple[HostRecord, Room] | None:
        """Return the first host by the policy, if possible one where the model can be loaded."""
        if not need.at_once and not need.resident.nothing:
            loading = replace(need, at_once=True)
            ready = self._table.left.fitting(fitting, loading)
            if (best := self._not_kept(ready, loading)) is not None:
                return best
        return self._not_kept(fitting, need)

    def _not_kept(self, fitting: Rows, need: PlacementRequest) -> tuple[HostRecord, Room] | None:
        """Return the first host that fits without what is kept for others.

        By what they have of what the job needs, and then by the policy.
        """
        if self._policy is PlacementPolicy.SPREAD and need.image:
            fitting = self._evenly_used(fitting, need)
        rows = chain.from_iterable(map(self._by_policy, nearest(self._table, fitting, need)))
        return next(self._usable(rows, need), None)

    def _evenly_used(self, fitting: Rows, need: PlacementRequest) -> Rows:
        """Return the hosts that are not used much more than the one that is used least."""
        used = self._table.used
        least = next(self._usable(self._by_policy(fitting), need), None)
        if least is None:
            return ()
        most = used[self._table.row_of[least[0].host_id]] + UNEVEN
        return [row for row in fitting if used[row] <= most]

    def _usable(
        self, rows: Iterable[int], need: PlacementRequest
    ) -> Iterator[tuple[HostRecord, Room]]:
        """Return hosts that fit without what is kept for others, with what is left of them."""
        for row in rows:
            if self._holds_already(row, need):
                continue
            host = self._table.hosts[row]
            left, room = self._left_of(host), self._room(host, need)
            if room is left or lacking(room, need, when_empty=False) is None:
                yield host, room

    def _holds_already(self, row: int, need: PlacementRequest) -> bool:
        return need.job_id in self._table.hosts[row].held_by

    def _by_policy(self, rows: Rows) -> Iterator[int]:
        """Return rows, the first one quickly."""
        used, most = self._table.used.__getitem__, self._policy is PlacementPolicy.BINPACK
        if rows:
            yield max(rows, key=used) if most else min(rows, key=used)
            yield from islice(sorted(rows, key=used, reverse=most), 1, None)

    def _take(self, need: PlacementRequest, host: HostRecord, room: Room) -> Placed:
        allocation = _allocation(need, chosen_devices(room, need), room)
        self._give(host, lambda room: room.without(allocation), stays=not need.temporary)
        return Placed(host, allocation)

    def _give(self, host: HostRecord, less: Callable[[Room], Room], *, stays: bool) -> None:
        """Take something of what is left of a host; and of what lasts, if it stays there."""
        left = self._left[host.host_id] = less(self._left_of(host))
        self._table.take(host, left)
        if stays:
            self._lasting[host.host_id] = less(self._lasting_of(host))

    @cached_property
    def _models_hold_memory(self) -> bool:
        """True if models hold memory of some host."""
        return any(host.memory_of_models for host in self._hosts.values())

    def _await_for_last(self) -> None:
        """Keep a host for an operation: one on which it fits once what ends by itself has ended.

        Of those the one that is used least. Nothing is kept where jobs would have to leave that may
        stay for ever.
        """
        if self._last is None:
            return
        (found, need), self._last = self._last, None
        table, lasting = self._table, self._table.lasting()
        for host_id, room in self._lasting.items():
            lasting.put(table.row_of[host_id], room)
        fitting = [
            row
            for row in lasting.fitting(found.suited, need)
            if table.hosts[row].host_id not in self._awaited and not self._holds_already(row, need)
        ]
        if fitting:
            host = table.hosts[min(fitting, key=table.used.__getitem__)]
            room = self._lasting_of(host)
            self._awaited[host.host_id] = _allocation(need, chosen_devices(room, need), room)

    def _left_of(self, host: HostRecord) -> Room:
        return self._left.get(host.host_id) or host.room

    def _lasting_of(self, host: HostRecord) -> Room:
        return self._lasting.get(host.host_id) or host.lasting_room

    def _room(self, host: HostRecord, need: PlacementRequest) -> Room:
        """Return what is left of a host for a job, without what is kept for others."""
        room = self._left_of(host)
        if host.host_id in self._awaited:
            room = room.without(self._awaited[host.host_id])
        ahead = [
            one
            for one in self._kept(host.host_id)
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
