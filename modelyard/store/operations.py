"""Operations: recorded once; every change of state names the states it may come from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import structlog
from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError

from modelyard.contract.errors import ErrorInfo
from modelyard.contract.messages import OperationReport
from modelyard.contract.states import OperationState, operation_sources
from modelyard.store.connection import MongoConnection
from modelyard.store.indexes import UNPUBLISHED
from modelyard.store.operation_queries import (
    WITHOUT_PAYLOAD,
    KnownOperation,
    OperationQueries,
    unpublished_of,
)
from modelyard.store.operation_writes import (
    ACTIVE_ON_HOST_STATES,
    DispatchClaim,
    IntakeEntry,
    Receipt,
    ResultPlace,
    accepted_document,
    claim_write,
    entry_write,
    literal,
    recording,
    report_write,
    sources,
)
from modelyard.store.records import Document, NewOperation, OperationRecord, ReplyAddress

log = structlog.get_logger(__name__)

LINE_COUNTER = "line"
FRONT_OF_LINE = -(1 << 62)
"""Added to a position, it puts an operation before all operations of clients."""
BEFORE_THE_FRONT = 2 * FRONT_OF_LINE
"""Added to a position, it puts an operation before those as well: it still has 64 bits."""


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """Why an attempt failed, if another attempt follows."""

    error: ErrorInfo
    seq: int
    """The sequence number of the attempt's last report; 0 if no worker has begun it."""
    rest_s: float
    """Seconds until the next attempt."""


@dataclass(frozen=True, slots=True)
class Entered:
    """What was found where operations entered their lines."""

    left_alone: frozenset[str]
    """The ids of those that have a position already, or are recorded with another payload, have
    begun or ended, or are to be cancelled."""
    unpublished: bool
    """True if there may be others of their jobs that the broker did not confirm."""


@dataclass(frozen=True, slots=True)
class QueuedEnding:
    """The end of an operation that is still QUEUED."""

    operation: OperationRecord
    state: OperationState
    error: ErrorInfo | None = None


class Operations:
    """The writes to the collection `operations`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection, queries: OperationQueries) -> None:
        self._connection = connection
        self._collection = connection.collection("operations")
        self._queries = queries
        self._counters = connection.collection("counters")
        self._numbers = count()

    # --- recording ---

    def accepted_now(self, new: Iterable[NewOperation]) -> list[NewOperation]:
        """Return the operations, each with this moment if it has none and the time is known."""
        at = self._connection.known_time
        return [
            one
            if one.accepted or at is None
            else one.model_copy(update={"accepted": (at, next(self._numbers))})
            for one in new
        ]

    async def record(self, new: Sequence[NewOperation]) -> list[bool]:
        """Record the operations that are new, in one write; return True for each new one.

        An operation whose id is recorded already stays as it is.
        """
        if not new:
            return []
        if any(one.accepted is None for one in new):
            await self._connection.time()
        documents = [
            accepted_document(one, one.accepted) for one in self.accepted_now(new) if one.accepted
        ]
        known = await self._connection.insert_new(self._collection, documents)
        return [index not in known for index in range(len(new))]

    async def take_in(self, new: Sequence[tuple[NewOperation, int]]) -> list[bool]:
        """Record the operations that are new, and give each its position if it has none."""
        if not new:
            return []
        async with self._connection.writing(jobs=[operation.job_id for operation, _ in new]):
            done = await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": operation.operation_id},
                        recording(operation, line, next(self._numbers)),
                        upsert=True,
                    )
                    for operation, line in new
                ],
                ordered=False,
            )
        upserted = done.upserted_ids or {}
        return [index in upserted for index in range(len(new))]

    async def mark_payload_mismatch(self, operation_ids: Iterable[str]) -> None:
        """Mark recorded operations whose ids came again with another request."""
        async with self._connection.answering():
            await self._collection.update_many(
                {"_id": {"$in": sorted(operation_ids)}}, {"$set": {"payload_mismatch": True}}
            )

    async def set_replies(self, replies: Iterable[tuple[KnownOperation, ReplyAddress]]) -> None:
        """Keep the addresses where the ends of open operations are told; others stay as they are.

        An address that an operation has is replaced.
        """
        given = list(replies)
        async with self._connection.writing(jobs=[one.job_id for one, _ in given]):
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": one.operation_id, "open": True},
                        {"$set": {"reply": address.model_dump(mode="json")}},
                    )
                    for one, address in given
                ],
                ordered=False,
            )

    async def mark_unpublished(self, operation_ids: Sequence[str]) -> None:
        """Mark recorded operations whose messages the broker did not confirm."""
        async with self._connection.answering():
            await self._collection.update_many(
                {"_id": {"$in": list(operation_ids)}, "open": True, "line": None},
                {"$set": {"unpublished": True}},
            )

    async def next_positions(self, count: int) -> range:
        """Return `count` new positions, behind all that were given out before."""
        async with self._connection.answering():
            counter = await self._counters.find_one_and_update(
                {"_id": LINE_COUNTER},
                {"$inc": {"value": count}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        end = int(counter["value"])
        return range(end - count + 1, end + 1)

    async def enter(self, entries: Sequence[IntakeEntry]) -> Entered:
        """Record new operations with their positions, and claim those that start, in one write.

        The listeners of changes are not told: who calls this keeps its memory itself.
        """
        jobs = sorted({entry.new.job_id for entry in entries if entry.new.job_id})
        writes = [entry_write(entry, next(self._numbers)) for entry in entries]
        async with self._connection.answering():
            done: Mapping[str, Any]
            try:
                written = await self._collection.bulk_write([*writes, _probe(jobs)], ordered=False)
                done = written.bulk_api_result
            except BulkWriteError as error:
                done = error.details
                of_entries = [one for one in done["writeErrors"] if one["index"] < len(writes)]
                if of_entries or done["writeConcernErrors"]:
                    raise
                log.warning("intake.not_probed", error=str(done["writeErrors"])[:200])
        unpublished = bool(done["writeErrors"]) or (
            done["nMatched"] + done["nUpserted"] > len(writes)
        )
        if done["nModified"] + done["nUpserted"] == len(writes):
            return Entered(frozenset(), unpublished=unpublished)
        lines = {entry.new.operation_id: entry.line for entry in entries}
        async with self._connection.answering():
            found = await self._collection.find({"_id": {"$in": list(lines)}}, {"line": 1}).to_list(
                None
            )
        in_line = {one["_id"] for one in found if one.get("line") == lines[one["_id"]]}
        return Entered(frozenset(lines.keys() - in_line), unpublished=unpublished)

    async def withdraw(self, entries: Iterable[IntakeEntry]) -> None:
        """Take new operations out of line again, if no worker can have heard of them yet."""
        writes = [
            UpdateOne(
                {
                    "_id": entry.new.operation_id,
                    "line": entry.line,
                    "epoch": 0 if entry.claim is None else entry.claim.operation.epoch + 1,
                    "seq": 0,
                    "state": {"$in": [OperationState.QUEUED, OperationState.DISPATCHED]},
                },
                {"$set": {"line": None, "state": OperationState.QUEUED}},
            )
            for entry in entries
        ]
        if writes:
            async with self._connection.answering():
                await self._collection.bulk_write(writes, ordered=False)

    async def put_in_line(self, places: Iterable[tuple[KnownOperation, int]]) -> None:
        """Give recorded operations their positions, where they have none."""
        given = list(places)
        if not given:
            return
        async with self._connection.writing(jobs=[one.job_id for one, _ in given]):
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": one.operation_id, "open": True, "line": None},
                        {"$set": {"line": line}},
                    )
                    for one, line in given
                ],
                ordered=False,
            )

    # --- moving ---

    async def claim(self, claims: Sequence[DispatchClaim], *, token: str) -> list[OperationRecord]:
        """Move operations from QUEUED to DISPATCHED under a new epoch; return those it moved.

        They are returned with their input. Another scheduler may have moved the others. The
        listeners of changes are told only if something was moved by another, or may have been.
        """
        if not claims:
            return []
        writes = [claim_write(claim, token) for claim in claims]
        jobs = [claim.operation.job_id for claim in claims]
        try:
            async with self._connection.answering():
                done = await self._collection.bulk_write(writes, ordered=False)
        except BaseException:
            self._connection.changes.written(jobs=jobs)
            raise
        all_moved = done.matched_count == len(writes)
        if all_moved and all(claim.operation.input_at_hand for claim in claims):
            return [claim.dispatched for claim in claims]
        if not all_moved:
            self._connection.changes.written(jobs=jobs)
        return await self._queries.find(
            {
                "_id": {"$in": [claim.operation.operation_id for claim in claims]},
                "token": token,
                "state": OperationState.DISPATCHED,
            },
            with_input=True,
        )

    async def end_queued(
        self, endings: Sequence[QueuedEnding], *, token: str
    ) -> list[OperationRecord]:
        """End operations if they are still QUEUED; return those that it ended.

        They are told by id and position: an id that came again with another request is in memory
        for a moment, at a position that the record does not have.
        """
        if not endings:
            return []
        async with self._connection.writing(jobs=[one.operation.job_id for one in endings]):
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {
                            "_id": ending.operation.operation_id,
                            "line": ending.operation.line,
                            "state": OperationState.QUEUED,
                        },
                        [
                            {
                                "$set": {
                                    "state": ending.state,
                                    "open": False,
                                    "token": token,
                                    "error": literal(ending.error),
                                    "waiting_for": [],
                                    "waits": "$$REMOVE",
                                    "not_before": "$$REMOVE",
                                    "finished_at": "$$NOW",
                                },
                            },
                        ],
                    )
                    for ending in endings
                ],
                ordered=False,
            )
        return await self._queries.find(
            {"_id": {"$in": [one.operation.operation_id for one in endings]}, "token": token}
        )

    async def explain_waiting(self, reasons: Mapping[str, Sequence[str]]) -> bool:
        """Store why operations could not be placed; False if not all of them are QUEUED."""
        if not reasons:
            return True
        async with self._connection.answering():
            done = await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": key, "state": OperationState.QUEUED},
                        {"$set": {"waiting_for": list(texts), "waits": True}},
                    )
                    for key, texts in reasons.items()
                ],
                ordered=False,
            )
        return done.matched_count == len(reasons)

    async def expired(self, *, limit: int) -> list[OperationRecord]:
        """Return operations that stayed QUEUED past their deadline."""
        return await self._queries.find(
            {
                "state": OperationState.QUEUED,
                "open": True,
                "expires_at": {"$exists": True},
                "$expr": {"$lt": ["$expires_at", "$$NOW"]},
            },
            limit=limit,
        )

    async def mark_published(self, operations: Iterable[OperationRecord]) -> None:
        """Record that the commands of DISPATCHED operations are published again."""
        async with self._connection.answering():
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {
                            "_id": one.operation_id,
                            "epoch": one.epoch,
                            "state": OperationState.DISPATCHED,
                        },
                        [{"$set": {"published_at": "$$NOW"}}],
                    )
                    for one in operations
                ],
                ordered=False,
            )

    async def requeue(
        self, operation: OperationRecord, failure: AttemptFailure | None = None
    ) -> bool:
        """Send an operation back to QUEUED; the next claim gives it a new epoch.

        With `failure` the attempt counts as failed, its error is kept, and the next attempt waits
        for `rest_s` seconds. Without it no worker has begun the attempt, which adds to `returns`;
        then the operation must still be in the state that this was concluded from.
        """
        from_states = sources(OperationState.QUEUED) if failure else [operation.state]
        changes: Document = {"state": OperationState.QUEUED, "phase": None, "progress": None}
        if failure is not None:
            changes |= {
                "seq": failure.seq,
                "error": literal(failure.error),
                "failures": {"$add": [{"$ifNull": ["$failures", 0]}, 1]},
                "avoid": {
                    "$setUnion": [
                        {"$ifNull": ["$avoid", []]},
                        [{"$literal": operation.host_id}] if operation.host_id else [],
                    ]
                },
                "not_before": {"$add": ["$$NOW", int(failure.rest_s * 1_000)]},
            }
            if failure.seq > 0:
                # The attempt had begun in time, so the queue deadline does not apply any more.
                changes["expires_at"] = "$$REMOVE"
        else:
            changes["returns"] = {"$add": [{"$ifNull": ["$returns", 0]}, 1]}
        async with self._connection.writing(jobs=[operation.job_id]):
            done = await self._collection.update_one(
                {
                    "_id": operation.operation_id,
                    "state": {"$in": from_states},
                    "epoch": operation.epoch,
                },
                [{"$set": changes}],
            )
        return done.matched_count == 1

    async def end_given(
        self, operation: OperationRecord, state: OperationState, error: ErrorInfo
    ) -> bool:
        """End an operation that its host can't finish any more; guarded by its epoch."""
        async with self._connection.writing(jobs=[operation.job_id]):
            done = await self._collection.update_one(
                {
                    "_id": operation.operation_id,
                    "state": {"$in": sorted(operation_sources(state) & ACTIVE_ON_HOST_STATES)},
                    "epoch": operation.epoch,
                },
                [
                    {
                        "$set": {
                            "state": state,
                            "open": False,
                            "error": literal(error),
                            "finished_at": "$$NOW",
                        },
                    },
                ],
            )
        return done.matched_count == 1

    async def request_cancel(self, operation_id: str) -> OperationRecord | None:
        """Record that a client asks to cancel an operation; return its record after that.

        An operation that has ended is returned unchanged. None if it does not exist.
        """
        async with self._connection.answering():
            found = await self._collection.find_one_and_update(
                {"_id": operation_id, "open": True},
                {"$set": {"cancel_requested": True}},
                projection=WITHOUT_PAYLOAD,
                return_document=ReturnDocument.AFTER,
            )
        return (
            OperationRecord.model_validate(found)
            if found
            else await self._queries.get(operation_id)
        )

    async def wake_after_backoff(self, *, limit: int) -> list[str]:
        """Make operations ready whose pause before the next attempt is over; return their jobs."""
        rested: Document = {
            "state": OperationState.QUEUED,
            "open": True,
            "not_before": {"$exists": True},
            "$expr": {"$lte": ["$not_before", "$$NOW"]},
        }
        async with self._connection.answering():
            found = await self._collection.find(rested, {"job_id": 1}, limit=limit).to_list(None)
        jobs = [one["job_id"] for one in found if one.get("job_id")]
        if found:
            async with self._connection.writing(jobs=jobs):
                await self._collection.update_many(
                    {**rested, "_id": {"$in": [one["_id"] for one in found]}},
                    {"$unset": {"not_before": ""}},
                )
        return jobs

    async def apply(
        self,
        reports: Sequence[OperationReport],
        results: Mapping[str, ResultPlace],
        receipts: Mapping[str, Receipt] | None = None,
    ) -> int:
        """Write the reports of workers; return how many changed their operation.

        `results` and `receipts` are by operation; see `report_write`.

        Each write is guarded by the states it may come from, the epoch and the sequence number.
        A report whose write changes nothing is stale. The listeners of changes are not told: who
        calls this keeps its memory itself.
        """
        if not reports:
            return 0
        async with self._connection.answering():
            done = await self._collection.bulk_write(
                [
                    report_write(
                        report,
                        results.get(report.operation_id),
                        receipts.get(report.operation_id) if receipts else None,
                    )
                    for report in reports
                ],
                ordered=False,
            )
        return done.modified_count


def _probe(jobs: Sequence[str]) -> UpdateOne:
    """Return a write that changes nothing, and matches an unpublished operation of these jobs.

    To ask so in the write of an entry costs a third of a query of its own.
    """
    return UpdateOne(unpublished_of(jobs), {"$set": {"unpublished": True}}, hint=UNPUBLISHED)
