"""Leases on a real MongoDB and on the one in memory: one holder, by the database's clock."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from modelyard.store import Store
from modelyard.store.leases import DISPATCHER, Leases
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore
from tests.support.waiting import eventually

LONG_S = 60.0
SHORT_S = 0.2


@pytest.fixture(params=[pytest.param("mongodb", marks=pytest.mark.server), "memory"])
async def leases(request: pytest.FixtureRequest) -> AsyncIterator[Leases]:
    if request.param == "memory":
        store: Store = MemoryStore(MemoryDatabase(time.monotonic))
    else:
        store = Store(request.getfixturevalue("mongo_url"), name="test", timeout_s=10.0)
    yield store.leases
    store.close()


async def test_the_first_one_leads_and_the_others_do_not(leases: Leases) -> None:
    assert await leases.acquire(DISPATCHER, "a", seconds=LONG_S) == 1
    assert await leases.acquire(DISPATCHER, "b", seconds=LONG_S) is None
    assert await leases.acquire("another role", "b", seconds=LONG_S) == 1


async def test_of_many_who_ask_at_once_one_leads(leases: Leases) -> None:
    names = [f"holder-{n}" for n in range(16)]
    terms = await asyncio.gather(
        *(leases.acquire(DISPATCHER, name, seconds=LONG_S) for name in names)
    )
    assert sorted(term for term in terms if term is not None) == [1]


async def test_a_lease_ends_by_the_databases_clock(leases: Leases) -> None:
    await leases.acquire(DISPATCHER, "a", seconds=SHORT_S)

    async def acquired() -> int | None:
        return await leases.acquire(DISPATCHER, "b", seconds=LONG_S)

    began = time.monotonic()
    assert await eventually(acquired, what="the end of the lease") == 2
    assert time.monotonic() - began > SHORT_S / 2


async def test_who_was_deposed_neither_renews_nor_releases(leases: Leases) -> None:
    first = await leases.acquire(DISPATCHER, "a", seconds=0)
    second = await leases.acquire(DISPATCHER, "b", seconds=LONG_S)
    assert (first, second) == (1, 2)
    assert not await leases.renew(DISPATCHER, "a", term=1, seconds=LONG_S)
    await leases.release(DISPATCHER, "a", term=1)
    assert await leases.acquire(DISPATCHER, "a", seconds=LONG_S) is None
    assert await leases.renew(DISPATCHER, "b", term=2, seconds=LONG_S)


async def test_a_renewed_lease_lasts_from_its_renewal(leases: Leases) -> None:
    await leases.acquire(DISPATCHER, "a", seconds=0)
    assert await leases.renew(DISPATCHER, "a", term=1, seconds=LONG_S)
    assert await leases.acquire(DISPATCHER, "b", seconds=LONG_S) is None


async def test_a_lease_that_was_released_is_free_at_once(leases: Leases) -> None:
    await leases.acquire(DISPATCHER, "a", seconds=LONG_S)
    await leases.release(DISPATCHER, "a", term=1)
    assert await leases.acquire(DISPATCHER, "b", seconds=LONG_S) == 2


async def test_a_holder_that_asks_again_gets_a_new_term(leases: Leases) -> None:
    """The answer to its first call may have been lost."""
    assert await leases.acquire(DISPATCHER, "a", seconds=LONG_S) == 1
    assert await leases.acquire(DISPATCHER, "a", seconds=LONG_S) == 2
    assert not await leases.renew(DISPATCHER, "a", term=1, seconds=LONG_S)


async def test_the_notes_are_those_of_the_last_who_took_the_role(leases: Leases) -> None:
    assert await leases.notes(DISPATCHER) == {}
    await leases.acquire(DISPATCHER, "a", seconds=0, notes={"placement": "$spread"})
    assert await leases.notes(DISPATCHER) == {"placement": "$spread"}
    await leases.acquire(DISPATCHER, "b", seconds=LONG_S, notes={"placement": "binpack"})
    assert await leases.acquire(DISPATCHER, "c", seconds=LONG_S, notes={"placement": "x"}) is None
    assert await leases.renew(DISPATCHER, "b", term=2, seconds=LONG_S)
    assert await leases.notes(DISPATCHER) == {"placement": "binpack"}


async def test_a_holder_without_notes_leaves_none_of_an_earlier_one(leases: Leases) -> None:
    await leases.acquire(DISPATCHER, "a", seconds=0, notes={"placement": "spread"})
    await leases.acquire(DISPATCHER, "b", seconds=LONG_S)
    assert await leases.notes(DISPATCHER) == {}
