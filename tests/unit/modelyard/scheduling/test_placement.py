"""Placement: the host that fits and has the most room, and why none does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.contract.capacity.needs import ContainerNeed
from modelyard.contract.capacity.offers import HostCapacity
from modelyard.contract.states import Admission, Liveness
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.placement import FreeCapacity, Placed, PlacementPolicy, Unplaced
from modelyard.store.records import HostRecord, Reservation

GIB = 1 << 30


def host(
    name: str,
    *,
    slots: int = 4,
    used: int = 0,
    liveness: Liveness = Liveness.ONLINE,
    admission: Admission = Admission.OPEN,
    **labels: str,
) -> HostRecord:
    return HostRecord(
        host_id=name,
        slots=slots,
        reservations=tuple(
            Reservation(job_id=f"of-{name}-{n}", generation=1, token="t") for n in range(used)
        ),
        liveness=liveness,
        admission=admission,
        labels=labels,
        incarnation="boot-1",
    )


def capacity_of(
    hosts: list[HostRecord], policy: PlacementPolicy = PlacementPolicy.BINPACK
) -> FreeCapacity:
    return FreeCapacity({one.host_id: one for one in hosts}, policy=policy)


def chosen(capacity: FreeCapacity, **labels: str) -> str:
    found = capacity.place(PlacementRequest(labels=labels))
    assert isinstance(found, Placed)
    return found.host.host_id


@pytest.mark.parametrize(
    ("policy", "wanted"), [(PlacementPolicy.BINPACK, "c"), (PlacementPolicy.SPREAD, "b")]
)
def test_the_host_that_is_used_most_or_least_is_chosen_by_the_policy(
    policy: PlacementPolicy, wanted: str
) -> None:
    hosts = [host("a", used=2), host("b", used=1), host("c", used=3)]
    assert chosen(capacity_of(hosts, policy)) == wanted


def sized(name: str, *held: Reservation, cpus: float = 8.0) -> HostRecord:
    capacity = HostCapacity(cpus=cpus, memory=64 * GIB)
    there = host(name, labels="x")
    return there.model_copy(update={"slots": None, "capacity": capacity, "reservations": held})


def takes(
    cpus: float, memory: int = 0, *, job: str = "j", temporary: bool = True
) -> PlacementRequest:
    need = ContainerNeed(millicpus=round(cpus * 1_000), memory=memory)
    return PlacementRequest(job_id=job, container=need, at_once=temporary, temporary=temporary)


def held(cpus: float, *, temporary: bool) -> Reservation:
    millicpus = round(cpus * 1_000)
    return Reservation(
        job_id="held", generation=1, token="t", millicpus=millicpus, temporary=temporary
    )


def test_what_a_large_job_waits_for_is_not_given_to_small_ones_behind_it() -> None:
    capacity = capacity_of([sized("a", held(4, temporary=True))])
    assert isinstance(capacity.place(takes(6, job="large")), Unplaced)
    small = capacity.place(takes(1, job="small"))
    assert small == Unplaced(("1 host keeps what is free for a more urgent operation",))


def test_a_small_job_that_does_not_delay_the_large_one_goes_ahead_of_it() -> None:
    capacity = capacity_of([sized("a", held(4, temporary=True)), sized("b", cpus=4)])
    assert isinstance(capacity.place(takes(6, 60 * GIB, job="large")), Unplaced)
    elsewhere = capacity.place(takes(1, job="on-another-host"))
    assert isinstance(elsewhere, Placed)
    assert elsewhere.host.host_id == "b"
    beside = capacity.place(takes(0, 4 * GIB, job="of-what-it-leaves-over"))
    assert isinstance(beside, Placed)
    assert beside.host.host_id in ("a", "b")
    assert isinstance(capacity.place(takes(3, 30 * GIB, job="fills-b")), Placed)
    assert isinstance(capacity.place(takes(1, job="would-delay")), Unplaced)


def test_nothing_is_kept_where_only_what_stays_for_ever_would_have_to_leave() -> None:
    capacity = capacity_of([sized("a", held(4, temporary=False))])
    assert isinstance(capacity.place(takes(6, job="large")), Unplaced)
    assert isinstance(capacity.place(takes(4, job="small")), Placed)


def test_nothing_is_kept_where_what_this_pass_has_placed_would_have_to_leave() -> None:
    capacity = capacity_of([sized("a", held(4, temporary=True))])
    assert isinstance(capacity.place(takes(3, job="stays", temporary=False)), Placed)
    assert isinstance(capacity.place(takes(6, job="large")), Unplaced)
    assert isinstance(capacity.place(takes(1, job="small")), Placed)


def test_a_host_is_kept_where_what_this_pass_has_placed_ends_by_itself() -> None:
    capacity = capacity_of([sized("a")])
    assert isinstance(capacity.place(takes(4, job="ends")), Placed)
    assert isinstance(capacity.place(takes(6, job="large")), Unplaced)
    assert isinstance(capacity.place(takes(1, job="small")), Unplaced)


def test_equal_hosts_are_taken_by_name() -> None:
    assert chosen(capacity_of([host("b"), host("a")])) == "a"


def test_what_was_placed_before_in_the_same_pass_takes_room() -> None:
    capacity = capacity_of([host("a", slots=1), host("b", slots=1)])
    assert [chosen(capacity), chosen(capacity)] == ["a", "b"]
    assert isinstance(capacity.place(PlacementRequest()), Unplaced)


def test_labels_must_match_by_value() -> None:
    capacity = capacity_of([host("a", gpu="t4"), host("b", used=3, gpu="a100")])
    assert chosen(capacity, gpu="a100") == "b"


def test_without_hosts_the_reason_says_so() -> None:
    assert capacity_of([]).place(PlacementRequest()) == Unplaced(
        ("no host is registered",), hopeless=True
    )


def test_reasons_count_the_hosts_that_each_holds_for() -> None:
    capacity = capacity_of(
        [
            host("a", slots=1, used=1),
            host("b", slots=2, used=2),
            host("c", liveness=Liveness.SUSPECT),
            host("d", admission=Admission.CORDONED),
            host("e"),
        ]
    )
    for _ in range(4):
        capacity.place(PlacementRequest())
    assert capacity.place(PlacementRequest()) == Unplaced(
        ("3 hosts: each has no free slot", "1 host is CORDONED", "1 host is SUSPECT"),
    )


def test_a_missing_label_is_named_with_its_value() -> None:
    assert capacity_of([host("a")]).place(PlacementRequest(labels={"gpu": "a100"})) == Unplaced(
        ("1 host does not have the label gpu=a100",), hopeless=True
    )


@pytest.mark.parametrize(
    ("there", "hopeless"),
    [
        (host("a", slots=1, used=1, gpu="t4"), False),
        (host("a", liveness=Liveness.SUSPECT, gpu="t4"), False),
        (host("a", admission=Admission.CORDONED, gpu="t4"), False),
        (host("a", liveness=Liveness.LOST, gpu="t4"), True),
        (host("a", slots=0, gpu="t4"), True),
        (host("a", gpu="a100"), True),
    ],
)
def test_what_lacks_room_may_wait_and_what_lacks_a_host_is_hopeless(
    there: HostRecord, *, hopeless: bool
) -> None:
    found = capacity_of([there]).place(PlacementRequest(labels={"gpu": "t4"}))
    assert isinstance(found, Unplaced)
    assert found.hopeless is hopeless


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6),
    st.integers(0, 40),
)
def test_no_host_is_ever_given_more_than_it_has(sizes: list[tuple[int, int]], jobs: int) -> None:
    hosts = [host(f"h{i}", slots=slots, used=used) for i, (slots, used) in enumerate(sizes)]
    capacity = capacity_of(hosts)
    given_to: dict[str, int] = {}
    for _ in range(jobs):
        found = capacity.place(PlacementRequest())
        if isinstance(found, Placed):
            given_to[found.host.host_id] = given_to.get(found.host.host_id, 0) + 1
    free = {one.host_id: max(0, (one.slots or 0) - len(one.reservations)) for one in hosts}
    assert all(count <= free[name] for name, count in given_to.items())
    assert sum(given_to.values()) == min(jobs, sum(free.values()))
