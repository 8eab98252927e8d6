"""Removing old records, in bounded batches.

Age is counted by the database's clock. What depends on a record goes before it, so a crash between
two steps leaves something that the next batch finds:

- files of results, events and notes before their operations;
- operations before their jobs: a job stays while there is an operation of it;
- the generations of jobs are noted before the jobs are gone.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from modelyard.store.connection import Collection, MongoConnection
from modelyard.store.content.retention import ContentRetention
from modelyard.store.deleting.dependents import delete_dependents
from modelyard.store.deleting.idle_jobs import jobs_without
from modelyard.store.jobs import Jobs
from modelyard.store.records import ENDED_JOB, Document, JobRecord

_RESULTS = ("result_json", "result_content", "result_file")

Place = tuple[datetime, str]
"""A place in an order by a time and the id."""


class OldRecords:
    """Each method removes up to `limit` of the oldest records and returns how many.

    Every method raises `StoreUnavailableError`.
    """

    def __init__(self, connection: MongoConnection, jobs: Jobs, contents: ContentRetention) -> None:
        self._connection = connection
        self._jobs = jobs
        self._contents = contents
        self._operations = connection.collection("operations")
        self._job_documents = connection.collection("jobs")
        self._events = connection.collection("events")
        self._dead_letters = connection.collection("dead_letters")

    async def operations(self, *, older_than_s: float, limit: int) -> int:
        """Remove operations that ended long ago, with their results, events and notes.

        An operation that has not ended is never removed.
        """
        old: Document = {"open": False, "finished_at": {"$lt": await self._before(older_than_s)}}
        ids = await self._oldest(self._operations, old, "finished_at", limit)
        if not ids:
            return 0
        await delete_dependents(self._connection, self._contents, ids)
        async with self._connection.answering():
            await self._operations.delete_many({"_id": {"$in": ids}, **old})
        return len(ids)

    async def results(
        self, *, older_than_s: float, after: Place | None, limit: int
    ) -> tuple[int, Place | None]:
        """Remove results of operations that ended long ago, behind `after`; keep the operations.

        Return how many, and where to go on; what ends later is behind that too.
        """
        old: Document = {"open": False, "finished_at": {"$lt": await self._before(older_than_s)}}
        asked = {**old, "result_gone": {"$ne": True}, **_behind("finished_at", after)}
        fields = {"finished_at": 1, "result_bytes": 1}
        found = await self._page(self._operations, asked, "finished_at", limit, fields)
        ids = [one["_id"] for one in found if one.get("result_bytes") is not None]
        if ids:
            await self._contents.delete_results_of(ids)
            async with self._connection.answering():
                await self._operations.update_many(
                    {"_id": {"$in": ids}, "open": False},
                    {
                        "$set": {"result_gone": True},
                        "$unset": dict.fromkeys(_RESULTS, ""),
                    },
                )
        return len(ids), _place(found[-1], "finished_at") if found else after

    async def events(self, *, older_than_s: float, limit: int) -> int:
        """Remove events that are long past."""
        old: Document = {"at": {"$lt": await self._before(older_than_s)}}
        return await self._remove(self._events, old, "at", limit)

    async def dead_letters(self, *, older_than_s: float, limit: int) -> int:
        """Remove dead letters that were recorded long ago, replayed or not."""
        old: Document = {"recorded_at": {"$lt": await self._before(older_than_s)}}
        return await self._remove(self._dead_letters, old, "recorded_at", limit)

    async def jobs(
        self, *, older_than_s: float, after: Place | None, limit: int
    ) -> tuple[int, Place | None]:
        """Remove jobs that ended long ago and have no operations left, behind `after` by age.

        Return how many, and where to go on; None after the last one.
        """
        old: Document = {**ENDED_JOB, "updated_at": {"$lt": await self._before(older_than_s)}}
        asked = {**old, **_behind("updated_at", after)}
        found = await self._page(self._job_documents, asked, "updated_at", limit)
        jobs = [JobRecord.model_validate(one) for one in found]
        ids = await jobs_without(
            self._connection, {}, {"_id": {"$in": [one.job_id for one in jobs]}}
        )
        if ids:
            await self._jobs.raise_generation_floor(one for one in jobs if one.job_id in ids)
            async with self._connection.writing(jobs=ids):
                await self._job_documents.delete_many({"_id": {"$in": ids}, **old})
        return len(ids), _place(found[-1], "updated_at") if len(found) == limit else None

    async def _before(self, older_than_s: float) -> datetime:
        return await self._connection.time() - timedelta(seconds=older_than_s)

    async def _remove(self, collection: Collection, old: Document, by: str, limit: int) -> int:
        ids = await self._oldest(collection, old, by, limit)
        if ids:
            async with self._connection.answering():
                await collection.delete_many({"_id": {"$in": ids}, **old})
        return len(ids)

    async def _oldest(
        self, collection: Collection, old: Document, by: str, limit: int
    ) -> list[str]:
        return [one["_id"] for one in await self._page(collection, old, by, limit, {"_id": 1})]

    async def _page(
        self,
        collection: Collection,
        asked: Document,
        by: str,
        limit: int,
        fields: Mapping[str, int] | None = None,
    ) -> list[Document]:
        async with self._connection.answering():
            cursor = collection.find(asked, fields).sort([(by, 1), ("_id", 1)]).limit(limit)
            return await cursor.to_list(None)


def _behind(by: str, after: Place | None) -> Document:
    if after is None:
        return {}
    return {"$or": [{by: {"$gt": after[0]}}, {by: after[0], "_id": {"$gt": after[1]}}]}


def _place(document: Document, by: str) -> Place:
    return document[by], document["_id"]
