"""What is relied on from the collection of API keys, on a real MongoDB and the one in memory."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from modelyard.contract.access.scopes import SCOPES_OF, Role, Scope
from modelyard.contract.errors import StoreUnavailableError
from modelyard.store import Store
from modelyard.store.api_keys import ApiKeyRecord, NewApiKeyRecord
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore

HASH = "ab" * 32


@pytest.fixture(params=[pytest.param("mongodb", marks=pytest.mark.server), "memory"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore(MemoryDatabase(time.monotonic))
    else:
        made = Store(request.getfixturevalue("mongo_url"), name="test", timeout_s=10.0)
    yield made
    made.close()


def new(key_id: str, *scopes: Scope, expires_in_s: float | None = None) -> NewApiKeyRecord:
    return NewApiKeyRecord(
        key_id=key_id,
        secret_hash=HASH,
        name="$x.y",
        scopes=frozenset(scopes),
        expires_in_s=expires_in_s,
    )


async def test_a_key_is_read_as_it_was_recorded(store: Store) -> None:
    added = await store.api_keys.add(new("a", Scope.JOBS_READ, expires_in_s=60))
    assert added.created_at is not None
    assert added.expires_at == added.created_at + timedelta(seconds=60)
    assert (added.name, added.scopes) == ("$x.y", frozenset({Scope.JOBS_READ}))
    assert await store.api_keys.get_many(["a", "b"]) == {"a": added}


async def test_a_key_that_is_there_already_is_left_as_it_is(store: Store) -> None:
    first = await store.api_keys.add(new("a", Scope.JOBS_READ))
    assert await store.api_keys.add(new("a", *Scope)) == first


async def test_keys_are_listed_oldest_first(store: Store) -> None:
    for key_id in ("b", "a", "c"):
        await store.api_keys.add(new(key_id))
        time.sleep(0.002)  # noqa: ASYNC251 - their moments are told apart by milliseconds
    assert [one.key_id for one in await store.api_keys.all()] == ["b", "a", "c"]


async def test_a_key_expires_no_later_than_it_may(store: Store) -> None:
    far = datetime(2200, 1, 1, tzinfo=UTC)
    for key_id, expires_in_s, expires_by in (("a", 60, far), ("b", None, far), ("c", 6e9, far)):
        key = new(key_id, expires_in_s=expires_in_s)
        await store.api_keys.add(key.model_copy(update={"expires_by": expires_by}))
    found = await store.api_keys.get_many(["a", "b", "c"])
    a = found["a"]
    assert a.created_at is not None
    assert a.expires_at == a.created_at + timedelta(seconds=60)
    assert found["b"].expires_at == found["c"].expires_at == far


async def test_a_date_beyond_the_year_9999_hides_no_key_and_its_key_can_be_revoked(
    mongo_url: str,
) -> None:
    store = Store(mongo_url, name="test", timeout_s=10.0)
    await store.api_keys.add(new("a", Scope.KEYS_ADMIN, expires_in_s=1e12))
    await store.api_keys.add(new("b"))
    assert {one.key_id for one in await store.api_keys.all()} == {"a", "b"}
    assert [one.key_id for one in await store.api_keys.active_with(Scope.KEYS_ADMIN)] == ["a"]
    assert set(await store.api_keys.get_many(["a", "b"])) == {"a", "b"}
    revoked = await store.api_keys.revoke("a")
    assert revoked is not None
    assert revoked.expires_at is not None
    assert revoked.expires_at.year == 9999
    store.close()


async def test_a_key_is_revoked_once_and_for_ever(store: Store) -> None:
    await store.api_keys.add(new("a"))
    revoked = await store.api_keys.revoke("a")
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert await store.api_keys.revoke("a") == revoked
    assert await store.api_keys.revoke("b") is None


async def test_the_last_use_never_goes_back(store: Store) -> None:
    await store.api_keys.add(new("a"))
    late = datetime(2026, 1, 2, tzinfo=UTC)
    for at in (late, datetime(2026, 1, 1, tzinfo=UTC)):
        await store.api_keys.note_uses({"a": at, "nobody": at})
    await store.api_keys.note_uses({})
    [record] = await store.api_keys.all()
    assert record.last_used_at == late


async def test_only_valid_keys_are_active(store: Store) -> None:
    admin = tuple(SCOPES_OF[Role.ADMIN])
    await store.api_keys.add(new("valid", *admin))
    await store.api_keys.add(new("lasting", *admin, expires_in_s=60))
    await store.api_keys.add(new("expired", *admin, expires_in_s=0.001))
    await store.api_keys.add(new("revoked", *admin))
    await store.api_keys.revoke("revoked")
    await store.api_keys.add(new("user", *SCOPES_OF[Role.USER]))
    time.sleep(0.002)  # noqa: ASYNC251 - until the one has expired
    active = {one.key_id for one in await store.api_keys.active_with(Scope.KEYS_ADMIN)}
    assert active == {"valid", "lasting"}


def test_a_scope_that_only_a_newer_process_knows_allows_nothing() -> None:
    record = ApiKeyRecord.model_validate(
        {"_id": "a", "secret_hash": HASH, "scopes": ["jobs:read", "jobs:everything"]}
    )
    assert record.scopes == {Scope.JOBS_READ}
    assert HASH not in repr(record)


async def test_every_method_says_that_mongodb_is_away() -> None:
    store = Store("mongodb://127.0.0.1:1/x", name="test", timeout_s=0.1)
    keys = store.api_keys
    for call in (
        lambda: keys.add(new("a")),
        lambda: keys.get_many(["a"]),
        keys.all,
        lambda: keys.revoke("a"),
        lambda: keys.note_uses({"a": datetime.now(UTC)}),
        lambda: keys.active_with(Scope.KEYS_ADMIN),
    ):
        with pytest.raises(StoreUnavailableError):
            await call()
    store.close()
