"""What was learned, in memory; and what models hold that were learned to take more."""

import asyncio
from collections.abc import Iterable

import pytest

from dispatcher.scheduling import grown_residents
from dispatcher.scheduling.footprints import LearnedFootprints
from dispatcher.scheduling.grown_residents import GrownResidents
from dispatcher.scheduling.lines import LinesRead
from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Footprint, Learned
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.messages import EngineFacts, HostOnline
from modelyard.contract.states import JobState
from modelyard.store.capacity.footprints import FootprintKey, Peak
from tests.fakes.broker_links import Call
from tests.support.dispatcher.parts import HOST, INCARNATION, MODEL, DispatcherParts

LOAD = "01930a7c-5d2e-7c11-9d7f-3a1f0c5e9b42"
GPU, KIND = "GPU-a", "Test"
SHARES = MODEL.model_copy(
    update={
        "resources": MODEL.resources.model_copy(update={"gpus": 1, "gpu_memory": 30}),
    }
)
WHOLE = SHARES.model_copy(
    update={
        "name": "whole",
        "resources": SHARES.resources.model_copy(update={"gpu_memory": 0}),
    }
)


@pytest.fixture
async def parts() -> DispatcherParts:
    made = DispatcherParts()
    offer = HostCapacity(
        cpus=4.0, memory=1 << 40, devices=(Device(uuid=GPU, model=KIND, memory=100),)
    )
    engine = EngineFacts(version="1", api_version="1")
    online = HostOnline(engine=engine, capacity=offer)
    await made.store.hosts.come_online(HOST, INCARNATION, online)
    return made


async def told(parts: DispatcherParts, device: int, *, spec: ModelSpec = SHARES) -> None:
    """Have a load of a model take so much of a device."""
    host = (await parts.fleet.hosts())[HOST]
    found = Footprint(load=LOAD, memory=5, devices={GPU: device})
    await parts.footprints.learn(spec, host, found, new_load=True)


async def test_what_was_learned_is_read_once_and_known_as_it_is_written(
    parts: DispatcherParts,
) -> None:
    learned = await parts.footprints.learned()
    assert learned(SHARES) == NOTHING_LEARNED
    await told(parts, 40)
    reads = parts.link.calls[Call.READ]
    assert (await parts.footprints.learned())(SHARES) == Learned(5, ((KIND, 40),))
    assert parts.link.calls[Call.READ] == reads
    other_image = SHARES.model_copy(update={"image": "other"})
    assert learned(other_image) == NOTHING_LEARNED


async def test_no_load_takes_more_than_its_host_has(parts: DispatcherParts) -> None:
    """Else the word of one worker would make a model too large for every host."""
    learned = await parts.footprints.learned()
    host = (await parts.fleet.hosts())[HOST]
    found = Footprint(load=LOAD, memory=1 << 50, devices={GPU: 1 << 50, "GPU-unknown": 1 << 50})
    await parts.footprints.learn(SHARES, host, found, new_load=True)
    assert learned(SHARES) == Learned(1 << 40, ((KIND, 100),))
    without = SHARES.model_copy(update={"name": "without"})
    found = Footprint(load=LOAD, memory=1 << 50)
    await parts.footprints.learn(without, host, found, new_load=True)
    assert learned(without) == Learned(1 << 40)


async def test_the_next_leader_knows_what_the_last_one_learned(parts: DispatcherParts) -> None:
    await told(parts, 40)
    learned = await LearnedFootprints(parts.store).learned()
    assert learned(SHARES) == Learned(5, ((KIND, 40),))


async def test_what_an_earlier_leader_wrote_late_is_read_by_the_sweep(
    parts: DispatcherParts,
) -> None:
    learned = await parts.footprints.learned()
    key = FootprintKey(SHARES.name, SHARES.image, KIND)
    await parts.store.footprints.learn(key, Peak(load=LOAD, device_memory=60), new_load=True)
    await parts.footprints.refresh_if_old()
    assert learned(SHARES) == NOTHING_LEARNED, "that was read a moment ago"
    await parts.footprints.refresh()
    assert learned(SHARES) == Learned(None, ((KIND, 60),))


async def test_what_is_learned_while_all_is_read_stays_known(parts: DispatcherParts) -> None:
    learned = await parts.footprints.learned()
    host = (await parts.fleet.hosts())[HOST]
    parts.link.hold(only=1)
    refreshing = asyncio.create_task(parts.footprints.refresh())
    await parts.link.held.wait()
    found = Footprint(load=LOAD, memory=5, devices={GPU: 40})
    await parts.footprints.learn(SHARES, host, found, new_load=True)
    parts.link.let_go()
    await refreshing
    assert learned(SHARES) == Learned(5, ((KIND, 40),))


async def loaded(
    parts: DispatcherParts,
    job_id: str,
    held: int,
    *,
    spec: ModelSpec = SHARES,
    state: JobState = JobState.LOADED,
) -> None:
    """Have a job on the host that holds so much of the device."""
    parts.load_job(job_id)
    document = parts.database.collections["jobs"][job_id]
    parts.database.write("jobs", document | {"state": state, "spec": spec.model_dump_json()})
    (host,) = await parts.store.hosts.all()
    resident = ResidentAllocation(version=2, devices={GPU: held})
    allocation = Allocation(job_id=job_id, generation=1, devices=(GPU,), resident=resident)
    assert await parts.store.hosts.reserve(host, [allocation], token="t")


async def held_after_a_round(parts: DispatcherParts) -> dict[str, int]:
    await GrownResidents(parts.store, parts.memory).raise_held()
    (host,) = await parts.store.hosts.all()
    return {one.job_id: one.resident.devices[GPU] for one in host.reservations if one.resident}


async def test_a_model_that_takes_more_holds_more(parts: DispatcherParts) -> None:
    await loaded(parts, "j1", 30)
    await loaded(parts, "j2", 30)
    assert await held_after_a_round(parts) == {"j1": 30, "j2": 30}
    await told(parts, 45)
    assert await held_after_a_round(parts) == {"j1": 45, "j2": 45}
    await told(parts, 20)
    assert await held_after_a_round(parts) == {"j1": 45, "j2": 45}


async def test_a_round_looks_at_a_bounded_number_and_the_next_ones_at_the_others(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grown_residents, "JOBS_IN_A_ROUND", 1)
    for number in range(3):
        await loaded(parts, f"j{number}", 10)
    await told(parts, 15)
    repair = GrownResidents(parts.store, parts.memory)
    raised: list[int] = []
    for _ in range(3):
        await repair.raise_held()
        (host,) = await parts.store.hosts.all()
        held = [one.resident.devices[GPU] for one in host.reservations if one.resident]
        raised.append(held.count(30))
    assert raised == [1, 2, 3]


async def test_a_model_that_leaves_its_host_while_jobs_are_read_is_left_alone(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loaded(parts, "j1", 30)
    await told(parts, 45)
    read = parts.memory.lines.read

    async def reading(job_ids: Iterable[str]) -> LinesRead:
        await parts.store.hosts.release({HOST: [("j1", 1)]})
        await parts.fleet.hosts()
        return await read(job_ids)

    monkeypatch.setattr(parts.memory.lines, "read", reading)
    assert await held_after_a_round(parts) == {}


async def test_a_model_that_takes_more_than_there_is_room_for_holds_what_it_holds(
    parts: DispatcherParts,
) -> None:
    await loaded(parts, "j1", 30)
    await loaded(parts, "j2", 60)
    writes = parts.link.calls[Call.WRITE]
    await told(parts, 45)
    assert parts.link.calls[Call.WRITE] == writes + 1
    assert await held_after_a_round(parts) == {"j1": 30, "j2": 60}
    assert parts.link.calls[Call.WRITE] == writes + 1, "a write that can't succeed is not made"
    await parts.store.hosts.release({HOST: [("j2", 1)]})
    assert await held_after_a_round(parts) == {"j1": 45}


async def test_a_model_that_is_not_loaded_yet_is_left_alone(parts: DispatcherParts) -> None:
    await loaded(parts, "j1", 30, state=JobState.CREATED)
    await told(parts, 45)
    assert await held_after_a_round(parts) == {"j1": 30}


async def test_a_model_that_has_its_device_for_itself_keeps_all_of_it(
    parts: DispatcherParts,
) -> None:
    await loaded(parts, "j1", 100, spec=WHOLE)
    await told(parts, 45, spec=WHOLE)
    assert await held_after_a_round(parts) == {"j1": 100}
