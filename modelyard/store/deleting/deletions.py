"""Deletions on request: of jobs, hosts and operations that nothing needs any more.

Each is one guarded write that names what it found, so whatever comes in between wins. What is
written before that write does no harm if a crash leaves it alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from modelyard.contract.states import JobState, Liveness, OperationState
from modelyard.store.connection import MongoConnection
from modelyard.store.content.retention import ContentRetention
from modelyard.store.deleting.dependents import delete_dependents
from modelyard.store.deleting.idle_jobs import jobs_without
from modelyard.store.jobs import Jobs
from modelyard.store.operation_writes import older
from modelyard.store.paging import Page, Position, page_filter, to_page
from modelyard.store.records import ENDED_JOB, Document, JobRecord

_CONTENTS = (
    "input_json",
    "result_json",
    "result_content",
    "result_type",
    "result_bytes",
    "result_sha256",
    "metadata",
    "error",
)
"""What a deleted operation keeps nothing of."""
_FILES = ("result_file", "input_id")
"""Which files it has; kept until they are gone, so that the call can be repeated."""
UNBORN: Document = {"state": JobState.NONE, "version": 0}
"""A job that was recorded for a request, and that no operation has started."""


class Fate(StrEnum):
    """What became of a record that was to be deleted."""

    DELETED = "deleted"
    MISSING = "missing"
    IN_USE = "in_use"


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of a record that was to be deleted, and why it was kept."""

    fate: Fate
    reason: str = ""


DELETED, MISSING = Deletion(Fate.DELETED), Deletion(Fate.MISSING)


class Deletions:
    """Deletes single records on request. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection, jobs: Jobs, contents: ContentRetention) -> None:
        self._connection = connection
        self._jobs = jobs
        self._contents = contents
        self._operations = connection.collection("operations")
        self._job_documents = connection.collection("jobs")
        self._hosts = connection.collection("hosts")

    async def operation(self, operation_id: str) -> Deletion:
        """Delete an operation that has ended, with its input, result, events and notes.

        A stub stays, which no client sees, until operations of this age are removed: it refuses the
        operation's id to a message that is delivered again, and its idempotency key to another
        request. A crash in between leaves the stub, and the call can be repeated.
        """
        async with self._connection.answering():
            found = await self._operations.find_one(
                {"_id": operation_id}, {"open": 1, "state": 1, "deleted": 1}
            )
        if found is None:
            return MISSING
        if found.get("open"):
            return Deletion(Fate.IN_USE, f"The operation is {found['state']}: cancel it first.")
        async with self._connection.answering():
            # An operation that has ended never opens again, so nothing can come in between.
            await self._operations.update_one(
                {"_id": operation_id, "open": False},
                {"$set": {"deleted": True}, "$unset": dict.fromkeys(_CONTENTS, "")},
            )
        await delete_dependents(self._connection, self._contents, [operation_id])
        async with self._connection.answering():
            await self._operations.update_one(
                {"_id": operation_id}, {"$unset": dict.fromkeys(_FILES, "")}
            )
        return MISSING if found.get("deleted") else DELETED

    async def job(self, job_id: str) -> Deletion:
        """Delete a job that has no container and no open operation; its operations stay.

        Its generations are never given out again, to any job that is new after that: a container of
        it that comes to light later belongs to nobody.
        """
        job = await self._jobs.get(job_id)
        if job is None:
            return MISSING
        if job.state.live or job.host_id is not None or job.move is not None:
            return Deletion(Fate.IN_USE, f"The job is {job.state}: terminate it first.")
        if job.recovery is not None:
            return Deletion(Fate.IN_USE, "Modelyard is about to restore the job.")
        if not await self._without_open_operations({"_id": job_id}):
            return Deletion(Fate.IN_USE, "The job has operations that have not ended.")
        await self._jobs.raise_generation_floor([job])
        async with self._connection.writing(jobs=[job_id]):
            done = await self._job_documents.delete_one(
                {"_id": job_id, "version": job.version, **ENDED_JOB}
            )
        if done.deleted_count == 1:
            return DELETED
        return Deletion(Fate.IN_USE, "The job has changed at this moment.")

    async def host(self, host_id: str) -> Deletion:
        """Delete a host that is LOST and that no job and no operation is on.

        A worker that comes back with its id announces itself, and is a new host.
        """
        async with self._connection.answering():
            host = await self._hosts.find_one({"_id": host_id}, {"liveness": 1, "reservations": 1})
        if host is None:
            return MISSING
        if host.get("liveness") != Liveness.LOST:
            return Deletion(Fate.IN_USE, f"The host is {host.get('liveness')}, not LOST.")
        on_it: Document = {"$or": [{"host_id": host_id}, {"move.host_id": host_id}]}
        async with self._connection.answering():
            job = await self._job_documents.find_one(on_it, {"_id": 1})
        async with self._connection.answering():
            operation = await self._operations.find_one(
                {"host_id": host_id, "open": True, "state": {"$ne": OperationState.QUEUED}},
                {"_id": 1},
            )
        if job is not None or operation is not None or host.get("reservations"):
            return Deletion(Fate.IN_USE, "Its jobs are about to be moved or ended.")
        async with self._connection.writing(hosts=[host_id]):
            done = await self._hosts.delete_one(
                {"_id": host_id, "liveness": Liveness.LOST, "reservations": []}
            )
        if done.deleted_count == 1:
            return DELETED
        return Deletion(Fate.IN_USE, "The host is back.")

    async def unborn_jobs(self, job_ids: Iterable[str]) -> list[str]:
        """Delete those of the jobs that no operation ever started, and none is to start; list them.

        So a request that was rejected leaves no job behind. An operation that enters at this moment
        finds no job: the scheduler records it again.
        """
        named = {"_id": {"$in": sorted(set(job_ids))}}
        unused = await self._without_open_operations({**named, **UNBORN})
        if unused:
            async with self._connection.writing(jobs=unused):
                await self._job_documents.delete_many({"_id": {"$in": unused}, **UNBORN})
        return unused

    async def stale_unborn_jobs(
        self, *, older_than_s: float, after: Position | None, limit: int
    ) -> Page[JobRecord]:
        """Return jobs that no operation has started for so long, the newest first."""
        asked = {
            **page_filter({}, "created_at", after),
            **UNBORN,
            "$expr": older("$created_at", older_than_s),
        }
        async with self._connection.answering():
            found = (
                await self._job_documents.find(asked)
                .sort([("created_at", -1), ("_id", -1)])
                .limit(limit + 1)
                .to_list(None)
            )
        return to_page(found, JobRecord, "created_at", limit)

    async def _without_open_operations(self, criteria: Document) -> list[str]:
        return await jobs_without(self._connection, {"open": True}, criteria)
