"""The loop over all hosts decides as the rules for one host do."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.needs import ContainerNeed, ResidentNeed
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.states import Admission, Liveness
from modelyard.scheduling.fitting import OWN, PlacementRequest, refusal_of
from modelyard.scheduling.survey import Table
from modelyard.store.records import HostRecord, Reservation

models = st.sampled_from(["T4", "A100"])
DEVICES = ("d0", "d1")
OPEN = {"liveness": Liveness.ONLINE, "admission": Admission.OPEN}
labels = st.dictionaries(st.just("zone"), st.sampled_from(["a", "b"]))


@st.composite
def hosts(draw: st.DrawFn) -> HostRecord:
    """Draw a host with small numbers, so that needs often just fit."""
    sizes = draw(st.lists(st.integers(1, 4), max_size=2))
    devices = tuple(
        Device(uuid=DEVICES[i], index=i, memory=size, model=draw(models))
        for i, size in enumerate(sizes)
    )
    holding = draw(st.lists(st.integers(0, 2), max_size=3))
    held = [
        Allocation(
            job_id=f"j{number}",
            generation=1,
            millicpus=amount,
            memory=amount,
            temporary=draw(st.booleans()),
            resident=ResidentAllocation(memory=amount, devices={devices[0].uuid: amount})
            if devices and amount
            else None,
        )
        for number, amount in enumerate(holding)
    ]
    return HostRecord(
        host_id=draw(st.sampled_from("abc")),
        slots=draw(st.none() | st.integers(0, 3)),
        incarnation="boot",
        liveness=draw(st.sampled_from(Liveness)),
        admission=draw(st.sampled_from(Admission)),
        labels=draw(labels),
        capacity=draw(
            st.none()
            | st.builds(
                HostCapacity,
                cpus=st.sampled_from([0, 0.002, 0.004]),
                memory=st.integers(0, 6),
                devices=st.just(devices),
            )
        ),
        reservations=tuple(Reservation(**dict(one), token="t") for one in held),
    )


needs = st.builds(
    PlacementRequest,
    job_id=st.sampled_from(["j0", "other"]),
    labels=labels,
    container=st.builds(
        ContainerNeed,
        millicpus=st.integers(0, 3),
        memory=st.integers(0, 3),
        devices=st.integers(0, 3),
        slots=st.integers(0, 2),
    ),
    resident=st.builds(
        ResidentNeed,
        memory=st.integers(0, 3),
        devices=st.just(1),
        device_memory=st.none() | st.integers(0, 3),
        learned=st.sampled_from([(), (("T4", 2),), (("T4", 1), ("A100", 3))]),
    ),
    at_once=st.booleans(),
)


@given(st.lists(hosts(), max_size=5, unique_by=lambda one: one.host_id), needs)
def test_the_survey_of_many_hosts_says_what_each_host_says(
    fleet: list[HostRecord], need: PlacementRequest
) -> None:
    check(Table(fleet), fleet, need)


@given(
    st.lists(hosts(), min_size=3, max_size=3).map(
        lambda found: [one.model_copy(update={"host_id": "abc"[n]}) for n, one in enumerate(found)]
    ),
    st.lists(hosts(), max_size=4),
    needs,
)
def test_a_host_that_is_replaced_counts_as_it_is_now(
    fleet: list[HostRecord], changed: list[HostRecord], need: PlacementRequest
) -> None:
    table, there = Table(fleet), {one.host_id: one for one in fleet}
    for host in changed:
        check(table, list(there.values()), need)
        there[host.host_id] = host
        table.put([host])
    check(table, list(there.values()), need)


def check(table: Table, fleet: list[HostRecord], need: PlacementRequest) -> None:
    fork = table.fork()
    refusals = {one.host_id: refusal_of(one, need, one.room) for one in fleet}
    refusals |= {name: None for name, refusal in refusals.items() if refusal == OWN}
    found = fork.survey(need)
    fitting = [fork.hosts[row].host_id for row in found.fitting]
    assert fitting == sorted(name for name, refusal in refusals.items() if refusal is None)
    assert fork.refusals(found, need) == Counter(filter(None, refusals.values()))
    fits = (None, OWN)
    lasting = [one.host_id for one in fleet if refusal_of(one, need, one.lasting_room) in fits]
    rows = fork.lasting().fitting(found.suited, need)
    assert [fork.hosts[row].host_id for row in rows] == sorted(lasting)
    could_help = any(
        one.liveness is not Liveness.LOST
        and refusal_of(one.model_copy(update=OPEN), need, one.total) in fits
        for one in fleet
    )
    assert fork.could_help(found, need) is could_help
