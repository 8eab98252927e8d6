"""Looks at all hosts for one job: in a fleet of thousands this is what a placement costs. Pure.

The rules and their order are those of `fitting`. Hosts are the rows of a table, and each rule is
one look at a column of numbers.
"""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain

from modelyard.contract.capacity.ledger import DevicesOfAKind, Room, has_devices, used_part
from modelyard.contract.capacity.needs import ResidentNeed
from modelyard.contract.states import Liveness
from modelyard.scheduling.fitting import (
    Lacks,
    PlacementRequest,
    Refusal,
    Shortage,
    not_open,
    shortage,
    without_label,
)
from modelyard.store.records import HostRecord

Rows = Sequence[int]
"""Numbers of hosts in the table, in their order."""
NO_MEMORY = Shortage(Lacks.MEMORY, when_empty=False)
MOST_KNOWN = 100
"""Labels, images and datasets of which a table knows by heart which hosts have them."""


class Rooms:
    """One room of each host: a column for each number, and a row for each host.

    Arrays, because what matters is how much memory a look at all hosts touches.
    """

    def __init__(self, rooms: Iterable[Room]) -> None:
        self.slots, self.millicpus, self.memory = array("d"), array("d"), array("d")
        self.whole = array("d")
        """Devices that one model could have for itself."""
        self.sizes: list[array[float]] = []
        """The largest device of each host, then the second, and so on; -1 where there is none."""
        self.free: list[array[float]] = []
        """The same for what is free."""
        self.kinds: list[tuple[DevicesOfAKind, ...]] = []
        self.models: set[str] = set()
        for room in rooms:
            for column in self._numbers():
                column.append(-1)
            self.kinds.append(())
            self.put(len(self.kinds) - 1, room)

    def fork(self) -> "Rooms":
        """Return a copy that changes by itself."""
        other = copy(self)
        other.slots, other.millicpus = self.slots[:], self.millicpus[:]
        other.memory, other.whole = self.memory[:], self.whole[:]
        other.sizes = [column[:] for column in self.sizes]
        other.free = [column[:] for column in self.free]
        other.kinds, other.models = self.kinds[:], {*self.models}
        return other

    def put(self, row: int, room: Room) -> None:
        """Replace the room of one host."""
        kinds = self.kinds[row] = room.kinds_of_devices
        self.slots[row] = math.inf if room.slots is None else room.slots
        self.millicpus[row] = math.inf if room.millicpus is None else room.millicpus
        self.memory[row] = math.inf if room.memory is None else room.memory
        self.whole[row] = sum(kind.whole for kind in kinds)
        self.models.update(kind.model for kind in kinds)
        self._rank(self.sizes, row, chain.from_iterable(kind.sizes for kind in kinds))
        self._rank(self.free, row, chain.from_iterable(kind.free for kind in kinds))

    def steps(
        self, rows: Rows, need: PlacementRequest, *, when_empty: bool
    ) -> Iterator[tuple[Lacks, Rows]]:
        """Return which rows are left after each rule of `lacking`."""
        wanted, loads = need.container, need.at_once or when_empty
        memory = wanted.memory + need.resident.memory if loads else wanted.memory
        for lacks, column, amount in (
            (Lacks.SLOTS, self.slots, wanted.slots),
            (Lacks.CPUS, self.millicpus, wanted.millicpus),
            (Lacks.MEMORY, self.memory, memory),
        ):
            if amount:
                rows = [row for row in rows if column[row] >= amount]
            yield lacks, rows
        if wanted.devices:
            now = need.at_once and not when_empty
            yield Lacks.DEVICES, self._with_devices(rows, need.resident, wanted.devices, loads=now)

    def fitting(self, rows: Rows, need: PlacementRequest) -> Rows:
        """Return the rows that have room for a job now."""
        for _, left in self.steps(rows, need, when_empty=False):
            rows = left
        return rows

    def _with_devices(self, rows: Rows, need: ResidentNeed, count: int, *, loads: bool) -> Rows:
        amounts = {model: need.on(model) for model in self.models}
        different = {*amounts.values()}
        if len(different) > 1:
            kinds = self.kinds
            return [row for row in rows if has_devices(kinds[row], amounts, count, loads=loads)]
        there, least = self.free if loads else self.sizes, different.pop() if different else None
        if len(there) < count:
            return []
        column, amount = there[count - 1], least or 0
        if least is None and loads:
            column, amount = self.whole, count
        return [row for row in rows if column[row] >= amount]

    def _numbers(self) -> Iterable["array[float]"]:
        first = (self.slots, self.millicpus, self.memory, self.whole)
        return chain(first, self.sizes, self.free)

    def _rank(self, columns: list["array[float]"], row: int, values: Iterable[int]) -> None:
        ranked = sorted(values, reverse=True)
        while len(columns) < len(ranked):
            columns.append(array("d", [-1]) * len(self.slots))
        for position, column in enumerate(columns):
            column[row] = ranked[position] if position < len(ranked) else -1


@dataclass(frozen=True, slots=True)
class Step:
    """What one rule made of some rows."""

    before: Rows
    after: Rows
    why: Lacks | str
    """What is said of those that it refused."""
    when_empty: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """What all hosts say to one job."""

    suited: Rows
    """Those that could take it if they were empty."""
    fitting: Rows
    """Those that have room for it."""
    steps: Sequence[Step]


class Table:
    """The hosts of a snapshot, as numbers.

    The dispatcher keeps one and replaces the hosts that change; each pass takes from a fork of it.
    """

    def __init__(self, hosts: Iterable[HostRecord]) -> None:
        self.hosts = sorted(hosts, key=lambda one: one.host_id)
        self.row_of = {one.host_id: row for row, one in enumerate(self.hosts)}
        self.used = array("d", (one.used_part for one in self.hosts))
        """The part of each that is used, 0 to 1."""
        self.left = Rooms(one.room for one in self.hosts)
        self._total = Rooms(one.total for one in self.hosts)
        self._models = [_models(one) for one in self.hosts]
        self._is_open = bytearray(one.is_open for one in self.hosts)
        self._open: Rows = [row for row, is_open in enumerate(self._is_open) if is_open]
        self._known: dict[tuple[str, ...], frozenset[int]] = {}
        """The rows that have a label with a value, an image or a dataset: those that were asked for
        lately."""
        self._outdated: set[int] = set()
        self._lasting = self.left.fork()
        self._lasting_outdated = {*range(len(self.hosts))}

    def put(self, hosts: Iterable[HostRecord]) -> None:
        """Replace some hosts; their numbers are calculated when they are needed."""
        for host in hosts:
            row = self.row_of[host.host_id]
            if _what_it_has(host) != _what_it_has(self.hosts[row]):
                self._known.clear()
            self.hosts[row] = host
            self._outdated.add(row)
            self._lasting_outdated.add(row)

    def fork(self) -> "Table":
        """Return a copy from which can be taken."""
        for row in self._outdated:
            host = self.hosts[row]
            self.used[row] = host.used_part
            self.left.put(row, host.room)
            self._total.put(row, host.total)
            self._models[row], self._is_open[row] = _models(host), host.is_open
        if self._outdated:
            self._open = [row for row, is_open in enumerate(self._is_open) if is_open]
            self._outdated.clear()
        other = copy(self)
        other.left, other.used = self.left.fork(), self.used[:]
        return other

    def take(self, host: HostRecord, left: Room) -> None:
        """Note what is left of a host."""
        row = self.row_of[host.host_id]
        self.left.put(row, left)
        self.used[row] = used_part(host.total, left)

    def lasting(self) -> Rooms:
        """Return what would be left once the jobs that end by themselves have ended."""
        for row in self._lasting_outdated:
            self._lasting.put(row, self.hosts[row].lasting_room)
        self._lasting_outdated.clear()
        return self._lasting.fork()

    def survey(self, need: PlacementRequest) -> Survey:
        """Return the hosts that can take a job with what is left of them."""
        steps = self._whatever_is_left(self._open, need)
        rows = suited = steps[-1].after
        for lacks, after in self.left.steps(rows, need, when_empty=False):
            steps.append(Step(rows, after, lacks))
            rows = after
        return Survey(suited, rows, steps)

    def refusals(self, found: Survey, need: PlacementRequest) -> Counter[Refusal]:
        """Return why hosts refuse, with the number of those that say so."""
        counts = Counter[Refusal](not_open(self.hosts[row]) for row in self._closed())
        for step in found.steps:
            if len(step.before) == len(step.after):
                continue
            if step.why is Lacks.DEVICES:
                refused = {*step.before}.difference(step.after)
                counts.update(self._without_devices(refused, need, when_empty=step.when_empty))
            else:
                said = step.why
                why = said if isinstance(said, str) else Shortage(said, step.when_empty)
                counts[why] += len(step.before) - len(step.after)
        return counts

    def could_help(self, found: Survey, need: PlacementRequest) -> bool:
        """Tell whether a host would fit if it were ONLINE, OPEN and empty."""
        if found.suited:
            return True
        back = [row for row in self._closed() if self.hosts[row].liveness is not Liveness.LOST]
        return bool(self._whatever_is_left(back, need)[-1].after)

    def with_image(self, image: str) -> frozenset[int]:
        """Return the hosts that are known to have an image."""
        return self._rows_with(("image", image), lambda host: image in host.images)

    def with_dataset(self, dataset: str) -> frozenset[int]:
        """Return the hosts that are known to have a dataset."""
        return self._rows_with(("dataset", dataset), lambda host: dataset in host.datasets)

    def _rows_with(
        self, what: tuple[str, ...], has: Callable[[HostRecord], bool]
    ) -> frozenset[int]:
        if (known := self._known.get(what)) is not None:
            return known
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        found = frozenset(row for row, host in enumerate(self.hosts) if has(host))
        self._known[what] = found
        return found

    def _labelled(self, label: str, value: str) -> frozenset[int]:
        what = ("label", label, value)
        return self._rows_with(what, lambda host: host.labels.get(label) == value)

    def _closed(self) -> set[int]:
        return {*range(len(self.hosts))}.difference(self._open)

    def _whatever_is_left(self, rows: Rows, need: PlacementRequest) -> list[Step]:
        """Return the steps of the rules that do not depend on what other jobs hold."""
        steps: list[Step] = []
        for label, value in need.labels.items():
            labelled = self._labelled(label, value)
            having = [row for row in rows if row in labelled]
            steps.append(Step(rows, having, without_label(label, value)))
            rows = having
        for lacks, after in self._total.steps(rows, need, when_empty=True):
            steps.append(Step(rows, after, lacks, when_empty=True))
            rows = after
        return steps

    def _without_devices(
        self, rows: Collection[int], need: PlacementRequest, *, when_empty: bool
    ) -> Counter[Refusal]:
        """Count shortages of devices: what is wanted depends on the models that hosts have."""
        one_of = {self._models[row]: row for row in rows}
        counts = Counter(map(self._models.__getitem__, rows))
        refusals: Counter[Refusal] = Counter()
        for models, row in one_of.items():
            total = self.hosts[row].total
            refusals[shortage(total, need, Lacks.DEVICES, when_empty=when_empty)] += counts[models]
        return refusals


def _what_it_has(host: HostRecord) -> tuple[object, ...]:
    return (host.labels, host.images, host.datasets)


def _models(host: HostRecord) -> frozenset[str]:
    return frozenset(one.model for one in host.total.devices.values())
