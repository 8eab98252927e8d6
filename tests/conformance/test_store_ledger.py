"""The ledger of a host, on a real MongoDB and in memory: no more is given than there is."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.local_content import MOST_NAMES, LocalContent
from modelyard.contract.capacity.offers import Device, DeviceReading, DeviceTaint, HostCapacity
from modelyard.contract.messages import EngineFacts, Heartbeat, HostOnline
from modelyard.contract.states import Admission, Liveness
from modelyard.store import Store
from modelyard.store.records import MEASURED_AFTER_S, HostRecord, JobRecord
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore

A, B = "GPU-a", "GPU-b"
CAPACITY = HostCapacity(
    cpus=4.0,
    memory=1_100,
    reserved_memory=100,
    devices=(Device(uuid=A, memory=80), Device(uuid=B, index=1, memory=40)),
)


CLOCKS = {"memory": time.monotonic, "within a millisecond": lambda: 1.0}
"""Of databases in memory; by the second, all of a test happens at one time."""


@pytest.fixture(params=[pytest.param("mongodb", marks=pytest.mark.server), *CLOCKS])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if clock := CLOCKS.get(request.param):
        made: Store = MemoryStore(MemoryDatabase(clock))
    else:
        made = Store(request.getfixturevalue("mongo_url"), name="test", timeout_s=10.0)
    yield made
    made.close()


async def online(store: Store, *, slots: int | None = None) -> HostRecord:
    facts = EngineFacts(version="1", api_version="1")
    await store.hosts.come_online(
        "h", "boot", HostOnline(slots=slots, capacity=CAPACITY, engine=facts)
    )
    return await now(store)


async def now(store: Store) -> HostRecord:
    host = await store.hosts.get("h")
    assert host is not None
    return host


def asks(job: str, *, cpus: int = 0, memory: int = 0, **devices: int) -> Allocation:
    there = {A if name == "a" else B: amount for name, amount in devices.items()}
    return Allocation(
        job_id=job,
        generation=1,
        millicpus=cpus,
        memory=memory,
        devices=tuple(there),
        resident=resident(devices=there) if there else None,
    )


def resident(
    version: int = 1, *, memory: int = 0, devices: dict[str, int] | None = None
) -> ResidentAllocation:
    return ResidentAllocation(version=version, memory=memory, devices=devices or {})


@pytest.mark.parametrize(
    ("each", "fits"),
    [
        pytest.param({"cpus": 1_500}, 2, id="processors"),
        pytest.param({"memory": 300}, 3, id="memory"),
        pytest.param({"a": 30}, 2, id="a device"),
        pytest.param({"a": 80}, 1, id="a whole device"),
        pytest.param({"a": 10, "b": 20}, 2, id="two devices"),
        pytest.param({"cpus": 1_000, "memory": 100, "a": 1}, 4, id="whatever ends first"),
        pytest.param({}, 20, id="nothing"),
    ],
)
async def test_of_many_who_ask_at_once_as_many_get_it_as_fit(
    store: Store, each: dict[str, int], fits: int
) -> None:
    host = await online(store)
    done = await asyncio.gather(
        *(store.hosts.reserve(host, [asks(f"j{n}", **each)], token="t") for n in range(20))
    )
    assert sum(done) == fits
    assert len((await now(store)).reservations) == fits


async def test_those_who_ask_together_get_it_together_or_not_at_all(store: Store) -> None:
    host = await online(store)
    too_many = [asks(f"j{n}", memory=400) for n in range(3)]
    assert not await store.hosts.reserve(host, too_many, token="t")
    assert (await now(store)).reservations == ()
    assert await store.hosts.reserve(host, too_many[:2], token="t")


async def test_slots_are_a_cap_besides(store: Store) -> None:
    host = await online(store, slots=1)
    assert await store.hosts.reserve(host, [asks("one", cpus=100)], token="t")
    assert not await store.hosts.reserve(host, [asks("two", cpus=100)], token="t")


async def test_what_is_not_there_is_never_given(store: Store) -> None:
    host = await online(store)
    odd = Allocation(
        job_id="j", generation=1, resident=resident(devices={"GPU-of-another-host": 1})
    )
    assert not await store.hosts.reserve(host, [odd], token="t")


async def test_models_in_memory_share_what_they_do_not_hold_while_unloaded(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("one"), asks("two")], token="t")
    need = resident(memory=600, devices={A: 50})
    assert await store.hosts.hold(host, "one", 1, need)
    assert not await store.hosts.hold(host, "two", 1, need)
    assert await store.hosts.let_go("h", "one", 1, before=2)
    assert await store.hosts.hold(host, "two", 1, need)


async def test_of_many_models_that_load_at_once_as_many_may_as_fit(store: Store) -> None:
    host = await online(store)
    jobs = [f"j{n}" for n in range(12)]
    await store.hosts.reserve(host, [asks(job) for job in jobs], token="t")
    done = await asyncio.gather(
        *(store.hosts.hold(host, job, 1, resident(devices={A: 20})) for job in jobs)
    )
    assert sum(done) == 4


async def test_a_model_that_is_in_memory_does_not_stand_in_its_own_way(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j")], token="t")
    assert await store.hosts.hold(host, "j", 1, resident(1, memory=600, devices={A: 50}))
    assert await store.hosts.hold(host, "j", 1, resident(2, memory=700, devices={A: 60}))
    held = (await now(store)).reservations[0].resident
    assert held == resident(2, memory=700, devices={A: 60})


async def test_a_late_word_takes_nothing_from_a_later_attempt(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j")], token="t")
    await store.hosts.hold(host, "j", 1, resident(7, devices={A: 50}))
    assert not await store.hosts.let_go("h", "j", 1, before=7)
    assert not await store.hosts.let_go("h", "j", 2, before=9)
    assert not await store.hosts.hold(host, "j", 1, resident(6, devices={A: 1}))
    assert (await now(store)).reservations[0].resident == resident(7, devices={A: 50})
    assert await store.hosts.let_go("h", "j", 1, before=8)
    assert not await store.hosts.let_go("h", "j", 1, before=8)


async def test_a_model_in_memory_gets_more_if_there_is_room(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("one"), asks("two")], token="t")
    await store.hosts.hold(host, "one", 1, resident(3, devices={A: 30}))
    await store.hosts.hold(host, "two", 1, resident(1, devices={A: 30}))
    assert not await store.hosts.raise_resident(host, "one", 1, resident(3, devices={A: 51}))
    assert await store.hosts.raise_resident(host, "one", 1, resident(3, devices={A: 50}))
    assert (await now(store)).room.devices[A].free == 0


async def test_only_what_is_still_held_is_raised(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j")], token="t")
    more = resident(3, devices={A: 50})
    assert not await store.hosts.raise_resident(host, "j", 1, more), "nothing is held"
    await store.hosts.hold(host, "j", 1, resident(4, devices={A: 30}))
    assert not await store.hosts.raise_resident(host, "j", 1, more), "of a later attempt"
    await store.hosts.let_go("h", "j", 1, before=5)
    now_unloaded = more.model_copy(update={"version": 4})
    assert not await store.hosts.raise_resident(host, "j", 1, now_unloaded), "it was let go"
    assert (await now(store)).reservations[0].resident is None


async def test_nothing_new_goes_to_a_tainted_device_until_it_is_free(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j"), asks("k")], token="t")
    await store.hosts.hold(host, "j", 1, resident(1, devices={A: 10}))

    async def told(*readings: DeviceReading) -> None:
        assert await store.hosts.beat(
            [Heartbeat(host_id="h", incarnation="boot", devices=readings)]
        )

    taint = DeviceTaint(memory=5, job_id="gone")
    await told(DeviceReading(uuid=A, memory_used=15, tainted=taint))
    assert (await now(store)).taints == {A: taint}
    assert not await store.hosts.hold(host, "k", 1, resident(1, devices={A: 1}))
    assert not await store.hosts.reserve(host, [asks("new", a=0)], token="t")
    assert await store.hosts.hold(host, "k", 1, resident(1, devices={B: 1}))
    assert await store.hosts.reserve(host, [asks("cpu", cpus=1)], token="t")
    assert await store.hosts.let_go("h", "j", 1, before=2)
    await told(DeviceReading(uuid=A, memory_used=0))
    assert await store.hosts.hold(host, "j", 1, resident(2, devices={A: 1}))


async def test_the_memory_in_use_is_of_the_last_heartbeat(store: Store) -> None:
    await online(store)
    beat = Heartbeat(host_id="h", incarnation="boot", memory_used=70)
    assert await store.hosts.beat([beat])
    assert (await now(store)).memory_used == 70
    await store.hosts.beat([beat.model_copy(update={"memory_used": None})])
    assert (await now(store)).memory_used is None


async def test_what_was_measured_counts_until_the_next_boot_has_measured(store: Store) -> None:
    await online(store)
    reading = DeviceReading(uuid=A, memory_used=70, tainted=DeviceTaint(memory=70))
    await store.hosts.beat([Heartbeat(host_id="h", incarnation="boot", devices=(reading,))])
    again = HostOnline(capacity=CAPACITY, engine=EngineFacts(version="1", api_version="1"))
    assert await store.hosts.come_online("h", "next-boot", again)
    there = await now(store)
    assert there.room.devices[A].free == 10
    assert not await store.hosts.reserve(there, [asks("new", a=0)], token="t"), "tainted"
    await store.hosts.beat([Heartbeat(host_id="h", incarnation="next-boot")])
    assert (await now(store)).room.devices[A].free == 80


async def test_a_taint_counts_though_what_was_measured_is_too_old(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j")], token="t")
    reading = DeviceReading(uuid=A, memory_used=70, tainted=DeviceTaint(memory=70))
    await store.hosts.beat([Heartbeat(host_id="h", incarnation="boot", devices=(reading,))])
    await store.hosts.release({"h": [("j", 1)]})
    there = await now(store)
    assert there.room.devices[A].tainted == DeviceTaint(memory=70)


async def test_who_has_no_reservation_holds_nothing(store: Store) -> None:
    host = await online(store)
    assert not await store.hosts.hold(host, "j", 1, resident(devices={A: 1}))
    await store.hosts.reserve(host, [asks("j")], token="t")
    assert not await store.hosts.hold(host, "j", 2, resident(devices={A: 1}))
    stale = host.model_copy(update={"incarnation": "an earlier boot"})
    assert not await store.hosts.hold(stale, "j", 1, resident(devices={A: 1}))


@pytest.mark.parametrize("seed", range(3))
async def test_the_ledger_never_exceeds_what_there_is(store: Store, seed: int) -> None:
    """Clients with an old picture of the host ask for random things at the same time."""
    rng = random.Random(seed)
    old = await online(store, slots=6)

    async def one_step(number: int) -> None:
        job = f"j{number % 8}"
        what = rng.random()
        devices = {A: rng.choice((10, 40, 80)), B: rng.choice((0, 10, 40))}
        if what < 0.4:
            cpus, memory = rng.choice((500, 1_500)), rng.choice((100, 400))
            await store.hosts.reserve(old, [asks(job, cpus=cpus, memory=memory)], token="t")
        elif what < 0.8:
            held = resident(number, memory=rng.choice((0, 300)), devices=devices)
            await store.hosts.hold(old, job, 1, held)
        elif what < 0.9:
            await store.hosts.let_go("h", job, 1, before=number)
        else:
            await store.hosts.release({"h": [(job, 1)]})

    loaded = 0
    for round_ in range(30):
        await asyncio.gather(*(one_step(round_ * 8 + n) for n in range(8)))
        host = await now(store)
        room = host.room
        assert room.slots is not None
        assert room.slots >= 0
        assert room.millicpus is not None
        assert room.millicpus >= 0
        assert room.memory is not None
        assert room.memory >= 0
        assert all(device.free >= 0 for device in room.devices.values())
        loaded += sum(one.resident is not None for one in host.reservations)
    assert loaded > 20, "a test in which hardly anything was held would prove nothing"


async def test_what_was_given_back_is_not_counted_as_that_of_somebody_else(store: Store) -> None:
    host = await online(store)
    beat = Heartbeat(
        host_id="h",
        incarnation="boot",
        devices=(DeviceReading(uuid=A, memory_used=70), DeviceReading(uuid=B, memory_used=30)),
    )
    assert await store.hosts.reserve(host, [asks("j"), asks("cpu", cpus=1)], token="t")
    assert await store.hosts.reserve(host, [asks("failed", a=5)], token="not used")
    assert await store.hosts.hold(host, "j", 1, resident(1, devices={A: 10}))
    await store.hosts.beat([beat])
    assert (await now(store)).room.devices[A].free == 10, "somebody else uses 55 to 70"
    await store.hosts.release({"h": [("cpu", 1)]})
    await store.hosts.release_token("h", ["failed"], token="not used")
    assert (await now(store)).room.devices[A].free == 10, "nothing of it has been used"
    assert await store.hosts.let_go("h", "j", 1, before=2)
    await store.hosts.beat([beat])
    there = await now(store)
    assert there.room.devices[A].free == 20, "it may have been measured before"
    assert there.room.devices[B].free == 10
    assert there.foreign_on_devices == {A: 60, B: 30}
    (freed,) = there.freed
    later = freed.at + timedelta(seconds=MEASURED_AFTER_S + 1)
    assert there.model_copy(update={"measured_at": later}).room.devices[A].free == 10


async def test_what_was_held_and_given_back_since_was_not_measured(store: Store) -> None:
    host = await online(store)
    assert await store.hosts.reserve(host, [asks("j", a=10)], token="t")
    reading = DeviceReading(uuid=A, memory_used=70)
    await store.hosts.beat([Heartbeat(host_id="h", incarnation="boot", devices=(reading,))])
    assert (await now(store)).measured_jobs == ("j",)
    for turn in range(3):
        assert await store.hosts.reserve(host, [asks(f"later-{turn}", a=10)], token="t")
        await store.hosts.release({"h": [(f"later-{turn}", 1)]})
    assert (await now(store)).room.devices[A].free == 10
    await store.hosts.release({"h": [("j", 1)]})
    assert (await now(store)).room.devices[A].free == 20


async def test_labels_of_a_heartbeat_are_taken_as_they_are(store: Store) -> None:
    await online(store)
    beat = Heartbeat(host_id="h", incarnation="boot", labels={"zone": "$slots", "a": "b"})
    assert await store.hosts.beat([beat])
    assert await store.hosts.beat([beat.model_copy(update={"labels": {"zone": "$$NOW"}})])
    assert (await now(store)).labels == {"zone": "$$NOW"}


async def test_what_measurements_count_no_more_is_forgotten(store: Store) -> None:
    host = await online(store)
    for turn in range(4):
        assert await store.hosts.reserve(host, [asks(f"j-{turn}", a=1)], token="t")
        await store.hosts.release({"h": [(f"j-{turn}", 1)]})
    assert len((await now(store)).freed) == 4, "nothing was measured yet"
    await store.hosts.beat([Heartbeat(host_id="h", incarnation="boot")])
    connection = store.hosts._connection.collection("hosts")
    moment = (await now(store)).freed[-1].at + timedelta(seconds=MEASURED_AFTER_S + 1)
    await connection.update_one({"_id": "h"}, {"$set": {"measured_at": moment}})
    assert await store.hosts.reserve(host, [asks("last", a=1)], token="t")
    await store.hosts.release({"h": [("last", 1)]})
    assert len((await now(store)).freed) == 1


async def test_what_a_host_has_at_hand_is_replaced_and_bounded(store: Store) -> None:
    await online(store)
    await store.hosts.note_local_content({"h": LocalContent(images=("a", "b"), datasets=("/d",))})
    first = await now(store)
    assert first.images == {"a", "b"}
    assert first.datasets == {"/d"}
    # Whatever got past the check of a message.
    too_many = LocalContent.model_construct(images=tuple(map(str, range(2 * MOST_NAMES))))
    await store.hosts.note_local_content({"h": too_many, "unknown": LocalContent()})
    assert len((await now(store)).images) == MOST_NAMES
    assert (await now(store)).datasets == frozenset()
    assert await store.hosts.get("unknown") is None


async def test_a_boot_keeps_what_the_host_has_at_hand(store: Store) -> None:
    await online(store)
    await store.hosts.note_local_content({"h": LocalContent(images=("a",))})
    facts = EngineFacts(version="1", api_version="1")
    await store.hosts.come_online("h", "next-boot", HostOnline(engine=facts))
    assert (await now(store)).images == {"a"}


def next_one(*devices: str, generation: int = 2) -> Allocation:
    return Allocation(job_id="j", generation=generation, devices=devices)


async def test_what_a_job_holds_becomes_that_of_its_next_container(store: Store) -> None:
    host = await online(store)
    first = asks("j", cpus=4_000, memory=900).model_copy(update={"devices": (A,)})
    assert await store.hosts.reserve(host, [first], token="t")
    assert await store.hosts.rebind(host, next_one(B)), "although there is no room for two"
    (held,) = (await now(store)).reservations
    assert (held.generation, held.devices, held.millicpus, held.memory) == (2, (B,), 4_000, 900)
    assert not await store.hosts.rebind(host, next_one(A)), "it is of this generation already"
    await store.hosts.release({"h": [("j", 1)]})
    assert (await now(store)).reservations == (held,)


async def test_of_two_who_bind_a_job_anew_one_wins(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j")], token="t")
    both = [store.hosts.rebind(host, next_one(device)) for device in (A, B)]
    assert sum(await asyncio.gather(*both)) == 1


async def test_a_model_in_memory_is_not_bound_to_other_devices(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j", a=10)], token="t")
    assert not await store.hosts.rebind(host, next_one(B))


async def test_a_closed_host_or_another_boot_binds_nothing_anew(store: Store) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j")], token="t")
    await store.hosts.admit("h", Admission.CORDONED)
    assert not await store.hosts.rebind(host, next_one(B))
    await store.hosts.admit("h", Admission.OPEN)
    other = host.model_copy(update={"incarnation": "earlier"})
    assert not await store.hosts.rebind(other, next_one(B))
    assert await store.hosts.rebind(host, next_one(B))


async def test_what_came_to_nothing_is_bound_back_to_the_container_that_is_there(
    store: Store,
) -> None:
    host = await online(store)
    await store.hosts.reserve(host, [asks("j", cpus=100)], token="t")
    await store.hosts.rebind(host, next_one(B))
    job = JobRecord(job_id="j", generation=1, devices=(A,))
    assert await store.hosts.bind_back("h", job)
    (held,) = (await now(store)).reservations
    assert (held.generation, held.devices, held.millicpus) == (1, (A,), 100)


async def test_hosts_are_found_by_how_they_are(store: Store) -> None:
    facts = HostOnline(slots=1, capacity=CAPACITY, engine=EngineFacts(version="1", api_version="1"))
    for host_id in ("b", "a", "lost"):
        await store.hosts.come_online(host_id, "boot", facts)
    await store.hosts.suspect_silent(after_s=-60)
    await store.hosts.lose_silent(after_s=-60)
    for host_id in ("b", "a"):
        await store.hosts.come_online(host_id, "next", facts)
    await store.hosts.drain("a", move=True, deadline_s=None)
    lost, draining = await store.hosts.lost(), await store.hosts.draining()
    assert lost == [await store.hosts.get("lost")]
    assert draining == [await store.hosts.get("a")]
    assert await store.hosts.standings() == {
        "a": (Liveness.ONLINE, Admission.DRAINING),
        "b": (Liveness.ONLINE, Admission.OPEN),
        "lost": (Liveness.LOST, Admission.OPEN),
    }


async def test_all_reservations_are_read_without_their_hosts(store: Store) -> None:
    host = await online(store)
    assert await store.hosts.reservations() == []
    assert await store.hosts.reserve(host, [asks("j1", memory=10, a=20), asks("j2")], token="t")
    reserved = await store.hosts.reservations()
    assert reserved == [("h", one) for one in (await now(store)).reservations]
    assert [one.job_id for _, one in reserved] == ["j1", "j2"]
