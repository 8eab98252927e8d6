"""Queries for operations: by id, by page, and by what the dispatcher has to do with them."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from pymongo.errors import OperationFailure

from modelyard.contract.content.media_types import JSON_TYPE
from modelyard.contract.states import OperationState, Verb
from modelyard.store.connection import BAD_VALUE, MongoConnection
from modelyard.store.indexes import UNBROUGHT, UNPUBLISHED
from modelyard.store.operation_writes import ACTIVE_ON_HOST_STATES, ResultPlace, older
from modelyard.store.paging import Page, Position, page_filter, read_page, to_page
from modelyard.store.records import EPOCH, Document, OperationRecord

WITHOUT_RESULT = {"result_json": 0, "result_content": 0}
WITHOUT_PAYLOAD = {"input_json": 0, **WITHOUT_RESULT}
_RESULT_FIELDS = (
    *WITHOUT_RESULT,
    "result_file",
    "result_bytes",
    "result_type",
    "result_sha256",
    "result_gone",
)

_ADVICE = "Give `job_id`, `model` or `host_id` too."


@dataclass(frozen=True, slots=True)
class KnownOperation:
    """An operation whose id intake is about to record and that is recorded already."""

    operation_id: str
    job_id: str | None
    payload_hash: str
    state: OperationState
    line: int | None
    accepted: tuple[datetime, int]
    """When it was recorded, and its position among those that its process recorded then."""


@dataclass(frozen=True, slots=True)
class WaitingOfVerb:
    """The operations of one verb that wait."""

    count: int
    oldest: datetime | None
    """When the first of them was accepted, by the database's clock."""


_KNOWN_FIELDS = dict.fromkeys(
    ("job_id", "payload_hash", "state", "line", "accepted_at", "accepted_place"), 1
)


class OperationQueries:
    """The queries of the collection `operations`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("operations")

    async def known(self, operation_ids: Sequence[str]) -> dict[str, KnownOperation]:
        """Return those of these operations that are recorded."""
        return await self._find_known({"_id": {"$in": list(operation_ids)}})

    async def unpublished(self, job_ids: Sequence[str]) -> list[KnownOperation]:
        """Return recorded operations of these jobs whose messages the broker did not confirm.

        The oldest come first. None has a position yet.
        """
        found = await self._find_known(unpublished_of(job_ids), index=UNPUBLISHED)
        return list(found.values())

    async def waiting_by_verb(self, *, most: int) -> dict[str, WaitingOfVerb]:
        """Return what is QUEUED by verb (`none` without one), counting the `most` oldest."""
        async with self._connection.answering():
            found = await self._collection.aggregate(
                [
                    {"$match": {"state": OperationState.QUEUED}},
                    {"$sort": {"accepted_at": 1}},
                    {"$limit": most},
                    {"$project": {"verb": 1, "accepted_at": 1}},
                    {
                        "$group": {
                            "_id": "$verb",
                            "count": {"$sum": 1},
                            "oldest": {"$min": "$accepted_at"},
                        }
                    },
                ]
            ).to_list(None)
        return {
            one["_id"] or "none": WaitingOfVerb(one["count"], one.get("oldest")) for one in found
        }

    async def overdue_for_line(self, *, older_than_s: float, limit: int) -> list[KnownOperation]:
        """Return recorded operations whose message has not arrived in `older_than_s` seconds.

        The oldest come first.
        """
        found = await self._find_known(
            {
                "open": True,
                "line": None,
                "state": OperationState.QUEUED,
                "aside": {"$ne": True},
                "$expr": older("$accepted_at", older_than_s),
            },
            limit=limit,
            index=UNBROUGHT,
        )
        return list(found.values())

    async def get(self, operation_id: str) -> OperationRecord | None:
        """Return one operation without its input and result."""
        async with self._connection.answering():
            found = await self._collection.find_one({"_id": operation_id}, WITHOUT_PAYLOAD)
        return OperationRecord.model_validate(found) if found else None

    async def get_many(self, operation_ids: Sequence[str]) -> dict[str, OperationRecord]:
        """Return those of the operations that exist, without inputs and results."""
        return {
            record.operation_id: record
            for record in await self.find({"_id": {"$in": list(operation_ids)}})
        }

    async def attempts(self, operation_ids: Sequence[str]) -> dict[str, tuple[OperationState, int]]:
        """Return the state and the epoch of those of the operations that exist."""
        async with self._connection.answering():
            found = await self._collection.find(
                {"_id": {"$in": list(operation_ids)}}, {"state": 1, "epoch": 1}
            ).to_list(None)
        return {one["_id"]: (OperationState(one["state"]), one["epoch"]) for one in found}

    async def result(self, operation_id: str) -> ResultPlace | None:
        """Return where the result of an operation is stored; None if it has none, or none now."""
        async with self._connection.answering():
            found = await self._collection.find_one(
                {"_id": operation_id}, dict.fromkeys(_RESULT_FIELDS, 1)
            )
        if found is None or found.get("result_bytes") is None or found.get("result_gone"):
            return None
        return ResultPlace(
            content_type=found.get("result_type") or JSON_TYPE,
            size=found["result_bytes"],
            sha256=found.get("result_sha256"),
            inline_json=found.get("result_json"),
            inline_content=found.get("result_content"),
            file_id=found.get("result_file"),
        )

    async def small_results(
        self, operation_ids: Sequence[str], *, most_bytes: int
    ) -> dict[str, str]:
        """Return the results of these operations that are JSON and have at most so many bytes."""
        async with self._connection.answering():
            found = await self._collection.find(
                {
                    "_id": {"$in": list(operation_ids)},
                    "result_bytes": {"$lte": most_bytes},
                    "result_json": {"$type": "string"},
                },
                {"result_json": 1},
            ).to_list(None)
        return {one["_id"]: one["result_json"] for one in found}

    async def page(
        self, criteria: Mapping[str, str], *, after: Position | None, limit: int
    ) -> Page[OperationRecord]:
        """Return operations newest first; `criteria` compares fields with given values.

        Those that a client has deleted are left out. Raises `SlowQueryError` too.
        """
        asked = {**page_filter(criteria, "accepted_at", after), "deleted": {"$ne": True}}
        cursor = self._collection.find(asked, WITHOUT_PAYLOAD).sort(
            [("accepted_at", -1), ("_id", -1)]
        )
        found = await read_page(self._connection, cursor, limit, advice=_ADVICE)
        return to_page(found, OperationRecord, "accepted_at", limit)

    async def waiting(self, *, after: OperationRecord | None, limit: int) -> list[OperationRecord]:
        """Return QUEUED operations that have a position, by rank."""
        criteria: Document = {"state": OperationState.QUEUED, "open": True, "line": {"$ne": None}}
        if after is not None:
            criteria["$or"] = [
                {"rank": {"$gt": after.rank}},
                # An earlier version recorded none; such operations are read with rank 0.
                {
                    "rank": {"$in": [after.rank, *([] if after.rank else [None])]},
                    "line": {"$gt": after.line},
                },
            ]
        return await self.find(criteria, sort=[("rank", 1), ("line", 1)], limit=limit)

    async def without_host(self, *, limit: int) -> list[OperationRecord]:
        """Return operations that the scheduler found no host for, the most urgent first."""
        return await self.find(
            {"state": OperationState.QUEUED, "waits": True},
            sort=[("rank", 1), ("line", 1)],
            limit=limit,
        )

    async def more_urgent(
        self, operation: OperationRecord, *, loads_of: Collection[str] | None = None
    ) -> int:
        """Count the operations that wait for room and are scheduled before this one, up to 1,000.

        With `loads_of` only those that may take memory of a host: the loads of these jobs, which
        are there, and TEMPs.
        """
        earlier: list[Document] = [
            {"rank": {"$lt": operation.rank}},
            {"rank": operation.rank, "line": {"$lt": operation.line}},
        ]
        before: Document = {"state": OperationState.QUEUED, "waits": True, "$or": earlier}
        if loads_of is not None:
            loads = {"verb": Verb.DEPLOY_LOAD, "job_id": {"$in": list(loads_of)}}
            before["$and"] = [{"$or": [loads, {"verb": Verb.TEMP}]}]
        async with self._connection.answering():
            found = await self._collection.find(before, {"_id": 1}, limit=1_000).to_list(None)
        return len(found)

    async def took_lately(
        self, verb: Verb, models: Collection[str], *, most: int
    ) -> dict[str, float]:
        """Return the median of the seconds that operations took, by model.

        Of the last `most` operations of any kind that have succeeded those with this verb count.
        """
        async with self._connection.answering():
            found = await self._collection.aggregate(
                [
                    {"$match": {"state": OperationState.SUCCEEDED}},
                    {"$sort": {"accepted_at": -1}},
                    {"$limit": most},
                    {"$match": {"verb": verb, "model": {"$in": list(models)}}},
                    {"$project": {"model": 1, "started_at": 1, "finished_at": 1}},
                ]
            ).to_list(None)
        seconds: dict[str, list[float]] = defaultdict(list)
        for one in found:
            if one.get("started_at") and one.get("finished_at"):
                took = one["finished_at"] - one["started_at"]
                seconds[one["model"]].append(took.total_seconds())
        return {model: median(values) for model, values in seconds.items()}

    async def not_in_line(self, job_id: str, *, limit: int) -> list[OperationRecord]:
        """Return operations of a job that are accepted and not taken in yet, about the first."""
        found = await self.find(
            {"job_id": job_id, "open": True, "line": None, "aside": {"$ne": True}}, limit=limit
        )
        return sorted(found, key=lambda one: one.accepted_at or EPOCH)

    async def open_of_job(self, job_id: str, *, before: int | None = None) -> int:
        """Count the open operations of a job, up to 1,000; with `before` those earlier in line."""
        criteria: Document = {"job_id": job_id, "open": True, "aside": {"$ne": True}}
        if before is not None:
            criteria["line"] = {"$ne": None, "$lt": before}
        async with self._connection.answering():
            found = await self._collection.find(criteria, {"_id": 1}, limit=1_000).to_list(None)
        return len(found)

    async def last_end(self, job_id: str) -> datetime | None:
        """Return when the operation of a job that was accepted last has ended; None if none has."""
        last = await self.find({"job_id": job_id}, sort=[("accepted_at", -1), ("_id", -1)], limit=1)
        return last[0].finished_at if last else None

    async def failed_loads(self, operation_ids: Sequence[str]) -> dict[str, OperationRecord]:
        """Return by inference the LOAD that was put before it and did not succeed."""
        reasons = {f"on_demand:{key}": key for key in operation_ids}
        failed = [one for one in OperationState if one.terminal]
        failed.remove(OperationState.SUCCEEDED)
        found = await self.find(
            {"reason": {"$in": list(reasons), "$type": "string"}, "state": {"$in": failed}}
        )
        return {reasons[one.reason]: one for one in found if one.reason in reasons}

    async def on_host(self, host_id: str) -> list[OperationRecord]:
        """Return the operations that a host has been given and that have not ended."""
        return await self.on_hosts([host_id])

    async def on_hosts(self, host_ids: Sequence[str]) -> list[OperationRecord]:
        """Return those of several hosts."""
        return await self.find(
            {
                "host_id": {"$in": list(host_ids)},
                "open": True,
                "state": {"$in": sorted(ACTIVE_ON_HOST_STATES)},
            }
        )

    async def unaccepted(self, *, older_than_s: float, limit: int) -> list[OperationRecord]:
        """Return operations that are DISPATCHED for so long that their command may be lost."""
        return await self.find(
            {
                "state": OperationState.DISPATCHED,
                "open": True,
                "$expr": older("$published_at", older_than_s),
            },
            limit=limit,
            with_input=True,
        )

    async def with_input(self, operation_id: str) -> OperationRecord | None:
        """Return one operation with its input."""
        found = await self.find({"_id": operation_id}, with_input=True)
        return found[0] if found else None

    async def never_accepted(
        self, *, verbs: Iterable[Verb], older_than_s: float, limit: int
    ) -> list[OperationRecord]:
        """Return operations of `verbs` that no worker has accepted for `older_than_s` seconds."""
        return await self.find(
            {
                "state": OperationState.DISPATCHED,
                "open": True,
                "verb": {"$in": sorted(verbs)},
                "$expr": older({"$ifNull": ["$claimed_at", "$dispatched_at"]}, older_than_s),
            },
            limit=limit,
        )

    async def running_too_long(
        self, *, default_timeout_s: float, slack_s: float, limit: int
    ) -> list[OperationRecord]:
        """Return operations that are RUNNING `slack_s` seconds longer than their timeout."""
        milliseconds = {
            "$multiply": [{"$add": [{"$ifNull": ["$timeout_s", default_timeout_s]}, slack_s]}, 1000]
        }
        return await self.find(
            {
                "state": OperationState.RUNNING,
                "open": True,
                "$expr": {
                    "$lt": [
                        {"$add": [{"$ifNull": ["$begun_at", "$started_at"]}, milliseconds]},
                        "$$NOW",
                    ]
                },
            },
            limit=limit,
        )

    async def with_cancel_requested(self, *, queued: bool, limit: int) -> list[OperationRecord]:
        """Return open operations that a client has asked to cancel: QUEUED ones, or the others."""
        state = OperationState.QUEUED if queued else {"$ne": OperationState.QUEUED}
        return await self.find(
            {"open": True, "cancel_requested": True, "state": state}, limit=limit
        )

    async def find(
        self,
        criteria: Mapping[str, Any],
        *,
        sort: Sequence[tuple[str, int]] | None = None,
        limit: int = 0,
        with_input: bool = False,
    ) -> list[OperationRecord]:
        """Return what meets MongoDB `criteria`, for the other parts of the store."""
        without = WITHOUT_RESULT if with_input else WITHOUT_PAYLOAD
        async with self._connection.answering():
            cursor = self._collection.find(dict(criteria), without).limit(limit)
            if sort:
                cursor = cursor.sort(list(sort))
            found = await cursor.to_list(None)
        return [OperationRecord.model_validate(document) for document in found]

    async def _find_known(
        self, criteria: Document, *, limit: int = 0, index: str | None = None
    ) -> dict[str, KnownOperation]:
        """Return what meets the criteria, the oldest first.

        With `index` MongoDB need not compare ways to find it, which takes longer than to do so, and
        can't choose one that reads a job's whole past. It may be gone: an operator dropped it.
        """
        cursor = (
            self._collection.find(criteria, _KNOWN_FIELDS)
            .sort([("accepted_at", 1), ("accepted_place", 1)])
            .limit(limit)
        )
        if index is not None:
            cursor = cursor.hint(index)
        try:
            async with self._connection.answering():
                found = await cursor.to_list(None)
        except OperationFailure as error:
            if index is None or error.code != BAD_VALUE:
                raise
            return await self._find_known(criteria, limit=limit)
        return {
            document["_id"]: KnownOperation(
                document["_id"],
                document.get("job_id"),
                document.get("payload_hash", ""),
                OperationState(document["state"]),
                document.get("line"),
                (document["accepted_at"], document.get("accepted_place", 0)),
            )
            for document in found
        }


def unpublished_of(job_ids: Sequence[str]) -> Document:
    """Return the criteria of operations without a position that the broker did not confirm."""
    return {
        "job_id": {"$in": list(job_ids)},
        "open": True,
        "line": None,
        "unpublished": True,
        "aside": {"$ne": True},
    }
