"""Placement: chooses a host for a job. Pure: a snapshot in, a decision with its reasons out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelyard.contract.states import Admission, Liveness
from modelyard.store.records import HostRecord


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What a job needs of its host."""

    labels: Mapping[str, str] = field(default_factory=dict)
    slots: int = 1
    job_id: str = ""
    avoid: frozenset[str] = frozenset()
    """Hosts that are chosen only if no other fits."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The host that was chosen."""

    host: HostRecord


@dataclass(frozen=True, slots=True)
class Unplaced:
    """No host fits now; the reasons are for people."""

    reasons: tuple[str, ...]
    hopeless: bool = False
    """True if no known host would fit even when empty: only another host would help."""


class FreeCapacity:
    """The hosts of one snapshot and the slots that earlier decisions of this pass left free."""

    def __init__(self, hosts: Mapping[str, HostRecord]) -> None:
        """`hosts` are by id; ties go to the first of them."""
        self._hosts = hosts
        self._taken: Counter[str] = Counter()

    def _free(self, host: HostRecord) -> int:
        return host.slots - host.slots_used - self._taken[host.host_id]

    def host(self, host_id: str) -> HostRecord | None:
        """Return a host of the snapshot."""
        return self._hosts.get(host_id)

    @property
    def any_left(self) -> bool:
        """True if some host has a slot free for a job without label requirements."""
        return any(
            _refusal(host, PlacementRequest(), self._free(host)) is None
            for host in self._hosts.values()
        )

    def place(self, need: PlacementRequest) -> Placed | Unplaced:
        """Choose the host with the most free slots among those that fit, and take its slots.

        Hosts in `need.avoid`, where an attempt has failed, are chosen only if no other fits.
        Ties go to the first host id, so that the same snapshot always gives the same answer.
        """
        refusals: Counter[str] = Counter()
        fitting: list[HostRecord] = []
        for host in self._hosts.values():
            refusal = _refusal(host, need, self._free(host))
            if refusal is None:
                fitting.append(host)
            else:
                refusals[refusal] += 1
        if not fitting:
            hopeful = any(_may_fit(host, need) for host in self._hosts.values())
            return Unplaced(_explain(refusals), hopeless=not hopeful)
        best = min(
            fitting,
            key=lambda host: (
                host.host_id in need.avoid,
                -self._free(host),
                host.host_id,
            ),
        )
        self._taken[best.host_id] += need.slots
        return Placed(best)


def _refusal(host: HostRecord, need: PlacementRequest, free: int) -> str | None:
    if host.liveness is not Liveness.ONLINE:
        return f"is {host.liveness}"
    if host.admission is not Admission.OPEN:
        return f"is {host.admission}"
    for label, value in need.labels.items():
        if host.labels.get(label) != value:
            return f"does not have the label {label}={value}"
    if free < need.slots:
        return "has no free slot"
    if any(held.job_id == need.job_id for held in host.reservations):
        return "still has a reservation of this job"
    return None


def _may_fit(host: HostRecord, need: PlacementRequest) -> bool:
    """Tell whether the host would fit if it were ONLINE, OPEN and empty."""
    return (
        host.liveness is not Liveness.LOST
        and host.slots >= need.slots
        and all(host.labels.get(label) == value for label, value in need.labels.items())
    )


def _explain(refusals: Counter[str]) -> tuple[str, ...]:
    if not refusals:
        return ("no host is registered",)
    return tuple(
        f"1 host {reason}" if count == 1 else f"{count} hosts: each {reason}"
        for reason, count in sorted(refusals.items())
    )
