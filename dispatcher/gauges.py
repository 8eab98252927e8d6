"""Gauges of what the leading dispatcher holds in memory; reading them asks nobody."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily

from dispatcher.maintenance.orphans import Orphans
from dispatcher.scheduling.fleet import Fleet
from dispatcher.scheduling.waiting import WaitingOperations
from modelyard.contract.states import Liveness, Verb
from modelyard.store.records import HostRecord

THERE = (Liveness.ONLINE, Liveness.SUSPECT)
"""A host that is LOST offers nothing, and nobody knows what is on it."""

Sums = Counter[tuple[str, ...]]


class LeaderGauges:
    """The gauges of one term."""

    def __init__(
        self,
        fleet: Fleet,
        orphans: Orphans,
        waiting: WaitingOperations,
        now: Callable[[], datetime | None],
    ) -> None:
        """`now` is the time by the database's clock, if it is known."""
        self._fleet = fleet
        self._orphans = orphans
        self._waiting = waiting
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield all gauges; the work is one look at each host."""
        now = self._now()
        yield from self._waiting_ones(now)
        hosts = self._fleet.held
        yield from _hosts(hosts)
        there = [one for one in hosts.values() if one.liveness in THERE]
        yield from _capacity(there)
        yield from _devices(there)
        if now is not None:
            yield _heartbeats(there, now)
        listed = sum(self._orphans.listed.get(one.host_id, 0) for one in there)
        orphans = self._orphans.count({one.host_id for one in there})
        expected = sum(len(one.reservations) for one in there)
        yield _family(
            "modelyard_containers",
            "Containers: listed by the hosts, reserved in the record, and orphans, which are "
            "listed and in no record.",
            ("side",),
            {("listed",): listed, ("reserved",): expected, ("orphan",): orphans},
        )

    def _waiting_ones(self, now: datetime | None) -> Iterator[GaugeMetricFamily]:
        found = self._waiting.by_verb
        names = [*Verb, *(set(found) - set(Verb))]
        yield _family(
            "modelyard_operations_waiting",
            "Operations that are QUEUED, counted up to the 20,000 oldest.",
            ("verb",),
            {(str(verb),): found[verb].count if verb in found else 0 for verb in names},
        )
        if now is None:
            return
        yield _family(
            "modelyard_oldest_waiting_age_seconds",
            "How long the oldest operation has been QUEUED, since it was accepted.",
            ("verb",),
            {
                (str(verb),): max(0.0, (now - oldest).total_seconds())
                for verb in names
                if verb in found and (oldest := found[verb].oldest) is not None
            },
        )


def _family(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family


def _hosts(hosts: Mapping[str, HostRecord]) -> Iterator[GaugeMetricFamily]:
    count, slots, used = Sums(), Sums(), Sums()
    for host in hosts.values():
        key = (host.liveness.value, host.admission.value)
        count[key] += 1
        slots[key] += host.slots or 0
        used[key] += host.slots_used
    labels = ("liveness", "admission")
    yield _family("modelyard_hosts", "Hosts.", labels, count)
    yield _family("modelyard_host_slots", "Slots of hosts that limit them.", labels, slots)
    yield _family("modelyard_host_slots_used", "Slots that jobs hold.", labels, used)


def _capacity(there: list[HostRecord]) -> Iterator[GaugeMetricFamily]:
    known = [one for one in there if one.capacity is not None]
    cpus = sum(one.total.millicpus or 0 for one in known) / 1_000
    memory = sum(one.total.memory or 0 for one in known)
    held = [allocation for one in known for allocation in one.reservations]
    yield _family(
        "modelyard_host_cpus",
        "Processors for containers: allocatable, and held by jobs.",
        ("kind",),
        {("allocatable",): cpus, ("allocated",): sum(one.millicpus for one in held) / 1_000},
    )
    yield _family(
        "modelyard_host_memory_bytes",
        "Host memory for containers: allocatable, and held by jobs.",
        ("kind",),
        {("allocatable",): memory, ("allocated",): sum(one.all_memory for one in held)},
    )


def _devices(there: list[HostRecord]) -> Iterator[GaugeMetricFamily]:
    states: Counter[str] = Counter({"free": 0, "allocated": 0, "tainted": 0})
    total = resident = 0
    for host in there:
        devices = host.capacity.devices if host.capacity else ()
        if not devices:
            continue
        bound = {uuid for one in host.reservations for uuid in one.devices}
        for device in devices:
            total += device.memory
            if device.uuid in host.taints:
                states["tainted"] += 1
            else:
                states["allocated" if device.uuid in bound else "free"] += 1
        resident += sum(host.held_on_devices.values())
    used = sum(reading.memory_used for host in there for reading in host.readings)
    yield _family(
        "modelyard_devices",
        "Devices: tainted, else bound to a container, else free.",
        ("state",),
        {(state,): count for state, count in states.items()},
    )
    yield _family(
        "modelyard_device_memory_bytes",
        "Memory of devices: allocatable, held by models in memory, and in use as measured.",
        ("kind",),
        {("allocatable",): total, ("resident",): resident, ("used",): used},
    )


def _heartbeats(there: list[HostRecord], now: datetime) -> GaugeMetricFamily:
    oldest: dict[tuple[str, ...], float] = {}
    for host in there:
        if host.last_seen is not None:
            key = (host.liveness.value,)
            age_s = max(0.0, (now - host.last_seen).total_seconds())
            oldest[key] = max(oldest.get(key, 0.0), age_s)
    return _family(
        "modelyard_oldest_heartbeat_age_seconds",
        "Age of the oldest of the hosts' last heartbeats.",
        ("liveness",),
        oldest,
    )
