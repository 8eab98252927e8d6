"""Jobs: what is true of each one's container, and who may change it now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pymongo import UpdateOne

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.states import JobState, job_sources
from modelyard.store.connection import MongoConnection
from modelyard.store.operation_writes import older
from modelyard.store.paging import Page, Position, page_filter, to_page
from modelyard.store.records import (
    Document,
    JobLine,
    JobRecord,
    LastReport,
    OperationRecord,
    RelocationRecord,
    RestorationRecord,
    error_document,
)

STEADY_S = 600.0
"""Seconds for which a model was loaded before its restarts count anew."""
LINE_HEAD = 160
"""Operations of one job that the scheduler looks at in one go: more than may run together."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who may change a job from now on; with `host_id`, also a new generation on that host."""

    job_id: str
    seen_version: int
    operation_id: str
    epoch: int
    generation: int
    host_id: str
    spec: ModelSpec | None = None
    dataset_spec: DatasetSpec | None = None
    anew: bool = False
    """True if somebody asked for it: what failed before counts no more."""


@dataclass(frozen=True, slots=True)
class PendingRestoration:
    """That a job which is found down is to come back, and how often in a row by then."""

    recovery: RestorationRecord
    restarts: int


@dataclass(frozen=True, slots=True)
class JobEffect:
    """What a report says of its job. Only the job's current attempt may write it.

    With `shared` it comes from an operation that does not own the job (INFER); then only a live
    job of the same generation takes it.
    """

    job_id: str
    operation_id: str
    epoch: int
    seq: int
    generation: int
    host_id: str
    state: JobState
    container_id: str | None
    error: ErrorInfo | None
    shared: bool = False
    coming: PendingRestoration | None = None
    told: LastReport | None = None


@dataclass(frozen=True, slots=True)
class JobLines:
    """Jobs and the heads of their lines; and the jobs that changed while they were read."""

    lines: tuple[JobLine, ...]
    moved: frozenset[str]


class Jobs:
    """The collection `jobs`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("jobs")

    async def ensure(self, job_ids: Iterable[str]) -> None:
        """Record jobs that are named for the first time, as NONE."""
        wanted = sorted(set(job_ids))
        if not wanted:
            return
        async with self._connection.answering():
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": job_id},
                        [
                            {
                                "$set": {
                                    "state": {"$ifNull": ["$state", JobState.NONE]},
                                    "version": {"$ifNull": ["$version", 0]},
                                    "generation": {"$ifNull": ["$generation", 0]},
                                    "created_at": {"$ifNull": ["$created_at", "$$NOW"]},
                                    "updated_at": {"$ifNull": ["$updated_at", "$$NOW"]},
                                },
                            },
                        ],
                        upsert=True,
                    )
                    for job_id in wanted
                ],
                ordered=False,
            )

    async def get(self, job_id: str) -> JobRecord | None:
        """Return one job."""
        async with self._connection.answering():
            found = await self._collection.find_one({"_id": job_id})
        return JobRecord.model_validate(found) if found else None

    async def page(
        self, criteria: Mapping[str, str], *, after: Position | None, limit: int
    ) -> Page[JobRecord]:
        """Return jobs newest first; `criteria` compares fields with given values."""
        async with self._connection.answering():
            found = (
                await self._collection.find(page_filter(criteria, "created_at", after))
                .sort([("created_at", -1), ("_id", -1)])
                .limit(limit + 1)
                .to_list(None)
            )
        return to_page(found, JobRecord, "created_at", limit)

    async def lines(self, job_ids: Sequence[str]) -> JobLines:
        """Return the jobs, each with the head of its line, as they were at one moment.

        A $lookup has no snapshot, so each job is read before and after its operations, and is
        left out as `moved` if its version changed meanwhile. Read only before, a job was older
        than its line up to once in 2,500 looks; read only after, a stale line passed for fresh.
        """
        if not job_ids:
            return JobLines((), frozenset())
        pipeline: list[Document] = [
            {"$match": {"_id": {"$in": list(job_ids)}}},
            {
                "$lookup": {
                    "from": "operations",
                    "localField": "_id",
                    "foreignField": "job_id",
                    "pipeline": [
                        {"$match": {"open": True, "line": {"$ne": None}}},
                        {"$sort": {"line": 1}},
                        {"$limit": LINE_HEAD},
                        {"$project": {"input_json": 0, "result_json": 0}},
                        {"$addFields": {"resting": {"$gt": ["$not_before", "$$NOW"]}}},
                    ],
                    "as": "operations",
                },
            },
            {"$project": {"operations": 1, "version": 1}},
        ]
        async with self._connection.answering():
            found = await self._collection.aggregate(pipeline).to_list(None)
        jobs = await self.get_many(job_ids)
        still = [one for one in found if jobs[one["_id"]].version == one["version"]]
        return JobLines(
            tuple(
                JobLine(
                    job=jobs[document["_id"]],
                    operations=tuple(
                        OperationRecord.model_validate(one) for one in document["operations"]
                    ),
                )
                for document in still
            ),
            frozenset({one["_id"] for one in found} - {one["_id"] for one in still}),
        )

    async def on_host(self, host_id: str) -> list[JobRecord]:
        """Return the jobs that hold a reservation on a host."""
        return await self._with_age({"host_id": host_id})

    async def with_age(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Return those of the jobs that exist, with whether they are steady."""
        return await self._with_age({"_id": {"$in": list(job_ids)}})

    async def _with_age(self, criteria: Document) -> list[JobRecord]:
        steady = {"$and": [{"$gt": ["$loaded_at", None]}, older("$loaded_at", STEADY_S)]}
        async with self._connection.answering():
            found = await self._collection.aggregate(
                [{"$match": criteria}, {"$addFields": {"steady": steady}}]
            ).to_list(None)
        return [JobRecord.model_validate(document) for document in found]

    async def to_bring_back(self, *, limit: int) -> list[JobRecord]:
        """Return jobs that were found down and whose recovery is not in line yet."""
        async with self._connection.answering():
            found = await self._collection.find(
                {"recovery": {"$type": "object"}}, limit=limit
            ).to_list(None)
        return [JobRecord.model_validate(document) for document in found]

    async def get_many(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return those of the jobs that exist."""
        async with self._connection.answering():
            found = await self._collection.find({"_id": {"$in": list(job_ids)}}).to_list(None)
        return {document["_id"]: JobRecord.model_validate(document) for document in found}

    async def assign(self, assignments: Sequence[Assignment], *, token: str) -> set[str]:
        """Make operations the current ones of their jobs; return the ids of the jobs that were won.

        A job whose version is not the one seen was changed by someone else and is left alone.
        """
        if not assignments:
            return set()
        async with self._connection.answering():
            await self._collection.bulk_write(
                [_assignment_write(one, token) for one in assignments], ordered=False
            )
            won = await self._collection.find(
                {
                    "_id": {"$in": [one.job_id for one in assignments]},
                    "current.token": token,
                },
                {"_id": 1},
            ).to_list(None)
        return {document["_id"] for document in won}

    async def apply(self, effects: Sequence[JobEffect]) -> int:
        """Write what reports say of jobs; return how many found their job. Others are stale."""
        if not effects:
            return 0
        async with self._connection.answering():
            done = await self._collection.bulk_write(
                [_effect_write(effect) for effect in effects], ordered=False
            )
        return done.matched_count

    async def observe(
        self,
        job: JobRecord,
        state: JobState,
        error: ErrorInfo | None,
        *,
        recovery: RestorationRecord | None = None,
        counts: bool = True,
    ) -> bool:
        """Write what was found out about a job, if nobody changed the job meanwhile.

        With `recovery` it is to be brought back, which `counts` as a restart or does not.
        """
        changes: Document = {
            "state": state,
            "error": error_document(error),
            "recovery": recovery.model_dump(mode="json") if recovery else None,
        }
        if recovery is not None and counts:
            changes["restarts"] = 1 if job.steady else job.restarts + 1
        if not state.live:
            changes |= {"host_id": None, "container_id": None}
        return await self._change(job, changes)

    async def moving(self, *, limit: int) -> list[JobRecord]:
        """Return jobs that are being made ready on another host."""
        async with self._connection.answering():
            found = await self._collection.find({"move": {"$type": "object"}}, limit=limit).to_list(
                None
            )
        return [JobRecord.model_validate(document) for document in found]

    async def begin_move(self, job: JobRecord, move: RelocationRecord) -> bool:
        """Note where a job is being made ready, if nobody changed it meanwhile."""
        changes = {"move": move.model_dump(mode="json"), "highest_generation": move.generation}
        return await self._change(job, changes)

    async def end_move(self, job: JobRecord, *, failures: int) -> bool:
        """Forget a move that came to nothing, if nobody changed the job meanwhile.

        `failures` is how many failed moves it counts as.
        """
        failures += job.move_failures
        return await self._change(job, {"move": None, "move_failures": failures})

    async def arrive(
        self, job: JobRecord, move: RelocationRecord, container_id: str | None
    ) -> bool:
        """Make the prepared container the job's own, if nobody changed the job meanwhile."""
        return await self._change(
            job,
            {
                "host_id": move.host_id,
                "generation": move.generation,
                "container_id": container_id,
                "move": None,
                "move_failures": 0,
            },
        )

    async def _change(self, job: JobRecord, changes: Document) -> bool:
        async with self._connection.answering():
            done = await self._collection.update_one(
                {"_id": job.job_id, "version": job.version},
                {
                    "$set": changes,
                    "$inc": {"version": 1},
                    "$currentDate": {"updated_at": True},
                },
            )
        return done.matched_count == 1

    async def in_line_again(self, job: JobRecord) -> bool:
        """Note that the operations which bring a job back are in line."""
        async with self._connection.answering():
            done = await self._collection.update_one(
                {"_id": job.job_id, "version": job.version},
                {"$set": {"recovery": None}, "$inc": {"version": 1}},
            )
        return done.matched_count == 1

    async def let_go(self, operation: OperationRecord, error: ErrorInfo | None = None) -> bool:
        """Take a job off the host that it was being placed on by this attempt.

        Its state stays; one that was live FAILED with `error`, for its container is given up too.
        """
        placing = sorted(state for state in JobState if not state.live)
        if await self._end_attempt(operation, {}, {"state": {"$in": placing}}):
            return True
        return await self.fail_attempt(operation, error)

    async def fail_attempt(self, operation: OperationRecord, error: ErrorInfo | None) -> bool:
        """Write FAILED to the job that this attempt was changing, and take it off its host."""
        return await self._end_attempt(
            operation, {"state": JobState.FAILED, "error": error_document(error)}, {}
        )

    async def _end_attempt(
        self, operation: OperationRecord, changes: Document, guard: Document
    ) -> bool:
        async with self._connection.answering():
            done = await self._collection.update_one(
                {
                    "_id": operation.job_id,
                    "current.operation_id": operation.operation_id,
                    "current.epoch": operation.epoch,
                    "host_id": operation.host_id,
                    "generation": operation.generation,
                    **guard,
                },
                {
                    "$set": {**changes, "host_id": None, "container_id": None},
                    "$inc": {"version": 1},
                    "$currentDate": {"updated_at": True},
                },
            )
        return done.matched_count == 1

    async def fence(self, job: JobRecord) -> bool:
        """Make whoever looked at the job before now lose its next write to it."""
        async with self._connection.answering():
            done = await self._collection.update_one(
                {"_id": job.job_id, "version": job.version}, {"$inc": {"version": 1}}
            )
        return done.matched_count == 1

    async def terminated_without_container(self, job_ids: Sequence[str]) -> None:
        """Write TERMINATED to jobs that have no container, reservation or host to ask."""
        if not job_ids:
            return
        async with self._connection.answering():
            await self._collection.update_many(
                {"_id": {"$in": list(job_ids)}, "host_id": None},
                {
                    "$set": {"state": JobState.TERMINATED, "error": None},
                    "$inc": {"version": 1},
                    "$currentDate": {"updated_at": True},
                },
            )


def _assignment_write(one: Assignment, token: str) -> UpdateOne:
    changes: Document = {
        "current": {
            "operation_id": one.operation_id,
            "epoch": one.epoch,
            "seq": 0,
            "token": token,
        },
        "generation": one.generation,
        "host_id": one.host_id,
    }
    if one.anew:
        changes |= {"restarts": 0, "move_failures": 0}
    if one.spec is not None:
        changes |= {
            # As text: a hook's body is any JSON, and not all of that is BSON.
            "spec": one.spec.model_dump_json(),
            "dataset_spec": one.dataset_spec.model_dump_json() if one.dataset_spec else None,
            "model": one.spec.name,
            "dataset": one.dataset_spec.name if one.dataset_spec else None,
        }
    return UpdateOne(
        {"_id": one.job_id, "version": one.seen_version},
        {"$set": changes, "$inc": {"version": 1}, "$currentDate": {"updated_at": True}},
    )


def _effect_write(effect: JobEffect) -> UpdateOne:
    changes: Document = {"state": effect.state, "error": error_document(effect.error)}
    sources = job_sources(effect.state)
    if effect.shared:
        sources = frozenset(state for state in sources if state.live)
    guard: Document = {
        "_id": effect.job_id,
        "generation": effect.generation,
        # A job that has let go of its host takes nothing more from it, whatever comes twice.
        "host_id": effect.host_id,
        "state": {"$in": sorted(sources)},
    }
    if not effect.shared:
        guard |= {
            "current.operation_id": effect.operation_id,
            "current.epoch": effect.epoch,
            # The same report again is welcome: it repairs what a crash left half done.
            "current.seq": {"$lte": effect.seq},
        }
        changes["current.seq"] = effect.seq
        if effect.told is not None:
            changes["told"] = effect.told.model_dump()
    if effect.coming is not None:
        changes["recovery"] = effect.coming.recovery.model_dump(mode="json")
        changes["restarts"] = effect.coming.restarts
    if effect.state.live:
        if effect.container_id is not None:
            changes["container_id"] = effect.container_id
    else:
        changes |= {"host_id": None, "container_id": None}
    dates = {"updated_at": True}
    if effect.state is JobState.LOADED and not effect.shared:
        dates["loaded_at"] = True
    return UpdateOne(guard, {"$set": changes, "$inc": {"version": 1}, "$currentDate": dates})
