"""Footprints, on a real MongoDB and in memory: each load counts once, and the last ones count."""

import asyncio

import pytest

from modelyard.contract.capacity.footprints import KEPT_LOADS, NOTHING_LEARNED, Learned
from modelyard.store import Store
from modelyard.store.capacity.footprints import FootprintKey, FootprintRecord, Peak, learned_of

CPU = FootprintKey("m", "reg.example:5000/a/b:1.0@sha256:" + "0" * 64, "")
GPU = FootprintKey("m", CPU.image, "NVIDIA $A100.80 | x")


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


async def learn(
    store: Store,
    load: str,
    memory: int | None,
    device: int | None = None,
    *,
    key: FootprintKey = CPU,
    new_load: bool = True,
) -> FootprintRecord:
    peak = Peak(load=load, memory=memory, device_memory=device)
    await store.footprints.learn(key, peak, new_load=new_load)
    return next(one for one in await store.footprints.all() if one.device == key.device)


async def test_what_was_never_measured_is_not_there(store: Store) -> None:
    assert await store.footprints.all() == []
    assert await store.footprints.of_model("m") == []


async def test_the_largest_of_the_last_loads_counts(store: Store) -> None:
    assert (await learn(store, "a", 100)).memory == 100
    assert (await learn(store, "b", 140)).memory == 140
    found = await learn(store, "c", 120)
    assert (found.memory, found.device_memory, found.loads) == (140, None, 3)
    assert found.last_seen is not None
    assert (found.model, found.image, found.device) == (CPU.model, CPU.image, "")


async def test_a_report_that_comes_again_counts_once(store: Store) -> None:
    for _ in range(2):
        await learn(store, "a", 100, 7)
    found = await learn(store, "a", 100, 7)
    assert found.peaks == (Peak(load="a", memory=100, device_memory=7),)
    assert found.loads == 1


async def test_the_same_load_raises_its_peak_and_never_lowers_it(store: Store) -> None:
    await learn(store, "a", 100, None)
    await learn(store, "a", None, 7, new_load=False)
    found = await learn(store, "a", 90, 9, new_load=False)
    assert found.peaks == (Peak(load="a", memory=100, device_memory=9),)
    assert found.loads == 1


async def test_what_was_large_is_forgotten_after_so_many_loads(store: Store) -> None:
    await learn(store, "large", 1_000)
    for number in range(KEPT_LOADS - 1):
        assert (await learn(store, str(number), 100)).memory == 1_000
    found = await learn(store, "last", 100)
    assert found.memory == 100
    assert len(found.peaks) == KEPT_LOADS
    assert found.loads == KEPT_LOADS + 1


async def test_a_load_that_is_not_kept_any_more_is_not_counted_again(store: Store) -> None:
    for number in range(KEPT_LOADS + 1):
        await learn(store, str(number), 100)
    found = await learn(store, "0", 300, new_load=False)  # it is still in memory, and grew
    assert (found.memory, found.loads) == (300, KEPT_LOADS + 1)


async def test_loads_that_end_at_the_same_time_all_count(store: Store) -> None:
    await asyncio.gather(*(learn(store, str(number), 100 + number) for number in range(8)))
    (found,) = await store.footprints.all()
    assert (found.memory, found.loads, len(found.peaks)) == (107, 8, 8)


async def test_kinds_of_devices_and_images_are_kept_apart(store: Store) -> None:
    await learn(store, "a", 100, 7, key=GPU)
    await learn(store, "b", 50, 9, key=FootprintKey("m", CPU.image, "other"))
    await learn(store, "c", 1, 1, key=FootprintKey("m", "other/image", GPU.device))
    await learn(store, "d", 2, None, key=FootprintKey("m2", CPU.image, ""))
    assert {one.model for one in await store.footprints.of_model("m")} == {"m"}
    learned = learned_of(await store.footprints.all())
    assert learned["m", CPU.image] == Learned(100, ((GPU.device, 7), ("other", 9)))
    assert learned["m", "other/image"] == Learned(1, ((GPU.device, 1),))
    assert learned["m2", CPU.image] == Learned(2)
    assert learned.get(("m2", "other/image"), NOTHING_LEARNED) == NOTHING_LEARNED
