"""Leases: which process has a role that only one may have at a time."""

from collections.abc import Mapping

from pymongo import ReturnDocument

from modelyard.store.connection import MongoConnection
from modelyard.store.records import Document

DISPATCHER = "dispatcher"
"""The role of the leading dispatcher."""
CALL_S = 1.5
"""Seconds after which a call counts as lost: there must be time for another one."""


class Leases:
    """The collection `leases`, one document a role. Every method raises `StoreUnavailableError`.

    A lease ends by the database's clock. Its holder, who can't read that clock, counts from the
    moment at which it sent the call that got or renewed the lease.
    """

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("leases")

    async def acquire(
        self, role: str, holder: str, *, seconds: float, notes: Mapping[str, str] | None = None
    ) -> int | None:
        """Take a role for `seconds`; return the number of the new term, None if another has it.

        `holder` is a random name of one process. It may have the role already, from an earlier
        term or from a call whose answer was lost; it gets a new term all the same. `notes` are what
        other processes may want to know of how it fills the role.
        """
        ends = {"$ifNull": ["$expires_at", "$$NOW"]}
        free = {"$or": [{"$eq": ["$holder", holder]}, {"$lte": [ends, "$$NOW"]}]}
        term = {"$ifNull": ["$term", 0]}
        async with self._connection.answering(timeout_s=CALL_S):
            found = await self._collection.find_one_and_update(
                {"_id": role},
                [
                    {
                        "$set": {
                            "holder": {"$cond": [free, holder, "$holder"]},
                            "term": {"$cond": [free, {"$add": [term, 1]}, term]},
                            "expires_at": {"$cond": [free, _in(seconds), ends]},
                            "notes": {"$cond": [free, {"$literal": dict(notes or {})}, "$notes"]},
                        }
                    }
                ],
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        return int(found["term"]) if found["holder"] == holder else None

    async def notes(self, role: str) -> dict[str, str]:
        """Return the notes of the last process that took a role; empty if there are none."""
        async with self._connection.answering():
            found = await self._collection.find_one({"_id": role}, {"notes": 1})
        return (found or {}).get("notes") or {}

    async def renew(self, role: str, holder: str, *, term: int, seconds: float) -> bool:
        """Let a term last for `seconds` from now; False if the role has gone to another term."""
        return await self._end_in(role, holder, term=term, seconds=seconds)

    async def release(self, role: str, holder: str, *, term: int) -> None:
        """End a term now, so that others need not wait for its end; one that is over stays so."""
        await self._end_in(role, holder, term=term, seconds=0)

    async def _end_in(self, role: str, holder: str, *, term: int, seconds: float) -> bool:
        async with self._connection.answering(timeout_s=CALL_S):
            done = await self._collection.update_one(
                {"_id": role, "holder": holder, "term": term},
                [{"$set": {"expires_at": _in(seconds)}}],
            )
        return done.matched_count == 1


def _in(seconds: float) -> Document:
    return {"$add": ["$$NOW", int(seconds * 1_000)]}
