"""The gateway's key ring against a MongoDB that is slow: nobody else notices."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, cast

import pytest

from gateway.access import failed_authentications, key_ring
from gateway.access.authentication import Authentication
from gateway.access.failed_authentications import MAX_PAUSED_OF_ADDRESS
from gateway.access.key_ring import KeyRing
from gateway.availability import Availability
from gateway.problems import TooManyFailuresError, UnauthenticatedError
from modelyard.contract.access.api_keys import ApiKey
from modelyard.contract.access.scopes import Scope
from modelyard.contract.errors import StoreUnavailableError
from modelyard.store.api_keys import ApiKeyRecord
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from modelyard.store import Store

SLOW_S = 0.1
"""Longer than the ring waits in these tests."""


class SlowKeys:
    """The collection of keys, which answers when it is let."""

    def __init__(self) -> None:
        self.records: dict[str, ApiKeyRecord] = {}
        self.noted: dict[str, datetime] = {}
        self.lookups: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def get_many(self, key_ids: Iterable[str]) -> dict[str, ApiKeyRecord]:
        wanted = list(key_ids)
        self.lookups += wanted
        await self.answers.wait()
        return {one: self.records[one] for one in wanted if one in self.records}

    async def note_uses(self, uses: Mapping[str, datetime]) -> None:
        try:
            async with asyncio.timeout(SLOW_S):
                await self.answers.wait()
        except TimeoutError as error:
            raise StoreUnavailableError from error
        self.noted |= uses


class SlowStore:
    def __init__(self) -> None:
        self.api_keys = SlowKeys()


class Ring:
    """A key ring with all that is around it."""

    def __init__(self) -> None:
        self.now = 0.0
        store = SlowStore()
        self.slow = store.api_keys
        self.availability = Availability("mongodb", self._probe, StoreUnavailableError)
        self.keys = KeyRing(cast("Store", store), self.availability, clock=lambda: self.now)

    async def _probe(self) -> None:
        raise AssertionError

    def add(self) -> ApiKey:
        key = ApiKey.new()
        self.slow.records[key.key_id] = ApiKeyRecord.model_validate(
            {"_id": key.key_id, "secret_hash": key.secret_hash, "scopes": [Scope.JOBS_READ]}
        )
        return key


@asynccontextmanager
async def running() -> AsyncIterator[Ring]:
    ring = Ring()
    task = asyncio.create_task(ring.keys.run())
    try:
        yield ring
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def ring(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ring]:
    monkeypatch.setattr(key_ring, "READ_S", SLOW_S)
    monkeypatch.setattr(key_ring, "FIRST_READ_S", SLOW_S)
    async with running() as made:
        yield made


async def test_a_slow_read_of_a_known_key_lets_it_in_and_leaves_mongodb_up(ring: Ring) -> None:
    key = ring.add()
    await ring.keys.principal(key)
    ring.now += key_ring.FRESH_S + 1
    ring.slow.answers.clear()
    assert (await ring.keys.principal(key)).key_id == key.key_id
    assert not ring.availability.down


async def test_a_slow_read_of_an_unknown_key_is_refused_and_leaves_mongodb_up(ring: Ring) -> None:
    ring.slow.answers.clear()
    with pytest.raises(StoreUnavailableError):
        await ring.keys.principal(ApiKey.new())
    assert not ring.availability.down


async def test_an_unknown_key_is_looked_up_once_in_a_while(ring: Ring) -> None:
    key = ApiKey.new()
    for _ in range(3):
        with pytest.raises(UnauthenticatedError):
            await ring.keys.principal(key)
    assert ring.slow.lookups == [key.key_id]
    ring.now += key_ring.UNKNOWN_S + 1
    with pytest.raises(UnauthenticatedError):
        await ring.keys.principal(key)
    assert len(ring.slow.lookups) == 2


async def test_unknown_keys_are_remembered_in_bounded_memory(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring.keys._unknown, "most", 10)
    for _ in range(30):
        with pytest.raises(UnauthenticatedError):
            await ring.keys.principal(ApiKey.new())
    assert len(ring.keys._unknown) == 10


async def test_only_the_whole_key_is_remembered_as_valid(ring: Ring) -> None:
    key = ring.add()
    assert not ring.keys.remembers(key)
    await ring.keys.principal(key)
    ring.now += key_ring.FRESH_S + 1
    assert ring.keys.remembers(key)
    assert not ring.keys.remembers(ApiKey(key.key_id, ApiKey.new().secret))


async def test_an_address_at_its_limit_causes_no_lookups_and_a_valid_key_works_from_it(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failed_authentications, "FIRST_PAUSE_S", 2.0)
    key = ring.add()
    authentication = Authentication(ring.keys)
    address = "192.0.2.1"
    right = [f"Bearer {key.text}"]
    assert (await authentication.principal(right, address)).key_id == key.key_id

    async def fail(sender: str = address) -> type[Exception]:
        with pytest.raises((UnauthenticatedError, TooManyFailuresError)) as refused:
            await authentication.principal([f"Bearer {ApiKey.new().text}"], sender)
        return refused.type

    failing = [asyncio.create_task(fail()) for _ in range(MAX_PAUSED_OF_ADDRESS)]

    async def at_limit() -> bool:
        return authentication._failed.at_limit(address)

    await eventually(at_limit, what="answers that are held back")
    looked_up = len(ring.slow.lookups)
    assert looked_up == 1 + MAX_PAUSED_OF_ADDRESS
    refusals = await asyncio.gather(*(fail() for _ in range(1_000)))
    assert set(refusals) == {TooManyFailuresError}
    assert len(ring.slow.lookups) == looked_up
    ring.now += key_ring.FRESH_S + 1
    assert (await authentication.principal(right, address)).key_id == key.key_id
    assert authentication._failed.at_limit(address)
    assert await fail("192.0.2.2") is UnauthenticatedError
    assert set(await asyncio.gather(*failing)) == {UnauthenticatedError}
    assert not authentication._failed.at_limit(address)


async def test_while_mongodb_is_down_no_key_is_looked_up(ring: Ring) -> None:
    ring.availability.failed("test")
    with pytest.raises(StoreUnavailableError):
        await ring.keys.principal(ring.add())
    assert not ring.slow.lookups


async def test_uses_that_could_not_be_written_are_written_later_and_leave_mongodb_up(
    ring: Ring,
) -> None:
    key = ring.add()
    await ring.keys.principal(key)
    ring.slow.answers.clear()
    await ring.keys.note_uses()
    assert not ring.availability.down
    assert not ring.slow.noted
    ring.slow.answers.set()
    await ring.keys.note_uses()
    assert set(ring.slow.noted) == {key.key_id}
