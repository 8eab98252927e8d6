"""Hosts: what they offer, whether they live, and what is reserved on them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pymongo import ReturnDocument, UpdateOne

from modelyard.contract.messages import Heartbeat, HostOnline
from modelyard.contract.states import Admission, Liveness
from modelyard.store.connection import MongoConnection
from modelyard.store.operation_writes import older
from modelyard.store.records import Document, HostRecord, Reservation

KEPT_INCARNATIONS = 32


class Hosts:
    """The collection `hosts`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("hosts")

    async def all(self) -> list[HostRecord]:
        """Return every host that ever came online, by name."""
        async with self._connection.answering():
            found = await self._collection.find({}).sort("_id", 1).to_list(None)
        return [HostRecord.model_validate(document) for document in found]

    async def get(self, host_id: str) -> HostRecord | None:
        """Return one host."""
        async with self._connection.answering():
            found = await self._collection.find_one({"_id": host_id})
        return HostRecord.model_validate(found) if found else None

    async def admit(self, host_id: str, admission: Admission) -> HostRecord | None:
        """Set what is allowed on a host, and return it; it outlives boots of the worker."""
        async with self._connection.answering():
            found = await self._collection.find_one_and_update(
                {"_id": host_id},
                {"$set": {"admission": admission, "drain": None}},
                return_document=ReturnDocument.AFTER,
            )
        return HostRecord.model_validate(found) if found else None

    async def drain(
        self, host_id: str, *, move: bool, deadline_s: float | None
    ) -> HostRecord | None:
        """Begin to drain a host, or change how; return it. `deadline_s` counts from now."""
        deadline = {"$add": ["$$NOW", int(deadline_s * 1_000)]} if deadline_s else None
        async with self._connection.answering():
            found = await self._collection.find_one_and_update(
                {"_id": host_id},
                [
                    {
                        "$set": {
                            "admission": Admission.DRAINING,
                            "drain": {"move": move, "deadline_at": deadline, "done": False},
                        }
                    }
                ],
                return_document=ReturnDocument.AFTER,
            )
        return HostRecord.model_validate(found) if found else None

    async def drained(self, host_id: str) -> bool:
        """Note that nothing is left on a draining host; false if that was known, or is not so."""
        async with self._connection.answering():
            done = await self._collection.update_one(
                {
                    "_id": host_id,
                    "admission": Admission.DRAINING,
                    "drain.done": False,
                    "reservations": [],
                },
                {"$set": {"drain.done": True}},
            )
        return done.matched_count == 1

    async def past_drain_deadline(self) -> list[str]:
        """Return draining hosts that were to be empty by now."""
        async with self._connection.answering():
            found = await self._collection.find(
                {
                    "admission": Admission.DRAINING,
                    "drain.deadline_at": {"$type": "date"},
                    "$expr": {"$lt": ["$drain.deadline_at", "$$NOW"]},
                },
                {"_id": 1},
            ).to_list(None)
        return [one["_id"] for one in found]

    async def come_online(self, host_id: str, incarnation: str, online: HostOnline) -> bool:
        """Record a boot of a host's worker; False if another boot was recorded after it.

        Boots are ordered by the order in which they were recorded, never by a host's clock: an
        incarnation that was seen before and is not the newest can't come back.
        """
        async with self._connection.answering():
            await self._collection.update_one(
                {"_id": host_id},
                {
                    "$setOnInsert": {
                        "admission": Admission.OPEN,
                        "slots_used": 0,
                        "reservations": [],
                        "incarnations": [],
                    },
                },
                upsert=True,
            )
            done = await self._collection.update_one(
                {"_id": host_id, "incarnations": {"$ne": incarnation}},
                {
                    "$set": {
                        "incarnation": incarnation,
                        "liveness": Liveness.ONLINE,
                        "slots": online.slots,
                        "labels": online.labels,
                        "engine": online.engine.model_dump(mode="json"),
                    },
                    "$push": {
                        "incarnations": {"$each": [incarnation], "$slice": -KEPT_INCARNATIONS}
                    },
                    "$currentDate": {"last_seen": True},
                },
            )
            if done.matched_count == 1:
                return True
            found = await self._collection.find_one({"_id": host_id}, {"incarnation": 1})
        return found is not None and found["incarnation"] == incarnation

    async def beat(self, heartbeats: Iterable[Heartbeat]) -> bool:
        """Record heartbeats; those of any but the host's current incarnation are dropped.

        True if none was dropped.

        A boot that was given up as LOST does not come back by beating: it has to announce itself
        anew, for what it had was given to others.
        """
        writes = [
            UpdateOne(
                {
                    "_id": beat.host_id,
                    "incarnation": beat.incarnation,
                    "liveness": {"$ne": Liveness.LOST},
                },
                {
                    "$set": {
                        "liveness": Liveness.ONLINE,
                        "slots": beat.slots,
                        "labels": beat.labels,
                        "running": beat.running,
                    },
                    "$currentDate": {"last_seen": True},
                },
            )
            for beat in heartbeats
        ]
        if not writes:
            return True
        async with self._connection.answering():
            done = await self._collection.bulk_write(writes, ordered=False)
        return done.matched_count == len(writes)

    async def count_fenced_off(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add to the late writes that were fenced off, by `(host_id, reason)`.

        A host that never came online has nowhere to count them.
        """
        added: dict[str, dict[str, int]] = defaultdict(dict)
        for (host_id, reason), count in counts.items():
            added[host_id][f"fenced_off.{reason}"] = count
        if added:
            async with self._connection.answering():
                await self._collection.bulk_write(
                    [UpdateOne({"_id": host_id}, {"$inc": one}) for host_id, one in added.items()],
                    ordered=False,
                )

    async def incarnations(self, host_ids: Iterable[str]) -> dict[str, str]:
        """Return the boots of these hosts that are recorded, by host."""
        async with self._connection.answering():
            found = await self._collection.find(
                {"_id": {"$in": sorted(set(host_ids))}}, {"incarnation": 1}
            ).to_list(None)
        return {one["_id"]: one.get("incarnation", "") for one in found}

    async def any_silent(self, *, suspect_s: float, lost_s: float) -> bool:
        """Tell whether a host is about to be marked SUSPECT or LOST."""
        silent = [
            {"liveness": Liveness.ONLINE, "$expr": older("$last_seen", suspect_s)},
            {"liveness": Liveness.SUSPECT, "$expr": older("$last_seen", lost_s)},
        ]
        async with self._connection.answering():
            return await self._collection.find_one({"$or": silent}, {"_id": 1}) is not None

    async def suspect_silent(self, *, after_s: float) -> list[str]:
        """Mark hosts without a heartbeat for `after_s` seconds SUSPECT; return them."""
        return await self._silent(Liveness.ONLINE, Liveness.SUSPECT, after_s)

    async def lose_silent(self, *, after_s: float) -> list[str]:
        """Mark SUSPECT hosts without a heartbeat for `after_s` seconds LOST; return them."""
        return await self._silent(Liveness.SUSPECT, Liveness.LOST, after_s)

    async def _silent(self, now: Liveness, then: Liveness, after_s: float) -> list[str]:
        silent: Document = {"liveness": now, "$expr": older("$last_seen", after_s)}
        async with self._connection.answering():
            found = await self._collection.find(silent, {"_id": 1}).to_list(None)
            if found:
                await self._collection.update_many(
                    {**silent, "_id": {"$in": [one["_id"] for one in found]}},
                    {"$set": {"liveness": then}},
                )
        return [one["_id"] for one in found]

    async def reserve(
        self, host: HostRecord, wanted: Sequence[tuple[str, int]], *, token: str
    ) -> bool:
        """Reserve one slot for each `(job_id, generation)`, all or none, in one guarded update.

        False if the host has not the room, is not open and online under the incarnation seen, or
        one of the jobs has a reservation on it already.
        """
        entries = [
            Reservation(job_id=job_id, generation=generation, token=token).model_dump()
            for job_id, generation in wanted
        ]
        async with self._connection.answering():
            done = await self._collection.update_one(
                {
                    "_id": host.host_id,
                    "incarnation": host.incarnation,
                    "admission": Admission.OPEN,
                    "liveness": Liveness.ONLINE,
                    "reservations.job_id": {"$nin": [job_id for job_id, _ in wanted]},
                    "$expr": {"$lte": [{"$add": ["$slots_used", len(entries)]}, "$slots"]},
                },
                {
                    "$push": {"reservations": {"$each": entries}},
                    "$inc": {"slots_used": len(entries)},
                },
            )
        return done.matched_count == 1

    async def release(self, leaving: Mapping[str, Sequence[tuple[str, int]]]) -> None:
        """Free the reservations of `(job_id, generation)` by host; freed ones are no matter."""
        await self._drop(
            {
                host_id: [
                    {
                        "$and": [
                            {"$eq": ["$$held.job_id", {"$literal": job_id}]},
                            {"$eq": ["$$held.generation", generation]},
                        ],
                    }
                    for job_id, generation in pairs
                ]
                for host_id, pairs in leaving.items()
            },
        )

    async def release_token(self, host_id: str, job_ids: Sequence[str], *, token: str) -> None:
        """Free what one scheduling pass reserved and could not use."""
        await self._drop(
            {
                host_id: [
                    {
                        "$and": [
                            {"$in": ["$$held.job_id", {"$literal": list(job_ids)}]},
                            {"$eq": ["$$held.token", token]},
                        ],
                    },
                ],
            },
        )

    async def _drop(self, conditions: Mapping[str, list[Document]]) -> None:
        writes = [
            UpdateOne(
                {"_id": host_id},
                [
                    {
                        "$set": {
                            "reservations": {
                                "$filter": {
                                    "input": "$reservations",
                                    "as": "held",
                                    "cond": {"$not": [{"$or": which}]},
                                },
                            },
                        },
                    },
                    {"$set": {"slots_used": {"$sum": "$reservations.slots"}}},
                ],
            )
            for host_id, which in conditions.items()
            if which
        ]
        if writes:
            async with self._connection.answering():
                await self._collection.bulk_write(writes, ordered=False)
