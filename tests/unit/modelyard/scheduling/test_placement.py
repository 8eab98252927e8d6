"""Placement: the host that fits and has the most room, and why none does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.contract.states import Admission, Liveness
from modelyard.scheduling.placement import FreeCapacity, Placed, PlacementRequest, Unplaced
from modelyard.store.records import HostRecord, Reservation


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


def capacity_of(hosts: list[HostRecord]) -> FreeCapacity:
    return FreeCapacity({one.host_id: one for one in hosts})


def chosen(capacity: FreeCapacity, **labels: str) -> str:
    found = capacity.place(PlacementRequest(labels=labels))
    assert isinstance(found, Placed)
    return found.host.host_id


def test_the_host_with_the_most_free_slots_is_chosen() -> None:
    assert chosen(capacity_of([host("a", used=2), host("b", used=1), host("c", used=3)])) == "b"


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
