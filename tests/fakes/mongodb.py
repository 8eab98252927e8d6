"""The part of MongoDB that the store uses, in memory, so that the store's own code runs on it.

Every single write is atomic and nothing else is, as on the server: between two statements of a
bulk write, or two documents of an `update_many`, others may come. What the interpreter does not
know raises `NotKnownError`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import bson
from pymongo import IndexModel, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure
from pymongo.results import (
    BulkWriteResult,
    DeleteResult,
    InsertManyResult,
    InsertOneResult,
    UpdateResult,
)

from modelyard.store.connection import CODEC_OPTIONS
from tests.fakes.broker_links import Call, Link
from tests.fakes.mongodb_expressions import evaluate
from tests.fakes.mongodb_queries import in_order, matches, projected
from tests.fakes.mongodb_updates import Update, seed_of, updated
from tests.fakes.mongodb_values import MISSING, Document, NotKnownError, same, value_at

T = TypeVar("T")
Watcher = Callable[[str, Document | None, Document], None]
"""Is told each write: the collection, the document before it and after it."""

DUPLICATE_KEY = 11_000
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def as_stored(value: T) -> T:
    """Return a value as it comes out of BSON: plain, a copy, times cut to milliseconds."""
    stored: T = bson.decode(bson.encode({"it": value}), CODEC_OPTIONS)["it"]
    return stored


class MemoryDatabase:
    """What all connections share. Its clock is the test's: `seconds` counts from any moment."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self.collections: dict[str, dict[Any, Document]] = {}
        self.watchers: list[Watcher] = []

    @property
    def now(self) -> datetime:
        """The database's clock, in whole milliseconds as BSON has them."""
        return _BEGINNING + timedelta(milliseconds=int(self._seconds() * 1_000))

    def documents(self, collection: str) -> list[Document]:
        """Return a copy of all documents, for tests to look at."""
        return [as_stored(one) for one in self.collections.get(collection, {}).values()]

    def write(self, collection: str, document: Document) -> Document:
        """Put a document in the place of the one with its key."""
        after = as_stored(document)
        there = self.collections.setdefault(collection, {})
        before = there.get(after["_id"])
        there[after["_id"]] = after
        for watcher in self.watchers:
            watcher(collection, before, after)
        return after


class MemoryCursor:
    """What `find` and `aggregate` return; nothing is read before `to_list`."""

    def __init__(self, read: Callable[["MemoryCursor"], Awaitable[list[Document]]]) -> None:
        self._read = read
        self.order: list[tuple[str, int]] = []
        self.most = 0

    def sort(self, order: str | Sequence[tuple[str, int]], direction: int = 1) -> "MemoryCursor":
        self.order = [(order, direction)] if isinstance(order, str) else list(order)
        return self

    def limit(self, most: int) -> "MemoryCursor":
        self.most = most
        return self

    def max_time_ms(self, most: int) -> "MemoryCursor":
        """Change nothing: no query takes long."""
        del most
        return self

    def hint(self, index: str) -> "MemoryCursor":
        """Change nothing: there are no indexes."""
        del index
        return self

    async def to_list(self, length: None) -> list[Document]:
        del length
        return await self._read(self)


class MemoryCollection:
    """One collection over one link."""

    def __init__(self, database: MemoryDatabase, link: Link, name: str) -> None:
        self._database = database
        self._link = link
        self._name = name

    # --- reading ---

    def find(
        self,
        query: Mapping[str, Any],
        projection: Mapping[str, int] | None = None,
        *,
        limit: int = 0,
    ) -> MemoryCursor:
        asked = as_stored(dict(query))

        async def read(cursor: MemoryCursor) -> list[Document]:
            return await self._call(
                Call.READ,
                lambda: [
                    projected(one, projection)
                    for one in self._found(asked, order=cursor.order, limit=cursor.most)
                ],
            )

        return MemoryCursor(read).limit(limit)

    async def find_one(
        self, query: Mapping[str, Any], projection: Mapping[str, int] | None = None
    ) -> Document | None:
        found = await self.find(query, projection, limit=1).to_list(None)
        return found[0] if found else None

    def aggregate(
        self, pipeline: Sequence[Mapping[str, Any]], *, hint: str | None = None
    ) -> MemoryCursor:
        del hint  # there are no indexes
        stages = as_stored(list(pipeline))

        async def read(_: MemoryCursor) -> list[Document]:
            fate = await self._link.there(Call.READ)
            found = await self._piped(self._all(), stages)
            await self._link.back(fate)
            return as_stored(found)

        return MemoryCursor(read)

    # --- writing ---

    async def insert_one(self, document: Document) -> InsertOneResult:
        def insert() -> InsertOneResult:
            if document["_id"] in self._documents:
                raise DuplicateKeyError("It is there.", DUPLICATE_KEY)
            self._database.write(self._name, document)
            return InsertOneResult(document["_id"], acknowledged=True)

        return await self._call(Call.WRITE, insert)

    async def insert_many(
        self, documents: Sequence[Document], *, ordered: bool = True
    ) -> InsertManyResult:
        if ordered:
            raise NotKnownError("insert_many in order")

        def insert() -> InsertManyResult:
            errors: list[Document] = []
            for index, document in enumerate(documents):
                if document["_id"] in self._documents:
                    errors.append({"index": index, "code": DUPLICATE_KEY, "errmsg": "duplicate"})
                else:
                    self._database.write(self._name, document)
            if errors:
                raise BulkWriteError({"writeErrors": errors, "writeConcernErrors": []})
            return InsertManyResult([one["_id"] for one in documents], acknowledged=True)

        return await self._call(Call.WRITE, insert)

    async def update_one(
        self, query: Mapping[str, Any], update: Update, *, upsert: bool = False
    ) -> UpdateResult:
        done = await self.bulk_write([UpdateOne(query, update, upsert=upsert)], ordered=False)
        upserted = (done.upserted_ids or {}).get(0)
        raw = {"n": done.matched_count + done.upserted_count, "nModified": done.modified_count}
        if upserted is not None:
            raw["upserted"] = upserted
        return UpdateResult(raw, acknowledged=True)

    async def update_many(self, query: Mapping[str, Any], update: Update) -> UpdateResult:
        asked, given = as_stored((dict(query), update))
        fate = await self._link.there(Call.WRITE)
        now = self._database.now
        keys = [one["_id"] for one in self._found(asked)]
        matched = 0
        for key in keys:
            found = self._found({**asked, "_id": key}, now=now)
            for one in found:
                self._database.write(self._name, updated(one, given, now, inserting=False))
            matched += len(found)
        await self._link.back(fate)
        return UpdateResult({"n": matched, "nModified": matched}, acknowledged=True)

    async def bulk_write(
        self, requests: Sequence[UpdateOne], *, ordered: bool = True
    ) -> BulkWriteResult:
        if ordered:
            raise NotKnownError("bulk_write in order")
        writes = [as_stored(_parts(one)) for one in requests]
        fate = await self._link.there(Call.WRITE)
        now = self._database.now
        matched = modified = 0
        upserted: list[Document] = []
        errors: list[Document] = []
        for index, (query, update, upsert) in enumerate(writes):
            if index:
                await self._link.pause()
            if (changed := self._update_one(query, update, now)) is not None:
                matched += 1
                modified += changed
            elif upsert:
                made = updated(seed_of(query), update, now, inserting=True)
                if made["_id"] in self._documents:
                    errors.append({"index": index, "code": DUPLICATE_KEY, "errmsg": "duplicate"})
                    continue
                self._database.write(self._name, made)
                upserted.append({"index": index, "_id": made["_id"]})
        await self._link.back(fate)
        if errors:
            details = {"upserted": upserted, "writeErrors": errors, "writeConcernErrors": []}
            raise BulkWriteError(details)
        counts = {"nMatched": matched, "nModified": modified, "nUpserted": len(upserted)}
        answer = {**counts, "upserted": upserted, "writeErrors": []}
        return BulkWriteResult(answer, acknowledged=True)

    async def find_one_and_update(
        self,
        query: Mapping[str, Any],
        update: Update,
        *,
        projection: Mapping[str, int] | None = None,
        upsert: bool = False,
        return_document: bool = ReturnDocument.BEFORE,
    ) -> Document | None:
        if return_document is not ReturnDocument.AFTER:
            raise NotKnownError("a document as it was before")
        asked, given, _ = as_stored((dict(query), update, upsert))

        def change() -> Document | None:
            now = self._database.now
            found = self._found(asked, limit=1) or ([seed_of(asked)] if upsert else [])
            for one in found:
                inserting = one["_id"] not in self._documents
                after = updated(one, given, now, inserting=inserting)
                return projected(as_stored(self._database.write(self._name, after)), projection)
            return None

        return await self._call(Call.WRITE, change)

    async def delete_one(self, query: Mapping[str, Any]) -> DeleteResult:
        def delete() -> DeleteResult:
            found = self._found(as_stored(dict(query)), limit=1)
            for one in found:
                del self._documents[one["_id"]]
            return DeleteResult({"n": len(found)}, acknowledged=True)

        return await self._call(Call.WRITE, delete)

    async def delete_many(self, query: Mapping[str, Any]) -> DeleteResult:
        def delete() -> DeleteResult:
            found = self._found(as_stored(dict(query)))
            for one in found:
                del self._documents[one["_id"]]
            return DeleteResult({"n": len(found)}, acknowledged=True)

        return await self._call(Call.WRITE, delete)

    async def create_indexes(self, indexes: Sequence[IndexModel]) -> list[str]:
        """Do nothing: there is nothing to be quick about."""
        return await self._call(Call.OTHER, lambda: [one.document["name"] for one in indexes])

    async def drop_index(self, name: str) -> None:
        def drop() -> None:
            raise OperationFailure(f"There is no index {name}.", code=27)

        await self._call(Call.OTHER, drop)

    # --- inside ---

    @property
    def _documents(self) -> dict[Any, Document]:
        return self._database.collections.setdefault(self._name, {})

    def _all(self) -> list[Document]:
        return list(self._documents.values())

    async def _call(self, call: Call, effect: Callable[[], T]) -> T:
        fate = await self._link.there(call)
        answer = as_stored_answer(effect())
        await self._link.back(fate)
        return answer

    def _found(
        self,
        query: Mapping[str, Any],
        *,
        order: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        now: datetime | None = None,
    ) -> list[Document]:
        at = now or self._database.now
        found = in_order((one for one in self._candidates(query) if matches(one, query, at)), order)
        return found[:limit] if limit else found

    def _candidates(self, query: Mapping[str, Any]) -> Iterable[Document]:
        """Return what may fit: by its key if the query names one."""
        key = query.get("_id")
        if isinstance(key, dict):
            keys = key["$in"] if set(key) == {"$in"} else None
        else:
            keys = None if key is None else [key]
        if keys is None:
            return self._all()
        return [self._documents[one] for one in dict.fromkeys(keys) if one in self._documents]

    def _update_one(self, query: Mapping[str, Any], update: Update, now: datetime) -> bool | None:
        """Return whether the document that fits was changed; None if none fits."""
        for one in self._found(query, limit=1, now=now):
            after = updated(one, update, now, inserting=False)
            if after["_id"] != one["_id"]:
                raise NotKnownError("an update that changes the key")
            return self._database.write(self._name, after) != one
        return None

    async def _piped(
        self, documents: list[Document], stages: Sequence[Mapping[str, Any]]
    ) -> list[Document]:
        for stage in stages:
            ((name, given),) = stage.items()
            if name == "$lookup":
                # There is no snapshot over two collections: others write in between.
                await self._link.pause()
                documents = [await self._looked_up(one, given) for one in documents]
            else:
                documents = self._staged(documents, name, given)
        return documents

    def _staged(self, documents: list[Document], name: str, given: Any) -> list[Document]:
        now = self._database.now
        match name:
            case "$match":
                return [one for one in documents if matches(one, given, now)]
            case "$sort":
                return in_order(documents, list(given.items()))
            case "$limit":
                return documents[:given]
            case "$project":
                return [projected(one, given) for one in documents]
            case "$addFields":
                return [_with_fields(one, given, now) for one in documents]
            case "$group":
                return _grouped(documents, given, now)
        raise NotKnownError(f"the stage {name}")

    async def _looked_up(self, document: Document, given: Mapping[str, Any]) -> Document:
        if set(given) != {"from", "localField", "foreignField", "pipeline", "as"}:
            raise NotKnownError(f"$lookup with {sorted(given)}")
        other = MemoryCollection(self._database, self._link, given["from"])
        wanted = {given["foreignField"]: value_at(document, given["localField"].split("."))}
        there = await other._piped(other._found(wanted), given["pipeline"])
        return {**document, given["as"]: there}


def _with_fields(document: Document, fields: Mapping[str, Any], now: datetime) -> Document:
    known = {"ROOT": document, "NOW": now}
    return document | {field: evaluate(value, known) for field, value in fields.items()}


def _grouped(documents: list[Document], given: Mapping[str, Any], now: datetime) -> list[Document]:
    """Put documents together by the value of `_id`; in each other field one operator adds up."""
    groups: list[Document] = []
    for document in documents:
        known = {"ROOT": document, "NOW": now}
        key = evaluate(given["_id"], known)
        key = None if key is MISSING else key
        group = next((one for one in groups if same(one["_id"], key)), None)
        if group is None:
            groups.append(group := {"_id": key})
        for field, adds in given.items():
            if field != "_id":
                ((operator, value),) = adds.items()
                if operator not in ("$sum", "$max", "$min"):
                    raise NotKnownError(f"the accumulator {operator}")
                so_far = [{"$literal": group[field]}] if field in group else []
                group[field] = evaluate({operator: [*so_far, value]}, known)
    return groups


def as_stored_answer(answer: T) -> T:
    """Copy what documents an answer holds, so that nobody changes what is stored."""
    if isinstance(answer, list | dict):
        return as_stored(answer)
    return answer


def _parts(write: UpdateOne) -> tuple[Document, Update, bool]:
    if type(write) is not UpdateOne or write._collation or write._array_filters:
        raise NotKnownError(f"the write {write!r}")
    return dict(write._filter), write._doc, bool(write._upsert)
