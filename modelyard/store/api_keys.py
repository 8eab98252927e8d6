"""API keys as MongoDB stores them: enough to check a key, and not enough to use it."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Self

from pydantic import Field, field_validator
from pymongo import ReturnDocument, UpdateOne

from modelyard.contract.access.api_keys import ApiKey, ApiKeyView, NewApiKey
from modelyard.contract.access.scopes import Scope
from modelyard.contract.ids import DEFAULT_TENANT
from modelyard.store.connection import MongoConnection
from modelyard.store.records import Document, Record

NOTE_TIMEOUT_S = 20.0
"""For the write of the last uses of all keys: it is large, and no request waits for it."""

_NEVER = datetime(9999, 12, 31, tzinfo=UTC)


class NewApiKeyRecord(Record):
    """A key that is about to be recorded."""

    key_id: str
    secret_hash: str = Field(repr=False)
    """SHA-256 of the secret, in hex."""
    name: str
    scopes: frozenset[Scope]
    tenant: str = DEFAULT_TENANT
    created_by: str | None = None
    """The id of the key that created it; null if `modelyard keys bootstrap` did."""
    expires_in_s: float | None = None
    expires_by: datetime | None = None
    """The latest moment at which it expires; null if it may last for ever."""

    @classmethod
    def of(
        cls,
        key: ApiKey,
        requested: NewApiKey,
        *,
        tenant: str = DEFAULT_TENANT,
        created_by: str | None = None,
        expires_by: datetime | None = None,
    ) -> Self:
        """Return the record for a key that was requested."""
        return cls(
            key_id=key.key_id,
            secret_hash=key.secret_hash,
            name=requested.name,
            scopes=requested.granted,
            tenant=tenant,
            created_by=created_by,
            expires_in_s=requested.expires_in_s,
            expires_by=expires_by,
        )


class ApiKeyRecord(Record):
    """One key."""

    key_id: str = Field(alias="_id")
    secret_hash: str = Field(repr=False)
    name: str = ""
    scopes: frozenset[Scope] = frozenset()
    tenant: str = DEFAULT_TENANT
    created_by: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    @field_validator("scopes", mode="before")
    @classmethod
    def _known_scopes(cls, value: object) -> object:
        """Drop scopes that only a newer process knows: the key may then do less, never more."""
        if not isinstance(value, list | tuple):
            return value
        return [one for one in value if one in Scope.__members__.values()]

    def view(self) -> ApiKeyView:
        """Return the key as the API shows it, without its secret and without the hash."""
        return ApiKeyView(
            key_id=self.key_id,
            name=self.name,
            tenant=self.tenant,
            scopes=tuple(sorted(self.scopes)),
            created_by=self.created_by,
            created_at=self.created_at,
            expires_at=self.expires_at,
            revoked_at=self.revoked_at,
            last_used_at=self.last_used_at,
        )


class ApiKeys:
    """The collection `api_keys`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("api_keys")

    async def add(self, new: NewApiKeyRecord) -> ApiKeyRecord:
        """Record a key, unless its id is recorded already."""
        document = new.model_dump(
            mode="json", exclude={"key_id", "expires_in_s", "expires_by", "scopes"}
        )
        document |= {"_id": new.key_id, "scopes": sorted(new.scopes)}
        set_by_database: Document = {"created_at": "$$NOW"}
        ends: list[Document | datetime] = [new.expires_by] if new.expires_by is not None else []
        if new.expires_in_s is not None:
            ends.append({"$add": ["$$NOW", int(new.expires_in_s * 1_000)]})
        if ends:
            set_by_database["expires_at"] = {"$min": ends}
        exists = {"$ne": [{"$type": "$created_at"}, "missing"]}
        added = {"$mergeObjects": [{"$literal": document}, set_by_database]}
        async with self._connection.answering():
            await self._collection.update_one(
                {"_id": new.key_id},
                [{"$replaceWith": {"$cond": [exists, "$$ROOT", added]}}],
                upsert=True,
            )
            found = await self._collection.find_one({"_id": new.key_id})
        return ApiKeyRecord.model_validate(found)

    async def get_many(self, key_ids: Iterable[str]) -> dict[str, ApiKeyRecord]:
        """Return those of the keys that exist."""
        async with self._connection.answering():
            found = await self._collection.find({"_id": {"$in": sorted(set(key_ids))}}).to_list(
                None
            )
        return {one["_id"]: ApiKeyRecord.model_validate(one) for one in found}

    async def all(self) -> list[ApiKeyRecord]:
        """Return every key, the oldest first."""
        async with self._connection.answering():
            found = (
                await self._collection.find({}).sort([("created_at", 1), ("_id", 1)]).to_list(None)
            )
        return [ApiKeyRecord.model_validate(one) for one in found]

    async def revoke(self, key_id: str) -> ApiKeyRecord | None:
        """Revoke a key for ever; None if it does not exist. Repeating it changes nothing."""
        async with self._connection.answering():
            found = await self._collection.find_one_and_update(
                {"_id": key_id},
                [{"$set": {"revoked_at": {"$ifNull": ["$revoked_at", "$$NOW"]}}}],
                return_document=ReturnDocument.AFTER,
            )
        return ApiKeyRecord.model_validate(found) if found else None

    async def note_uses(self, uses: Mapping[str, datetime]) -> None:
        """Record when keys were used last; a later moment that is recorded already stays."""
        if not uses:
            return
        async with self._connection.answering(timeout_s=NOTE_TIMEOUT_S):
            await self._collection.bulk_write(
                [
                    UpdateOne({"_id": key_id}, [{"$set": {"last_used_at": _later(at)}}])
                    for key_id, at in uses.items()
                ],
                ordered=False,
            )

    async def active_with(self, scope: Scope) -> list[ApiKeyRecord]:
        """Return the keys with a scope that are neither revoked nor expired."""
        expires_at = {"$ifNull": ["$expires_at", _NEVER]}
        async with self._connection.answering():
            found = await self._collection.find(
                {
                    "scopes": scope.value,
                    "revoked_at": None,
                    "$expr": {"$gt": [expires_at, "$$NOW"]},
                }
            ).to_list(None)
        return [ApiKeyRecord.model_validate(one) for one in found]


def _later(at: datetime) -> Document:
    return {"$cond": [{"$gt": [at, "$last_used_at"]}, at, "$last_used_at"]}
