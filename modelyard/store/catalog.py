"""The catalog: models and datasets by name.

Entries were checked when they were stored, perhaps by the rules of an older version. So they are
read without applying the rules again. An entry that can't be read at all is logged and left out.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

import structlog
from pydantic import ValidationError

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.validation import first_errors
from modelyard.store.connection import MongoConnection
from modelyard.store.records import Document

log = structlog.get_logger(__name__)

S = TypeVar("S", ModelSpec, DatasetSpec)


def read_spec(kind: type[S], text: str) -> S:
    """Return an entry as it was stored; raises `ValidationError` if not even its types fit."""
    return kind.model_validate_json(text, context=AS_RECORDED, extra="ignore")


class CatalogCollection(Generic[S]):
    """One kind of catalog entry. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection, collection: str, kind: type[S]) -> None:
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
        return {one["_id"]: spec for one in found if (spec := self._read(one)) is not None}

    async def all(self) -> list[S]:
        """Return every entry, by name."""
        async with self._connection.answering():
            found = await self._collection.find({}).sort("_id", 1).to_list(None)
        return [spec for one in found if (spec := self._read(one)) is not None]

    def _read(self, document: Document) -> S | None:
        try:
            return read_spec(self._kind, document["spec"])
        except ValidationError as error:
            log.error(  # noqa: TRY400 - a traceback would not help
                "catalog.unreadable",
                kind=self._kind.__name__,
                name=document["_id"],
                reason=first_errors(error),
            )
            return None

    async def delete(self, name: str) -> bool:
        """Remove an entry; False if there was none. Existing jobs keep their copy of it."""
        async with self._connection.answering():
            done = await self._collection.delete_one({"_id": name})
        return done.deleted_count == 1
