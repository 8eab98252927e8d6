"""The loop over all hosts decides as the rules for one host do."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.needs import ContainerNeed, ResidentNeed
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.states import Admission, Liveness
from modelyard.scheduling.fitting import PlacementRequest, refusal_of
from modelyard.scheduling.survey import survey
from modelyard.store.records import HostRecord, Reservation

DEVICES = ("d0", "d1")
labels = st.dictionaries(st.just("zone"), st.sampled_from(["a", "b"]))


@st.composite
def hosts(draw: st.DrawFn) -> HostRecord:
    """Draw a host with small numbers, so that needs often just fit."""
    sizes = draw(st.lists(st.integers(1, 4), max_size=2))
    devices = tuple(Device(uuid=DEVICES[i], index=i, memory=size) for i, size in enumerate(sizes))
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
        device_memory=st.none() | st.integers(1, 3),
    ),
    at_once=st.booleans(),
)


@given(st.lists(hosts(), max_size=5), needs)
def test_the_survey_of_many_hosts_says_what_each_host_says(
    fleet: list[HostRecord], need: PlacementRequest
) -> None:
    refusals = [refusal_of(host, need, host.room) for host in fleet]
    found = survey(((host, host.room) for host in fleet), need)
    assert [host for host, _ in found.fitting] == [
        host for host, refusal in zip(fleet, refusals, strict=True) if refusal is None
    ]
    assert found.refusals == Counter(one for one in refusals if one is not None)
