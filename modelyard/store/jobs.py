"""Jobs: the state of each job's container, and which attempt may change it now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pymongo import UpdateOne

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.states import JobState, OperationState, Verb, job_sources
from modelyard.store.connection import MongoConnection
from modelyard.store.operation_writes import older
from modelyard.store.paging import Page, Position, page_filter, read_page, to_page
from modelyard.store.records import (
    CurrentOperation,
    Document,
    JobLine,
    JobRecord,
    LastReport,
    OperationRecord,
    RelocationRecord,
    RestorationRecord,
    error_document,
    jobs_of,
)

STEADY_S = 600.0
"""Seconds that a model must be loaded before its count of restarts begins again."""
GENERATION_FLOOR = "generations"
"""The counter of the highest generation that a deleted job had."""
LINE_HEAD = 160
"""Operations of one job that the scheduler reads in one pass: more than may run together."""
LINES_AT_ONCE = 32
"""Jobs whose lines are read at once: more would be in memory twice for a while, and Python does
not give that memory back."""
HEADS_AT_ONCE = 1_600
"""Operations that are read at once to say what others wait for, about."""
SHORTEST_HEAD = 8
"""Of each job, however many jobs there are."""


@dataclass(frozen=True, slots=True)
class OperationInLine:
    """An open operation of a job, and where it is in its line."""

    operation_id: str
    line: int
    verb: Verb
    state: OperationState
    reason: str | None = None
    """Why Modelyard made it; null for a client's."""


@dataclass(frozen=True, slots=True)
class HeadOfLine:
    """The first open operations of a job."""

    operations: tuple[OperationInLine, ...]
    """In their order, at least one."""
    max_concurrency: int
    """How many inferences of the job may run at the same time."""
    restoring: bool = False
    """Modelyard restores the job before anything else."""
    whole: bool = True
    """False if there may be more open operations than these."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Makes an attempt the current one of its job, with the host and generation it works on."""

    job_id: str
    seen_version: int
    operation_id: str
    epoch: int
    generation: int
    host_id: str
    spec: ModelSpec | None = None
    dataset_spec: DatasetSpec | None = None
    devices: tuple[str, ...] = ()
    """The devices that are bound to the new container, by uuid."""
    anew: bool = False
    """True if a client asked for it: the counts of restarts and failed moves begin again."""

    def applied_to(self, job: JobRecord) -> JobRecord:
        """Return the job, which has the version that was seen, as it is after this write."""
        changes: Document = {
            "version": job.version + 1,
            "current": CurrentOperation(operation_id=self.operation_id, epoch=self.epoch),
            "generation": self.generation,
            "host_id": self.host_id,
        }
        if self.anew:
            changes |= {"restarts": 0, "move_failures": 0}
        if self.spec is not None:
            changes |= {
                "spec": self.spec,
                "dataset_spec": self.dataset_spec,
                "devices": self.devices,
            }
        return job.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class PendingRestoration:
    """A job that was found down is to be restored; `restarts` counts this restart too."""

    recovery: RestorationRecord
    restarts: int


@dataclass(frozen=True, slots=True)
class JobEffect:
    """The change that a report makes to its job. Only the job's current attempt may make it.

    With `shared` it comes from an operation that does not own the job (INFER); then it applies only
    to a live job of the same generation. `coming` is how the job is restored if this is the first
    to find it down. If a shared one finds the job CREATED, another has found it down before and has
    counted that: then it is restored as `again` says.
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
    again: RestorationRecord | None = None
    told: LastReport | None = None
    ran_s: float | None = None
    """Seconds that the attempt has taken."""

    def applied_to(self, job: JobRecord) -> JobRecord | None:
        """Return the job as it is after this write; None if only the database knows that."""
        restored = self.coming is not None or self.again is not None
        if restored or (self.state is JobState.LOADED and not self.shared):
            return None
        changes: Document = {
            "version": job.version + 1,
            "state": self.state,
            "error": self.error,
        }
        if not self.shared and job.current is not None:
            changes["current"] = job.current.model_copy(update={"seq": self.seq})
        if not self.shared and self.told is not None:
            changes["told"] = self.told
        if not self.state.live:
            changes |= {"host_id": None, "container_id": None}
        elif self.container_id is not None:
            changes["container_id"] = self.container_id
        return job.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class JobLines:
    """Jobs with their first open operations; `moved` are jobs that changed while being read."""

    lines: tuple[JobLine, ...]
    moved: frozenset[str]


class Jobs:
    """The collection `jobs`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("jobs")
        self._counters = connection.collection("counters")

    async def raise_generation_floor(self, deleted: Iterable[JobRecord]) -> None:
        """Keep the generations of jobs that are about to be deleted from being given out again.

        A container of theirs may come to light later, on a host that was lost. It has to differ
        from those of a new job of the same name.
        """
        highest = max((one.next_generation - 1 for one in deleted), default=0)
        if highest > 0:
            async with self._connection.answering():
                await self._counters.update_one(
                    {"_id": GENERATION_FLOOR},
                    [{"$set": {"value": {"$max": [{"$ifNull": ["$value", 0]}, highest]}}}],
                    upsert=True,
                )

    async def generation_floor(self) -> int:
        """Return the generation above which new jobs begin.

        It holds for jobs that were recorded before this call: one that is deleted and recorded
        again has raised it before.
        """
        async with self._connection.answering():
            found = await self._counters.find_one({"_id": GENERATION_FLOOR})
        return int(found["value"]) if found else 0

    async def ensure(self, job_ids: Iterable[str]) -> None:
        """Record jobs that a request names for the first time, in state NONE."""
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
        """Return jobs newest first; `criteria` compares fields with given values.

        Raises `SlowQueryError` too.
        """
        cursor = self._collection.find(page_filter(criteria, "created_at", after)).sort(
            [("created_at", -1), ("_id", -1)]
        )
        found = await read_page(self._connection, cursor, limit)
        return to_page(found, JobRecord, "created_at", limit)

    async def lines(self, job_ids: Sequence[str]) -> JobLines:
        """Return the jobs, each with its first open operations, as they were at one moment.

        A $lookup has no snapshot. So each job is read before and after its operations, and is
        left out as `moved` if its version changed meanwhile. Reading the job only
        before gave a job older than its operations in up to 1 of 2,500 reads; reading it only after
        gave a newer job.
        """
        lines: list[JobLine] = []
        moved: set[str] = set()
        for start in range(0, len(job_ids), LINES_AT_ONCE):
            read = await self._lines(job_ids[start : start + LINES_AT_ONCE])
            lines += read.lines
            moved |= read.moved
        return JobLines(tuple(lines), frozenset(moved))

    async def _lines(self, job_ids: Sequence[str]) -> JobLines:
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
        jobs = await self.get_many([one["_id"] for one in found]) if found else {}
        versions = {key: job.version for key, job in jobs.items()}
        unchanged = [one for one in found if versions.get(one["_id"]) == one["version"]]
        if any(jobs[one["_id"]].next_generation == 1 for one in unchanged):
            floor = await self.generation_floor()
            jobs = {key: job.above(floor) for key, job in jobs.items()}
        return JobLines(
            tuple(
                JobLine(
                    job=jobs[document["_id"]],
                    operations=tuple(
                        OperationRecord.model_validate(one) for one in document["operations"]
                    ),
                )
                for document in unchanged
            ),
            frozenset({one["_id"] for one in found} - {one["_id"] for one in unchanged}),
        )

    async def heads_of_lines(
        self, job_ids: Sequence[str], *, limit: int = LINE_HEAD
    ) -> dict[str, HeadOfLine]:
        """Return the first open operations of each job that has one in its line, by job id.

        At most `limit` of each job, and fewer of each if there are many jobs, since each is read
        with its input: `HEADS_AT_ONCE` of all, but not less than `SHORTEST_HEAD` of each.
        """
        limit = min(limit, max(SHORTEST_HEAD, HEADS_AT_ONCE // max(1, len(job_ids))))
        head: list[Document] = [
            {"$match": {"open": True, "line": {"$ne": None}}},
            {"$sort": {"line": 1}},
            {"$limit": limit},
            {"$project": {"line": 1, "verb": 1, "state": 1, "reason": 1}},
        ]
        pipeline: list[Document] = [
            {"$match": {"_id": {"$in": list(job_ids)}}},
            {
                "$lookup": {
                    "from": "operations",
                    "localField": "_id",
                    "foreignField": "job_id",
                    "pipeline": head,
                    "as": "operations",
                }
            },
            {"$project": {"operations": 1, "max_concurrency": 1, "recovery": 1}},
        ]
        async with self._connection.answering():
            found = await self._collection.aggregate(pipeline).to_list(None)
        return {
            one["_id"]: HeadOfLine(
                operations=tuple(map(_in_line, one["operations"])),
                max_concurrency=one.get("max_concurrency", 1),
                restoring=one.get("recovery") is not None,
                whole=len(one["operations"]) < limit,
            )
            for one in found
            if one["operations"]
        }

    async def on_host(self, host_id: str) -> list[JobRecord]:
        """Return the jobs that hold a reservation on a host."""
        return await self.on_hosts([host_id])

    async def on_hosts(self, host_ids: Sequence[str]) -> list[JobRecord]:
        """Return the jobs that hold a reservation on one of several hosts."""
        return await self._with_age({"host_id": {"$in": list(host_ids)}})

    async def get_with_age(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Return those of the jobs that exist, with the field `steady` set."""
        return await self._with_age({"_id": {"$in": list(job_ids)}})

    async def _with_age(self, criteria: Document) -> list[JobRecord]:
        steady = {"$and": [{"$gt": ["$loaded_at", None]}, older("$loaded_at", STEADY_S)]}
        async with self._connection.answering():
            found = await self._collection.aggregate(
                [{"$match": criteria}, {"$addFields": {"steady": steady}}]
            ).to_list(None)
        return [JobRecord.model_validate(document) for document in found]

    async def pending_restorations(self, *, limit: int) -> list[JobRecord]:
        """Return jobs that were found down and whose restoring operations are not recorded yet."""
        async with self._connection.answering():
            found = await self._collection.find(
                {"recovery": {"$type": "object"}}, limit=limit
            ).to_list(None)
        return [JobRecord.model_validate(document) for document in found]

    async def idle_unloading(self) -> list[JobRecord]:
        """Return the loaded jobs whose models are unloaded when they are idle."""
        async with self._connection.answering():
            found = await self._collection.find(
                {"state": JobState.LOADED, "idle_unload_s": {"$gt": 0}}
            ).to_list(None)
        return [JobRecord.model_validate(document) for document in found]

    async def get_many(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return those of the jobs that exist."""
        async with self._connection.answering():
            found = await self._collection.find({"_id": {"$in": list(job_ids)}}).to_list(None)
        return {job.job_id: job for job in jobs_of(found)}

    async def without_specs(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return those of the jobs that exist, as if they had no spec and no dataset."""
        left_out = {"spec": 0, "dataset_spec": 0}
        async with self._connection.answering():
            found = await self._collection.find({"_id": {"$in": list(job_ids)}}, left_out).to_list(
                None
            )
        return {job.job_id: job for job in jobs_of(found)}

    async def assign(self, assignments: Sequence[Assignment], *, token: str) -> set[str]:
        """Make attempts the current ones of their jobs; return the jobs where that succeeded.

        A job whose version differs was changed by someone else meanwhile and is left alone. The
        listeners of changes are told only if there is such a job, or may be: who calls this keeps
        its memory itself.
        """
        if not assignments:
            return set()
        jobs = [one.job_id for one in assignments]
        if await self._write([_assignment_write(one, token) for one in assignments], jobs) == len(
            assignments
        ):
            return set(jobs)
        async with self._connection.answering():
            won = await self._collection.find(
                {"_id": {"$in": jobs}, "current.token": token}, {"_id": 1}
            ).to_list(None)
        return {document["_id"] for document in won}

    async def apply(self, effects: Sequence[JobEffect]) -> int:
        """Write the effects of reports on jobs; return how many applied. The others are stale.

        The listeners of changes are told only if not all applied, or that is unknown: who calls
        this keeps its memory itself.
        """
        if not effects:
            return 0
        writes = [_effect_write(effect) for effect in effects]
        return await self._write(writes, [effect.job_id for effect in effects])

    async def _write(self, writes: Sequence[UpdateOne], jobs: Sequence[str]) -> int:
        """Make guarded writes, one to each of the jobs; return how many of them matched."""
        matched = 0
        try:
            async with self._connection.answering():
                done = await self._collection.bulk_write(writes, ordered=False)
            matched = done.matched_count
        finally:
            if matched < len(writes):
                self._connection.changes.written(jobs=jobs)
        return matched

    async def observe(
        self,
        job: JobRecord,
        state: JobState,
        error: ErrorInfo | None,
        *,
        recovery: RestorationRecord | None = None,
        counts: bool = True,
    ) -> bool:
        """Write a job's observed state, if nobody changed the job meanwhile.

        With `recovery` the job is to be restored. `counts` says whether that counts as a restart.
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
        """Return jobs that are being prepared on another host."""
        async with self._connection.answering():
            found = await self._collection.find({"move": {"$type": "object"}}, limit=limit).to_list(
                None
            )
        return [JobRecord.model_validate(document) for document in found]

    async def begin_move(self, job: JobRecord, move: RelocationRecord) -> bool:
        """Record where a job is being prepared, if nobody changed the job meanwhile."""
        changes = {"move": move.model_dump(mode="json"), "highest_generation": move.generation}
        return await self._change(job, changes)

    async def end_move(self, job: JobRecord, *, failures: int) -> bool:
        """Remove a move that did not succeed, if nobody changed the job meanwhile.

        `failures` is how many failed moves it counts for.
        """
        failures += job.move_failures
        return await self._change(job, {"move": None, "move_failures": failures})

    async def arrive(self, job: JobRecord, move: RelocationRecord, leg: OperationRecord) -> bool:
        """Make the prepared container the job's own, if nobody changed the job meanwhile.

        `leg` is the last operation of the move; its last report is the job's from now on.
        """
        return await self._change(
            job,
            {
                "host_id": move.host_id,
                "generation": move.generation,
                "container_id": leg.container_id,
                "devices": list(move.devices),
                "told": leg.told.model_dump() if leg.told else None,
                "move": None,
                "move_failures": 0,
            },
        )

    async def _change(self, job: JobRecord, changes: Document) -> bool:
        async with self._connection.writing(jobs=[job.job_id]):
            done = await self._collection.update_one(
                {"_id": job.job_id, "version": job.version},
                {
                    "$set": changes,
                    "$inc": {"version": 1},
                    "$currentDate": {"updated_at": True},
                },
            )
        return done.matched_count == 1

    async def clear_restoration(self, job: JobRecord) -> bool:
        """Clear the pending restoration of a job: the operations that restore it are recorded."""
        async with self._connection.writing(jobs=[job.job_id]):
            done = await self._collection.update_one(
                {"_id": job.job_id, "version": job.version},
                {"$set": {"recovery": None}, "$inc": {"version": 1}},
            )
        return done.matched_count == 1

    async def unassign(self, operation: OperationRecord, error: ErrorInfo | None = None) -> bool:
        """Take a job off the host on which this attempt was placing it.

        The job keeps its state, unless it was live: then it is FAILED with `error`, because its
        container is given up too.
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
        async with self._connection.writing(jobs=[operation.job_id]):
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
        """Raise the job's version, so that a write by anyone who read it before fails."""
        async with self._connection.writing(jobs=[job.job_id]):
            done = await self._collection.update_one(
                {"_id": job.job_id, "version": job.version}, {"$inc": {"version": 1}}
            )
        return done.matched_count == 1

    async def terminated_without_container(self, job_ids: Sequence[str]) -> None:
        """Write TERMINATED to jobs that have no container, reservation or host to ask."""
        if not job_ids:
            return
        async with self._connection.writing(jobs=job_ids):
            await self._collection.update_many(
                {"_id": {"$in": list(job_ids)}, "host_id": None},
                {
                    "$set": {"state": JobState.TERMINATED, "error": None},
                    "$inc": {"version": 1},
                    "$currentDate": {"updated_at": True},
                },
            )


def _in_line(document: Document) -> OperationInLine:
    return OperationInLine(
        operation_id=document["_id"],
        line=document["line"],
        verb=Verb(document["verb"]),
        state=OperationState(document["state"]),
        reason=document.get("reason"),
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
            "devices": list(one.devices),
            # What queries ask of a spec, which is stored as text.
            "idle_unload_s": one.spec.residency.idle_unload_s,
            "on_demand": one.spec.residency.on_demand,
            "max_concurrency": one.spec.max_concurrency,
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
        # A job that was taken off its host ignores the host's reports, repeated ones too.
        "host_id": effect.host_id,
        "state": {"$in": sorted(sources)},
    }
    if not effect.shared:
        guard |= {
            "current.operation_id": effect.operation_id,
            "current.epoch": effect.epoch,
            # The same report may apply again: that completes a write that a crash interrupted.
            "current.seq": {"$lte": effect.seq},
        }
        changes["current.seq"] = effect.seq
        if effect.told is not None:
            changes["told"] = effect.told.model_dump()
    if effect.coming is not None and not effect.shared:
        changes["recovery"] = effect.coming.recovery.model_dump(mode="json")
        changes["restarts"] = effect.coming.restarts
    if effect.state.live:
        if effect.container_id is not None:
            changes["container_id"] = effect.container_id
    else:
        changes |= {"host_id": None, "container_id": None}
    if effect.state is JobState.LOADED and not effect.shared:
        return UpdateOne(guard, [{"$set": _loaded(changes, effect.ran_s)}])
    if effect.shared and (effect.coming is not None or effect.again is not None):
        return UpdateOne(guard, [{"$set": _found_down(changes, effect)}])
    dates = {"updated_at": True}
    return UpdateOne(guard, {"$set": changes, "$inc": {"version": 1}, "$currentDate": dates})


def _loaded(changes: Document, load_s: float | None) -> Document:
    """Return the changes of a job whose model is loaded; if it was before, that is not news."""
    return {
        **_in_stage(changes),
        "loaded_at": {"$cond": [_WAS_LOADED, "$loaded_at", "$$NOW"]},
        "load_s": {"$cond": [_WAS_LOADED, "$load_s", {"$literal": load_s}]},
    }


def _found_down(changes: Document, effect: JobEffect) -> Document:
    """Return the changes of a job that a shared operation has found down.

    Its death counts if the job was LOADED until now; else it was counted before.
    """
    coming, before = effect.coming, {"$ifNull": ["$restarts", 0]}
    first = _restoration(coming.recovery if coming else None)
    counted = coming.restarts if coming else before
    return {
        **_in_stage(changes),
        "recovery": {"$cond": [_WAS_LOADED, first, _restoration(effect.again)]},
        "restarts": {"$cond": [_WAS_LOADED, counted, before]},
    }


def _restoration(one: RestorationRecord | None) -> Document | None:
    """Return a restoration as the expression of a stage; its key is the version that it finds."""
    if one is None:
        return None
    return {
        name: "$version" if name == "key" else {"$literal": value}
        for name, value in one.model_dump(mode="json").items()
    }


def _in_stage(changes: Document) -> Document:
    """Return the changes of a job, with its next version, as those of a stage."""
    fields: Document = {"version": {"$add": ["$version", 1]}, "updated_at": "$$NOW"}
    for name, value in changes.items():
        outer, _, inner = name.partition(".")
        # In a stage, unlike in an update, a document is merged into the one that is there.
        fields[outer] = {inner: {"$literal": value}} if inner else {"$literal": value}
    return fields


_WAS_LOADED: Document = {"$eq": ["$state", JobState.LOADED]}
