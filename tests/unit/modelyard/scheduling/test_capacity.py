"""Placement by processors, memory and devices, and what loading a model needs."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.offers import Device, DeviceReading, DeviceTaint, HostCapacity
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.states import JobState
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.placement import FreeCapacity, Placed, Unplaced
from modelyard.scheduling.refusals import refusal_to_load, refusal_with_numbers
from modelyard.store.records import HostRecord, JobRecord, Reservation

GIB = 1 << 30
A, B, C = "GPU-a", "GPU-b", "GPU-c"


def spec(**resources: object) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "m",
            "image": "x/y",
            "profile": Profile.OPEN_INFERENCE,
            "port": 8080,
            "resources": {"cpus": 1.0, "memory": "1g"} | resources,
        }
    )


def host(
    name: str = "h",
    *held: Allocation,
    cpus: float = 8.0,
    memory: int = 32 * GIB,
    devices: Sequence[int] = (),
    used: dict[str, int] | None = None,
    slots: int | None = None,
) -> HostRecord:
    there = tuple(
        Device(uuid=uuid, index=index, memory=size)
        for index, (uuid, size) in enumerate(zip((A, B, C), devices, strict=False))
    )
    return HostRecord(
        host_id=name,
        incarnation="boot",
        slots=slots,
        capacity=HostCapacity(cpus=cpus, memory=memory, devices=there),
        readings=tuple(DeviceReading(uuid=u, memory_used=size) for u, size in (used or {}).items()),
        reservations=tuple(Reservation(**dict(one), token="t") for one in held),
    )


def holds(job: str, *bound: str, **resident: int) -> Allocation:
    devices = {{"a": A, "b": B, "c": C}[name]: size for name, size in resident.items()}
    return Allocation(
        job_id=job,
        generation=1,
        devices=bound,
        resident=ResidentAllocation(version=1, devices=devices) if devices else None,
    )


def capacity(*hosts: HostRecord) -> FreeCapacity:
    return FreeCapacity({one.host_id: one for one in hosts})


def create(of: ModelSpec, job: str = "job") -> PlacementRequest:
    return PlacementRequest.of(JobRecord(job_id=job), of, NOTHING_LEARNED, at_once=False)


def temp(of: ModelSpec, job: str = "job") -> PlacementRequest:
    return PlacementRequest.of(JobRecord(job_id=job), of, NOTHING_LEARNED, at_once=True)


def placed(found: Placed | Unplaced) -> tuple[str, tuple[str, ...]]:
    assert isinstance(found, Placed), found
    return found.host.host_id, found.allocation.devices


def reasons(found: object) -> tuple[str, ...]:
    assert isinstance(found, Unplaced)
    return found.reasons


@pytest.mark.parametrize(
    ("there", "wanted", "said"),
    [
        (host(cpus=2.0), spec(cpus=4.0), "has less than 4 CPUs"),
        (host(memory=GIB), spec(memory="2g"), "has less than 2 GiB of memory"),
        (host(), spec(gpus=1), "has no device"),
        (host(devices=[GIB]), spec(gpus=2), "has too few devices"),
        (
            host(devices=[GIB]),
            spec(gpus=1, gpu_memory="2g"),
            "has no device with 2 GiB",
        ),
        (
            host(devices=[GIB, 4 * GIB]),
            spec(gpus=2, gpu_memory="2g"),
            "has too few devices with 2 GiB",
        ),
    ],
)
def test_what_never_fits_is_hopeless_and_named(
    there: HostRecord, wanted: ModelSpec, said: str
) -> None:
    assert capacity(there).place(create(wanted)) == Unplaced((f"1 host {said}",), hopeless=True)


@pytest.mark.parametrize(
    ("there", "wanted", "said"),
    [
        (
            host("h", Allocation(job_id="o", generation=1, millicpus=7_000)),
            spec(cpus=1.5),
            "has less than 1.5 CPUs free",
        ),
        (
            host("h", Allocation(job_id="o", generation=1, memory=31 * GIB)),
            spec(memory="1536m"),
            "has less than 1.5 GiB of memory free",
        ),
        (
            host("h", holds("o", A, a=7 * GIB), devices=[8 * GIB]),
            spec(gpus=1, gpu_memory="2g"),
            "has no device with 2 GiB free",
        ),
        (
            host("h", holds("o", A, a=GIB), devices=[8 * GIB]),
            spec(gpus=1),
            "has no device for one model alone",
        ),
        (
            host("h", devices=[8 * GIB], used={A: 7 * GIB}),
            spec(gpus=1, gpu_memory="2g"),
            "has no device with 2 GiB free",
        ),
        (
            host("h", devices=[8 * GIB], used={A: 7 * GIB}),
            spec(gpus=1),
            "has no device for one model alone",
        ),
    ],
)
def test_what_does_not_fit_now_waits_with_the_first_thing_it_lacks(
    there: HostRecord, wanted: ModelSpec, said: str
) -> None:
    found = capacity(there).place(temp(wanted))
    assert isinstance(found, Unplaced)
    assert (found.reasons, found.hopeless) == ((f"1 host {said}",), False)


def test_reasons_have_no_numbers_that_differ_between_hosts() -> None:
    hosts = [
        host(f"h{n}", Allocation(job_id="o", generation=1, millicpus=7_000 + 10 * n))
        for n in range(50)
    ]
    assert reasons(capacity(*hosts).place(create(spec(cpus=2.0)))) == (
        "50 hosts: each has less than 2 CPUs free",
    )


def test_an_unloaded_model_is_bound_to_a_device_beyond_its_memory() -> None:
    there = host("h", holds("o", A, a=8 * GIB), devices=[8 * GIB])
    assert placed(capacity(there).place(create(spec(gpus=1, gpu_memory="8g")))) == ("h", (A,))


def test_a_container_gets_the_device_where_its_model_can_be_loaded_soonest() -> None:
    there = host("h", holds("o", A, a=6 * GIB), devices=[8 * GIB, 4 * GIB])
    free = capacity(there)
    wanted = spec(gpus=1, gpu_memory="3g")
    assert placed(free.place(create(wanted, "one"))) == ("h", (B,))


def test_containers_are_spread_over_equal_devices() -> None:
    free = capacity(host(devices=[8 * GIB, 8 * GIB]))
    wanted = spec(gpus=1, gpu_memory="3g")
    assert [placed(free.place(create(wanted, f"j{n}")))[1] for n in range(4)] == [
        (A,), (B,), (A,), (B,),
    ]  # fmt: skip


def test_a_model_that_is_loaded_at_once_leaves_the_emptier_device_to_larger_ones() -> None:
    there = host("h", holds("o", A, a=5 * GIB), devices=[8 * GIB, 8 * GIB])
    assert placed(capacity(there).place(temp(spec(gpus=1, gpu_memory="3g")))) == ("h", (A,))


def test_a_host_where_the_model_can_be_loaded_now_goes_first() -> None:
    full = host("a", holds("o", A, a=8 * GIB), devices=[8 * GIB])
    busy = host("b", Allocation(job_id="p", generation=1, millicpus=7_000), devices=[8 * GIB])
    assert placed(capacity(full, busy).place(create(spec(gpus=1, gpu_memory="3g")))) == ("b", (A,))


def test_a_host_is_as_full_as_what_is_used_most_of_it() -> None:
    hosts = [
        host("a", Allocation(job_id="o", generation=1, memory=20 * GIB)),
        host("b", Allocation(job_id="o", generation=1, millicpus=3_000)),
    ]
    assert placed(capacity(*hosts).place(create(spec())))[0] == "a"


def test_one_pass_gives_a_device_once() -> None:
    free = capacity(host(devices=[8 * GIB]))
    assert placed(free.place(temp(spec(gpus=1), "one"))) == ("h", (A,))
    assert reasons(free.place(temp(spec(gpus=1), "two"))) == (
        "1 host has no device for one model alone",
    )


def test_a_host_that_does_not_tell_its_capacity_has_only_its_slots() -> None:
    old = HostRecord(host_id="old", incarnation="boot", slots=1)
    assert placed(capacity(old).place(create(spec(cpus=64.0, memory="1t"))))[0] == "old"
    assert isinstance(capacity(old).place(create(spec(gpus=1))), Unplaced)


def loading(there: HostRecord, of: ModelSpec, job: str = "job") -> object:
    record = JobRecord(
        job_id=job, state=JobState.CREATED, host_id="h", generation=1, version=9, spec=of
    )
    return capacity(there).hold(record, of, rank=0)


def test_loading_takes_memory_on_the_devices_that_are_bound() -> None:
    there = host("h", holds("job", B), devices=[8 * GIB, 8 * GIB])
    assert loading(there, spec(gpus=1, gpu_memory="3g")) == ResidentAllocation(
        version=9, devices={B: 3 * GIB}
    )
    assert loading(there, spec(gpus=1)) == ResidentAllocation(version=9, devices={B: 8 * GIB})


def test_a_model_without_a_need_of_its_own_holds_nothing() -> None:
    assert loading(host("h", holds("job")), spec()) is None


@pytest.mark.parametrize(
    ("other", "of", "said"),
    [
        (
            holds("o", A, a=6 * GIB),
            spec(gpus=1, gpu_memory="3g"),
            "host h has less than 3 GiB free on the device GPU-a",
        ),
        (
            holds("o", A, a=1),
            spec(gpus=1),
            "host h does not have the device GPU-a for one model alone",
        ),
        (
            Allocation(job_id="o", generation=1, memory=31 * GIB),
            spec(memory="2g", resident_memory="2g"),
            "host h has less than 2 GiB of memory free",
        ),
    ],
)
def test_a_model_waits_for_what_another_one_holds(
    other: Allocation, of: ModelSpec, said: str
) -> None:
    bound = (A,) if of.resources.gpus else ()
    there = host("h", other, holds("job", *bound), devices=[8 * GIB])
    assert reasons(loading(there, of)) == (said,)


def test_a_device_that_is_gone_is_named() -> None:
    there = host("h", holds("job", C), devices=[8 * GIB])
    assert reasons(loading(there, spec(gpus=1))) == (
        "host h does not have the device GPU-c any more",
    )


def test_an_attempt_takes_over_what_an_earlier_one_held() -> None:
    there = host("h", holds("job", A, a=8 * GIB), devices=[8 * GIB], used={A: 8 * GIB})
    assert loading(there, spec(gpus=1)) == ResidentAllocation(version=9, devices={A: 8 * GIB})


def test_a_container_of_an_older_version_holds_no_device() -> None:
    there = host("h", holds("job"), devices=[8 * GIB])
    assert loading(there, spec(gpus=1)) == ResidentAllocation(version=9)


RESOURCES = st.fixed_dictionaries(
    {
        "cpus": st.sampled_from([0.5, 1.0, 3.0]),
        "memory": st.sampled_from(["1g", "5g", "12g"]),
        "resident_memory": st.sampled_from([None, "1g"]),
        "gpus": st.integers(0, 2),
        "gpu_memory": st.sampled_from([0, "1g", "3g", "7g"]),
    }
).map(lambda one: one | ({} if one["gpus"] else {"gpu_memory": 0}))


@given(
    st.lists(st.tuples(RESOURCES, st.booleans()), max_size=25),
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 32), st.integers(0, 3)), max_size=3),
)
def test_no_pass_ever_gives_more_than_there_is(
    wanted: list[tuple[dict[str, object], bool]], sizes: list[tuple[int, int, int]]
) -> None:
    hosts = {
        f"h{n}": host(f"h{n}", cpus=float(cpus), memory=memory * GIB, devices=[8 * GIB] * devices)
        for n, (cpus, memory, devices) in enumerate(sizes)
    }
    free = FreeCapacity(hosts)
    given_to: dict[str, list[Allocation]] = {name: [] for name in hosts}
    for number, (resources, at_once) in enumerate(wanted):
        job = JobRecord(job_id=f"j{number}")
        found = free.place(
            PlacementRequest.of(job, spec(**resources), NOTHING_LEARNED, at_once=at_once)
        )
        if isinstance(found, Placed):
            assert len(set(found.allocation.devices)) == resources["gpus"]
            given_to[found.host.host_id].append(found.allocation)
    for name, there in hosts.items():
        held = [Reservation(**dict(one), token="t") for one in given_to[name]]
        room = there.model_copy(update={"reservations": tuple(held)}).room
        assert (room.millicpus or 0) >= 0
        assert (room.memory or 0) >= 0
        assert all(one.free >= 0 for one in room.devices.values())


KIND = "Test"


def knows(device: int | None = None, memory: int | None = None) -> Learned:
    """Return what was learned, in GiB."""
    return Learned(
        None if memory is None else memory * GIB,
        () if device is None else ((KIND, device * GIB),),
    )


def with_kind(there: HostRecord) -> HostRecord:
    assert there.capacity is not None
    named = tuple(one.model_copy(update={"model": KIND}) for one in there.capacity.devices)
    return there.model_copy(
        update={"capacity": there.capacity.model_copy(update={"devices": named})}
    )


def load_on(there: HostRecord, of: ModelSpec, learned: Learned) -> object:
    free = FreeCapacity({"h": there}, learned=lambda _: learned)
    job = JobRecord(
        job_id="job", state=JobState.CREATED, host_id="h", generation=1, version=9, spec=of
    )
    return free.hold(job, of, rank=0)


AUTO = spec(gpus=1, gpu_memory="auto")


def test_a_model_of_which_nothing_is_known_has_its_device_for_itself_the_first_time() -> None:
    there = with_kind(host("h", holds("job", A), devices=[8 * GIB]))
    assert load_on(there, AUTO, NOTHING_LEARNED) == ResidentAllocation(
        version=9, devices={A: 8 * GIB}
    )
    shared = with_kind(host("h", holds("o", A, a=GIB), holds("job", A), devices=[8 * GIB]))
    assert reasons(load_on(shared, AUTO, NOTHING_LEARNED)) == (
        "host h does not have the device GPU-a for one model alone",
    )
    assert load_on(shared, AUTO, knows(3)) == ResidentAllocation(version=9, devices={A: 3 * GIB})


def test_a_model_that_takes_more_than_it_declares_holds_what_it_takes() -> None:
    there = with_kind(host("h", holds("job", A), devices=[8 * GIB]))
    declared = spec(gpus=1, gpu_memory="2g")
    assert load_on(there, declared, knows(5)) == ResidentAllocation(version=9, devices={A: 5 * GIB})
    assert load_on(there, declared, knows(1)) == ResidentAllocation(version=9, devices={A: 2 * GIB})


def test_a_load_that_lacks_what_was_measured_says_both_numbers() -> None:
    there = with_kind(host("h", holds("o", A, a=6 * GIB), holds("job", A), devices=[8 * GIB]))
    declared = spec(gpus=1, gpu_memory="2g")
    assert reasons(load_on(there, declared, knows(5))) == (
        "host h has less than 5 GiB (measured; 2 GiB declared) free on the device GPU-a",
    )
    job = JobRecord(job_id="job", host_id="h", generation=1)
    assert refusal_to_load(there, job, declared, knows(5)) == (
        "it needs 5 GiB (measured; 2 GiB declared) on 1 device; GPU-a has 2 GiB of 8 GiB free"
    )


def test_a_model_that_was_measured_to_fit_no_device_says_so() -> None:
    there = with_kind(host("h", holds("job", A), devices=[8 * GIB]))
    assert reasons(load_on(there, AUTO, knows(9))) == (
        "host h has only 8 GiB on the device GPU-a, not 9 GiB (measured)",
    )
    free = FreeCapacity({"h": there})
    request = PlacementRequest.of(JobRecord(job_id="new"), AUTO, knows(9), at_once=False)
    found = free.place(request)
    assert isinstance(found, Unplaced)
    assert found == Unplaced(("1 host has no device with 9 GiB (measured)",), hopeless=True)
    assert refusal_with_numbers(there, request) == (
        "it needs 9 GiB (measured) on 1 device; GPU-a has 8 GiB of 8 GiB free even when empty"
    )


def test_a_temp_holds_what_a_load_would() -> None:
    there = with_kind(host(devices=[8 * GIB]))
    of = spec(gpus=1, gpu_memory="2g", memory="4g", resident_memory="1g")
    request = PlacementRequest.of(JobRecord(job_id="t"), of, knows(5, memory=3), at_once=True)
    found = FreeCapacity({"h": there}).place(request)
    assert isinstance(found, Placed)
    assert found.allocation.resident == ResidentAllocation(memory=3 * GIB, devices={A: 5 * GIB})
    assert found.allocation.all_memory == 4 * GIB


def test_what_an_attempt_that_did_not_end_was_given_is_not_asked_for_again() -> None:
    there = with_kind(host("h", holds("job", A, a=2 * GIB), devices=[8 * GIB]))
    assert load_on(there, spec(gpus=1, gpu_memory="2g"), knows(5)) == ResidentAllocation(
        version=9, devices={A: 2 * GIB}
    )


def test_a_load_takes_what_its_container_does_not_hold_already() -> None:
    of = spec(memory="4g", resident_memory="auto")
    before = Allocation(job_id="job", generation=1, memory=0)
    assert load_on(host("h", before), of, knows(memory=1)) == ResidentAllocation(
        version=9, memory=4 * GIB
    )
    since = before.model_copy(update={"memory": 3 * GIB})
    assert load_on(host("h", since), of, NOTHING_LEARNED) == ResidentAllocation(
        version=9, memory=GIB
    )
    all_held = before.model_copy(update={"memory": 4 * GIB})
    assert load_on(host("h", all_held), of, knows(memory=0)) is None


def tainted(there: HostRecord, uuid: str = A) -> HostRecord:
    taint = DeviceTaint(memory=4 * GIB, job_id="gone")
    reading = DeviceReading(uuid=uuid, memory_used=4 * GIB, tainted=taint)
    return there.model_copy(update={"readings": (reading,)})


TAINTED = "the device GPU-a is tainted: 4 GiB not given back by job gone"


def test_nothing_is_loaded_on_a_tainted_device() -> None:
    there = tainted(host("h", holds("job", A), devices=[80 * GIB]))
    of = spec(gpus=1, gpu_memory="1g")
    assert reasons(loading(there, of)) == (f"host h can't use a device: {TAINTED}",)
    job = JobRecord(job_id="job", host_id="h", generation=1)
    assert refusal_to_load(there, job, of, NOTHING_LEARNED) == (
        f"it needs 1 GiB on 1 device; {TAINTED}"
    )


@pytest.mark.parametrize("at_once", [True, False], ids=["temp", "create"])
def test_containers_are_bound_to_devices_that_are_not_tainted(*, at_once: bool) -> None:
    there = tainted(host(devices=[80 * GIB, 8 * GIB]))
    of = spec(gpus=1, gpu_memory="1g")
    one = PlacementRequest.of(JobRecord(job_id="j"), of, NOTHING_LEARNED, at_once=at_once)
    assert placed(capacity(there).place(one)) == ("h", (B,))
    two = PlacementRequest.of(JobRecord(job_id="j"), spec(gpus=2), NOTHING_LEARNED, at_once=at_once)
    found = capacity(there).place(two)
    assert isinstance(found, Unplaced)
    assert not found.hopeless
    said = refusal_with_numbers(there, two)
    assert said is not None
    assert TAINTED in said


def test_models_without_a_device_go_to_a_host_with_a_tainted_one() -> None:
    assert placed(capacity(tainted(host(devices=[8 * GIB]))).place(create(spec()))) == ("h", ())


def test_a_model_that_needs_no_host_memory_is_loaded_though_all_of_that_is_kept() -> None:
    ends = Allocation(job_id="ends", generation=1, memory=4 * GIB, temporary=True)
    there = host("h", ends, holds("job", A), memory=4 * GIB, devices=[8 * GIB])
    free = FreeCapacity({"h": there})
    assert isinstance(free.place(create(spec(memory="3g"), "waits")), Unplaced)
    job = JobRecord(job_id="job", state=JobState.CREATED, host_id="h", generation=1, version=9)
    assert free.hold(job, spec(gpus=1, gpu_memory="2g"), rank=1) == ResidentAllocation(
        version=9, devices={A: 2 * GIB}
    )


def test_a_job_waits_for_the_device_that_becomes_free_and_leaves_the_others_alone() -> None:
    stays, ends = holds("stays", B, b=6 * GIB), holds("ends", A, a=5 * GIB)
    ends = ends.model_copy(update={"temporary": True})
    there = host("h", stays, ends, holds("job", B), devices=[8 * GIB, 8 * GIB])
    free = FreeCapacity({"h": there})
    assert isinstance(free.place(temp(spec(gpus=1, gpu_memory="4g"), "waits")), Unplaced)
    job = JobRecord(job_id="job", state=JobState.CREATED, host_id="h", generation=1, version=9)
    assert free.hold(job, spec(gpus=1, gpu_memory="2g"), rank=1) == ResidentAllocation(
        version=9, devices={B: 2 * GIB}
    )
