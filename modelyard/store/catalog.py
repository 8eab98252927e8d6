"""The catalog: models and datasets by name.

Entries were checked when they were stored, perhaps by the rules of an older version. So they are
read without applying the rules again. An entry that can't be read at all is logged and left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from pydantic import ValidationError

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.validation import first_errors
from modelyard.store.connection import MongoConnection
from modelyard.store.paging import NamedPage, names_after, read_page
from modelyard.store.records import Document

log = structlog.get_logger(__name__)

S = TypeVar("S", ModelSpec, DatasetSpec)


def read_spec(kind: type[S], text: str) -> S:
    """Return an entry as it was stored; raises `ValidationError` if not even its types fit."""
    return kind.model_validate_json(text, context=AS_RECORDED, extra="ignore")


@dataclass(frozen=True, slots=True)
class StoredEntry(Generic[S]):
    """An entry and the text that is stored of it, by which a write sees whether it has changed."""

    spec: S
    text: str


class CatalogCollection(Generic[S]):
    """One kind of catalog entry. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection, collection: str, kind: type[S]) -> None:
        self._connection = connection
        self._collection = connection.collection(collection)
        self._kind: type[S] = kind

    async def put(self, entry: S) -> bool:
        """Store an entry under its name; True if the name is new."""
        async with self._connection.answering():
            done = await self._collection.update_one(
                {"_id": entry.name}, _stored(entry), upsert=True
            )
        return done.upserted_id is not None

    async def create(self, entry: S) -> bool:
        """Store an entry whose name is new; False if there is one, also one that can't be read."""
        new = {
            "_id": {"$literal": entry.name},
            "spec": {"$literal": entry.model_dump_json()},
            "updated_at": "$$NOW",
        }
        is_new = {"$eq": [{"$type": "$spec"}, "missing"]}
        async with self._connection.answering():
            done = await self._collection.update_one(
                {"_id": entry.name},
                [{"$replaceWith": {"$cond": [is_new, new, "$$ROOT"]}}],
                upsert=True,
            )
        return done.upserted_id is not None

    async def replace(self, entry: S, seen: StoredEntry[S]) -> bool:
        """Replace an entry; False if it is not stored any more as it was seen."""
        async with self._connection.answering():
            done = await self._collection.update_one(
                {"_id": entry.name, "spec": {"$eq": seen.text}}, _stored(entry)
            )
        return done.matched_count == 1

    async def get(self, name: str) -> S | None:
        """Return one entry."""
        found = await self.find(name)
        return found.spec if found else None

    async def find(self, name: str) -> StoredEntry[S] | None:
        """Return one entry, to be replaced or deleted if it has not changed by then."""
        async with self._connection.answering():
            found = await self._collection.find_one({"_id": name})
        spec = self._read(found) if found else None
        return StoredEntry(spec, found["spec"]) if found and spec is not None else None

    async def get_many(self, names: Iterable[str]) -> dict[str, S]:
        """Return those of the entries that exist."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        async with self._connection.answering():
            found = await self._collection.find({"_id": {"$in": wanted}}).to_list(None)
        return {one["_id"]: spec for one in found if (spec := self._read(one)) is not None}

    async def page(self, *, after: str | None = None, limit: int) -> NamedPage[S]:
        """Return the next entries by name; what can't be read is missing from its page.

        Raises `SlowQueryError` too.
        """
        cursor = self._collection.find(names_after(after)).sort("_id", 1)
        found = await read_page(self._connection, cursor, limit)
        return NamedPage.of(found, limit, self._read)

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

    async def delete(self, name: str, seen: StoredEntry[S] | None = None) -> bool:
        """Remove an entry; existing jobs keep their copy of it.

        False if there was none, or if it is not stored any more as it was seen.
        """
        criteria: Document = {"_id": name}
        if seen is not None:
            criteria["spec"] = {"$eq": seen.text}
        async with self._connection.answering():
            done = await self._collection.delete_one(criteria)
        return done.deleted_count == 1


def _stored(entry: ModelSpec | DatasetSpec) -> Document:
    return {
        "$set": {"spec": entry.model_dump_json()},
        "$currentDate": {"updated_at": True},
    }
