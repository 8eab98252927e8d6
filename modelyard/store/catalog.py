"""The catalog: models and datasets by name."""

from collections.abc import Iterable
from typing import Generic, TypeVar

from modelyard.contract.catalog import DatasetSpec, ModelSpec
from modelyard.store.connection import Connection

S = TypeVar("S", ModelSpec, DatasetSpec)


class Shelf(Generic[S]):
    """One kind of catalog entry. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: Connection, collection: str, kind: type[S]) -> None:
        self._connection = connection
        self._collection = connection.collection(collection)
        self._kind: type[S] = kind

    async def put(self, entry: S) -> bool:
        """Store an entry under its name; True if the name is new."""
        document = {"spec": entry.model_dump_json()}
        async with self._connection.answering():
            done = await self._collection.update_one(
                {"_id": entry.name},
                {"$set": document, "$currentDate": {"updated_at": True}},
                upsert=True,
            )
        return done.upserted_id is not None

    async def get(self, name: str) -> S | None:
        """Return one entry."""
        return (await self.get_many([name])).get(name)

    async def get_many(self, names: Iterable[str]) -> dict[str, S]:
        """Return those of the entries that exist."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        async with self._connection.answering():
            found = await self._collection.find({"_id": {"$in": wanted}}).to_list(None)
        return {
            one["_id"]: self._kind.model_validate_json(one["spec"], extra="ignore") for one in found
        }

    async def all(self) -> list[S]:
        """Return every entry, by name."""
        async with self._connection.answering():
            found = await self._collection.find({}).sort("_id", 1).to_list(None)
        return [self._kind.model_validate_json(one["spec"], extra="ignore") for one in found]

    async def delete(self, name: str) -> bool:
        """Remove an entry; False if there was none. Jobs that run keep what they began with."""
        async with self._connection.answering():
            done = await self._collection.delete_one({"_id": name})
        return done.deleted_count == 1
