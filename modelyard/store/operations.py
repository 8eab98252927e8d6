"""Operations: recorded once, moved only by writes that name where they may come from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo import ReturnDocument, UpdateOne

from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import OperationReport
from modelyard.contract.states import OperationState, operation_sources
from modelyard.store.connection import Connection
from modelyard.store.paging import Page, Position, page_filter, to_page
from modelyard.store.records import (
    Document,
    NewOperation,
    OperationRecord,
    error_document,
)

WITHOUT_PAYLOAD = {"input_json": 0, "result_json": 0}
LINE_COUNTER = "line"
GIVEN_STATES = frozenset({OperationState.DISPATCHED, OperationState.RUNNING})
"""The states in which a host has the operation: the only ones that a report may change."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is recorded under an id that intake is about to record."""

    operation_id: str
    job_id: str | None
    payload_hash: str
    state: OperationState
    line: int | None
    accepted: tuple[datetime, int]
    """When it was recorded, and its place among those recorded with it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The scheduler's wish to dispatch one operation; it names the epoch it saw."""

    operation_id: str
    seen_epoch: int
    host_id: str
    incarnation: str
    generation: int


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of an operation that is still QUEUED."""

    operation_id: str
    state: OperationState
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class ResultPlace:
    """Where a reported result was put."""

    inline_json: str | None
    file_id: str | None
    size: int


class Operations:
    """The collection `operations`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._collection = connection.collection("operations")
        self._counters = connection.collection("counters")

    # --- recording ---

    async def record(self, new: Sequence[NewOperation]) -> list[bool]:
        """Record what is not there yet, in one write; True for each that is new.

        An operation whose id is known is left as it is.
        """
        return await self._upsert([(operation, None) for operation in new])

    async def take_in(self, new: Sequence[tuple[NewOperation, int]]) -> list[bool]:
        """Record what is not there yet and give each its place in line, if it has none."""
        return await self._upsert(new)

    async def next_lines(self, count: int) -> range:
        """Return `count` places in line behind all that were given before."""
        async with self._connection.answering():
            counter = await self._counters.find_one_and_update(
                {"_id": LINE_COUNTER},
                {"$inc": {"value": count}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        end = int(counter["value"])
        return range(end - count + 1, end + 1)

    async def known(self, operation_ids: Sequence[str]) -> dict[str, Known]:
        """Return which of these ids are recorded."""
        return await self._find_known({"_id": {"$in": list(operation_ids)}})

    async def not_in_line(self, job_ids: Sequence[str], *, but: Sequence[str]) -> list[Known]:
        """Return recorded operations of these jobs that have no place in line, oldest first."""
        found = await self._find_known(
            {
                "job_id": {"$in": list(job_ids)},
                "open": True,
                "line": None,
                "_id": {"$nin": list(but)},
            },
        )
        return list(found.values())

    async def overdue_for_line(self, *, older_than_s: float, limit: int) -> list[Known]:
        """Return recorded operations whose message did not come within `older_than_s` seconds."""
        found = await self._find_known(
            {
                "state": OperationState.QUEUED,
                "open": True,
                "line": None,
                "$expr": _older("$accepted_at", older_than_s),
            },
            limit=limit,
        )
        return list(found.values())

    async def put_in_line(self, places: Mapping[str, int]) -> None:
        """Give recorded operations their places in line, where they have none."""
        if not places:
            return
        async with self._connection.answering():
            await self._collection.bulk_write(
                [
                    UpdateOne({"_id": key, "open": True, "line": None}, {"$set": {"line": line}})
                    for key, line in places.items()
                ],
                ordered=False,
            )

    # --- reading ---

    async def get(self, operation_id: str) -> OperationRecord | None:
        """Return one operation without its input and result."""
        async with self._connection.answering():
            found = await self._collection.find_one({"_id": operation_id}, WITHOUT_PAYLOAD)
        return OperationRecord.model_validate(found) if found else None

    async def get_many(self, operation_ids: Sequence[str]) -> dict[str, OperationRecord]:
        """Return those of the operations that exist, without inputs and results."""
        return {
            record.operation_id: record
            for record in await self._find({"_id": {"$in": list(operation_ids)}})
        }

    async def result(self, operation_id: str) -> ResultPlace | None:
        """Return where the result of an operation is, null if it has none."""
        async with self._connection.answering():
            found = await self._collection.find_one(
                {"_id": operation_id}, {"result_json": 1, "result_file": 1, "result_bytes": 1}
            )
        if found is None or found.get("result_bytes") is None:
            return None
        return ResultPlace(
            found.get("result_json"), found.get("result_file"), found["result_bytes"]
        )

    async def page(
        self, criteria: Mapping[str, str], *, after: Position | None, limit: int
    ) -> Page[OperationRecord]:
        """Return operations newest first; `criteria` compares fields with given values."""
        async with self._connection.answering():
            found = (
                await self._collection.find(
                    page_filter(criteria, "accepted_at", after), WITHOUT_PAYLOAD
                )
                .sort([("accepted_at", -1), ("_id", -1)])
                .limit(limit + 1)
                .to_list(None)
            )
        return to_page(found, OperationRecord, "accepted_at", limit)

    async def waiting(self, *, after: OperationRecord | None, limit: int) -> list[OperationRecord]:
        """Return operations that are QUEUED and in line: highest priority first, then oldest."""
        criteria: Document = {"state": OperationState.QUEUED, "open": True, "line": {"$ne": None}}
        if after is not None:
            criteria["$or"] = [
                {"priority": {"$lt": after.priority}},
                {"priority": after.priority, "line": {"$gt": after.line}},
            ]
        return await self._find(criteria, sort=[("priority", -1), ("line", 1)], limit=limit)

    async def without_host(self, *, limit: int) -> list[OperationRecord]:
        """Return operations that were looked at and found no host: the most urgent first."""
        return await self._find(
            {"state": OperationState.QUEUED, "waits": True},
            sort=[("priority", -1), ("line", 1)],
            limit=limit,
        )

    async def on_host(self, host_id: str) -> list[OperationRecord]:
        """Return the operations that a host has been given and that have not ended."""
        return await self._find(
            {"host_id": host_id, "open": True, "state": {"$in": sorted(GIVEN_STATES)}}
        )

    async def unaccepted(self, *, older_than_s: float, limit: int) -> list[OperationRecord]:
        """Return operations DISPATCHED for so long that their command may be lost."""
        return await self._find(
            {
                "state": OperationState.DISPATCHED,
                "open": True,
                "$expr": _older("$published_at", older_than_s),
            },
            limit=limit,
            with_input=True,
        )

    # --- moving ---

    async def claim(self, claims: Sequence[Claim], *, token: str) -> list[OperationRecord]:
        """Move operations from QUEUED to DISPATCHED under a new epoch; return those that were won.

        The returned ones carry their input. Another scheduler may have won the others.
        """
        writes = [
            UpdateOne(
                {
                    "_id": claim.operation_id,
                    "state": {"$in": _sources(OperationState.DISPATCHED)},
                    "epoch": claim.seen_epoch,
                },
                [
                    {
                        "$set": {
                            "state": OperationState.DISPATCHED,
                            "epoch": claim.seen_epoch + 1,
                            "seq": 0,
                            "token": token,
                            "host_id": {"$literal": claim.host_id},
                            "incarnation": {"$literal": claim.incarnation},
                            "generation": claim.generation,
                            "waiting_for": [],
                            "waits": "$$REMOVE",
                            # It has left the queue: its deadline there is met, for good.
                            "expires_at": "$$REMOVE",
                            "dispatched_at": "$$NOW",
                            "published_at": "$$NOW",
                        },
                    },
                ],
            )
            for claim in claims
        ]
        if not writes:
            return []
        async with self._connection.answering():
            await self._collection.bulk_write(writes, ordered=False)
        return await self._find(
            {"token": token, "open": True, "state": OperationState.DISPATCHED}, with_input=True
        )

    async def end_queued(self, endings: Sequence[Ending], *, token: str) -> list[OperationRecord]:
        """End operations that are still QUEUED; return those that were."""
        if not endings:
            return []
        async with self._connection.answering():
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": ending.operation_id, "state": OperationState.QUEUED},
                        [
                            {
                                "$set": {
                                    "state": ending.state,
                                    "open": False,
                                    "token": token,
                                    "error": _literal(ending.error),
                                    "waiting_for": [],
                                    "waits": "$$REMOVE",
                                    "finished_at": "$$NOW",
                                },
                            },
                        ],
                    )
                    for ending in endings
                ],
                ordered=False,
            )
        return await self._find(
            {"_id": {"$in": [ending.operation_id for ending in endings]}, "token": token}
        )

    async def explain_waiting(self, reasons: Mapping[str, Sequence[str]]) -> None:
        """Store why operations that are QUEUED could not be placed."""
        if not reasons:
            return
        async with self._connection.answering():
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": key, "state": OperationState.QUEUED},
                        {"$set": {"waiting_for": list(texts), "waits": True}},
                    )
                    for key, texts in reasons.items()
                ],
                ordered=False,
            )

    async def expired(self, *, limit: int) -> list[str]:
        """Return the ids of operations that stayed QUEUED past their deadline."""
        async with self._connection.answering():
            found = await self._collection.find(
                {
                    "state": OperationState.QUEUED,
                    "open": True,
                    "expires_at": {"$exists": True},
                    "$expr": {"$lt": ["$expires_at", "$$NOW"]},
                },
                {"_id": 1},
                limit=limit,
            ).to_list(None)
        return [document["_id"] for document in found]

    async def mark_published(self, operations: Iterable[OperationRecord]) -> None:
        """Note that the commands of DISPATCHED operations were published again."""
        async with self._connection.answering():
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": one.operation_id, "epoch": one.epoch},
                        [{"$set": {"published_at": "$$NOW"}}],
                    )
                    for one in operations
                ],
                ordered=False,
            )

    async def requeue(self, operation: OperationRecord) -> bool:
        """Send an operation back to QUEUED; the next claim gives it a new epoch."""
        async with self._connection.answering():
            done = await self._collection.update_one(
                {
                    "_id": operation.operation_id,
                    "state": {"$in": _sources(OperationState.QUEUED)},
                    "epoch": operation.epoch,
                },
                {"$set": {"state": OperationState.QUEUED, "phase": None, "progress": None}},
            )
        return done.matched_count == 1

    async def fail_given(self, operation: OperationRecord, error: ErrorInfo) -> bool:
        """Fail an operation that its host can't finish any more; fenced by its epoch."""
        async with self._connection.answering():
            done = await self._collection.update_one(
                {
                    "_id": operation.operation_id,
                    "state": {"$in": _sources(OperationState.FAILED)},
                    "epoch": operation.epoch,
                },
                [
                    {
                        "$set": {
                            "state": OperationState.FAILED,
                            "open": False,
                            "error": _literal(error),
                            "finished_at": "$$NOW",
                        },
                    },
                ],
            )
        return done.matched_count == 1

    async def apply(
        self, reports: Sequence[OperationReport], results: Mapping[str, ResultPlace]
    ) -> int:
        """Write what workers reported; return how many writes found their operation.

        Each write is guarded by the states it may come from, the epoch and the sequence number.
        One that finds nothing is stale.
        """
        if not reports:
            return 0
        async with self._connection.answering():
            done = await self._collection.bulk_write(
                [_report_write(report, results.get(report.operation_id)) for report in reports],
                ordered=False,
            )
        return done.matched_count

    # --- inside ---

    async def _upsert(self, new: Sequence[tuple[NewOperation, int | None]]) -> list[bool]:
        if not new:
            return []
        async with self._connection.answering():
            done = await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": operation.operation_id},
                        _recording(operation, line, place),
                        upsert=True,
                    )
                    for place, (operation, line) in enumerate(new)
                ],
                ordered=False,
            )
        upserted = done.upserted_ids or {}
        return [index in upserted for index in range(len(new))]

    async def _find(
        self,
        criteria: Mapping[str, Any],
        *,
        sort: Sequence[tuple[str, int]] | None = None,
        limit: int = 0,
        with_input: bool = False,
    ) -> list[OperationRecord]:
        without = {"result_json": 0} if with_input else WITHOUT_PAYLOAD
        async with self._connection.answering():
            cursor = self._collection.find(dict(criteria), without).limit(limit)
            if sort:
                cursor = cursor.sort(list(sort))
            found = await cursor.to_list(None)
        return [OperationRecord.model_validate(document) for document in found]

    async def _find_known(self, criteria: Mapping[str, Any], *, limit: int = 0) -> dict[str, Known]:
        async with self._connection.answering():
            found = (
                await self._collection.find(dict(criteria), _KNOWN_FIELDS)
                .sort([("accepted_at", 1), ("accepted_place", 1), ("_id", 1)])
                .limit(limit)
                .to_list(None)
            )
        return {
            document["_id"]: Known(
                document["_id"],
                document.get("job_id"),
                document.get("payload_hash", ""),
                OperationState(document["state"]),
                document.get("line"),
                (document["accepted_at"], document.get("accepted_place", 0)),
            )
            for document in found
        }


_KNOWN_FIELDS = dict.fromkeys(
    ("job_id", "payload_hash", "state", "line", "accepted_at", "accepted_place"), 1
)


def _sources(target: OperationState) -> list[str]:
    return sorted(operation_sources(target))


def _older(field: str, seconds: float) -> Document:
    """Compare a date with the database's own clock."""
    return {"$lt": [field, {"$subtract": ["$$NOW", int(seconds * 1_000)]}]}


def _literal(value: ErrorInfo | None) -> Document | None:
    return None if value is None else {"$literal": error_document(value)}


def _recording(operation: NewOperation, line: int | None, place: int) -> list[Document]:
    """Return a pipeline that writes the operation if nothing is there, and its line if it has none.

    `place` is where it stands among those written with it: they all share one `$$NOW`.
    Everything that a client has a say in is a literal: no key or string of it is an expression.
    """
    rejection = operation.rejection
    document = operation.model_dump(mode="json", exclude={"operation_id", "rejection"})
    document |= {
        "_id": operation.operation_id,
        "state": OperationState.REJECTED if rejection else OperationState.QUEUED,
        "open": rejection is None,
        "accepted_place": place,
        "has_input": operation.input_json is not None,
        "epoch": 0,
        "seq": 0,
        "error": error_document(rejection),
    }
    made_now: Document = {"accepted_at": "$$NOW"}
    if rejection is not None:
        made_now["finished_at"] = "$$NOW"
    if operation.queue_timeout_s is not None:
        made_now["expires_at"] = {"$add": ["$$NOW", int(operation.queue_timeout_s * 1_000)]}
    pipeline: list[Document] = [
        {
            "$replaceWith": {
                "$cond": [
                    {"$eq": [{"$type": "$state"}, "missing"]},
                    {"$mergeObjects": [{"$literal": document}, made_now]},
                    "$$ROOT",
                ],
            },
        },
    ]
    if line is not None:
        pipeline.append({"$set": {"line": {"$ifNull": ["$line", line]}}})
    return pipeline


def _report_write(report: OperationReport, result: ResultPlace | None) -> UpdateOne:
    state = report.state
    changes: Document = {
        "state": state,
        "seq": report.seq,
        "phase": report.phase,
        "progress": {"$literal": report.progress.model_dump(mode="json")}
        if report.progress
        else None,
        "error": _literal(report.error),
        "started_at": {"$ifNull": ["$started_at", "$$NOW"]},
    }
    if report.container_id is not None:
        changes["container_id"] = {"$literal": report.container_id}
    if state.terminal:
        changes |= {"open": False, "finished_at": "$$NOW"}
    if result is not None:
        changes |= {
            "result_json": {"$literal": result.inline_json},
            "result_file": result.file_id,
            "result_bytes": result.size,
        }
    return UpdateOne(
        {
            "_id": report.operation_id,
            "epoch": report.epoch,
            "seq": {"$lt": report.seq},
            "state": {"$in": sorted(operation_sources(state) & GIVEN_STATES)},
        },
        [{"$set": changes}],
    )
