"""Events, dead letters and audit notes: records that are added and not changed by operations."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pymongo import ReturnDocument, UpdateOne

from modelyard.contract.messages import Event
from modelyard.store.connection import MongoConnection
from modelyard.store.paging import Page, Position, page_filter, read_page, to_page
from modelyard.store.records import DeadLetter, error_document

_NOT_AS_TEXT = {"event_id", "at", "error"}
_IN_THE_OPERATION = {
    "cancel_requested",
    "result",
    "result_bytes",
    "result_type",
    "result_sha256",
    "accepted_at",
    "dispatched_at",
    "started_at",
    "finished_at",
}
"""Fields for subscribers; the log leaves them out, because the operation's record has them."""


class Events:
    """The collection `events`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("events")

    async def append(self, events: Sequence[Event]) -> frozenset[str]:
        """Add the events that are not recorded yet; return the ids of those that were added."""
        if not events:
            return frozenset()
        documents: list[dict[str, Any]] = []
        for event in events:
            document = event.model_dump(
                mode="json", exclude=_NOT_AS_TEXT | _IN_THE_OPERATION, exclude_none=True
            )
            error = error_document(event.error)
            documents.append(
                {"_id": event.event_id, "at": event.at, **document}
                | ({"error": error} if error else {})
            )
        known = await self._connection.insert_new(self._collection, documents)
        return frozenset(one.event_id for n, one in enumerate(events) if n not in known)

    async def hosts_of(self, event_ids: Iterable[str]) -> dict[str, str | None]:
        """Return which of the events are recorded, and the host that each one names."""
        async with self._connection.answering():
            found = await self._collection.find(
                {"_id": {"$in": sorted(set(event_ids))}}, {"host_id": 1}
            ).to_list(None)
        return {one["_id"]: one.get("host_id") for one in found}

    async def of_operation(self, operation_id: str) -> list[Event]:
        """Return an operation's events, oldest first."""
        async with self._connection.answering():
            found = (
                await self._collection.find({"operation_id": operation_id})
                .sort([("at", 1), ("_id", 1)])
                .to_list(None)
            )
        return [Event.model_validate({**one, "event_id": one["_id"]}) for one in found]


class DeadLetters:
    """The collection `dead_letters`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("dead_letters")

    async def add(self, letters: Sequence[DeadLetter]) -> None:
        """Record the dead letters that are not recorded yet."""
        if not letters:
            return
        async with self._connection.answering():
            await self._collection.bulk_write(
                [
                    UpdateOne(
                        {"_id": letter.dead_letter_id},
                        [
                            {
                                "$replaceWith": {
                                    "$cond": [
                                        {"$eq": [{"$type": "$recorded_at"}, "missing"]},
                                        {
                                            "$mergeObjects": [
                                                {"$literal": _letter_document(letter)},
                                                {"recorded_at": "$$NOW"},
                                            ]
                                        },
                                        "$$ROOT",
                                    ]
                                }
                            }
                        ],
                        upsert=True,
                    )
                    for letter in letters
                ],
                ordered=False,
            )

    async def page(
        self, criteria: Mapping[str, str], *, after: Position | None, limit: int
    ) -> Page[DeadLetter]:
        """Return dead letters, newest first, without their payloads.

        Raises `SlowQueryError` too.
        """
        asked = page_filter(criteria, "recorded_at", after)
        cursor = self._collection.find(asked, {"payload": 0}).sort(
            [("recorded_at", -1), ("_id", -1)]
        )
        found = await read_page(self._connection, cursor, limit)
        return to_page(found, DeadLetter, "recorded_at", limit)

    async def get(self, dead_letter_id: str) -> DeadLetter | None:
        """Return one dead letter with its payload."""
        async with self._connection.answering():
            found = await self._collection.find_one({"_id": dead_letter_id})
        return DeadLetter.model_validate(found) if found else None

    async def mark_replayed(self, dead_letter_id: str) -> DeadLetter | None:
        """Record that a dead letter is about to be published again; return its new record."""
        async with self._connection.answering():
            found = await self._collection.find_one_and_update(
                {"_id": dead_letter_id},
                {"$inc": {"replays": 1}, "$currentDate": {"replayed_at": True}},
                return_document=ReturnDocument.AFTER,
            )
        return DeadLetter.model_validate(found) if found else None

    async def delete(self, dead_letter_id: str) -> bool:
        """Delete a dead letter; False if it does not exist."""
        async with self._connection.answering():
            done = await self._collection.delete_one({"_id": dead_letter_id})
        return done.deleted_count == 1


def _letter_document(letter: DeadLetter) -> dict[str, Any]:
    document = letter.model_dump(exclude={"dead_letter_id", "recorded_at"})
    return {"_id": letter.dead_letter_id, **document}


class Audit:
    """The collection `audit`: notes for an operator. Methods raise `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("audit")

    async def payload_mismatch(self, operation_id: str, kept: str, dropped: str) -> None:
        """Record that a second request used an operation's id with another payload.

        The first request counts.
        """
        key = f"payload_mismatch:{operation_id}:{dropped}"
        async with self._connection.answering():
            await self._collection.update_one(
                {"_id": key},
                {
                    "$setOnInsert": {
                        "kind": "payload_mismatch",
                        "operation_id": operation_id,
                        "kept_hash": kept,
                        "dropped_hash": dropped,
                    },
                    "$inc": {"count": 1},
                    "$currentDate": {"at": True},
                },
                upsert=True,
            )

    async def of_operation(self, operation_id: str) -> list[dict[str, Any]]:
        """Return the notes on one operation."""
        async with self._connection.answering():
            return await self._collection.find({"operation_id": operation_id}).to_list(None)
