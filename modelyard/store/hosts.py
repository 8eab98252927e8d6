"""Hosts: their capacity, their liveness, and the reservations on them."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from pymongo import ReturnDocument, UpdateOne

from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.local_content import LocalContent, within_bounds
from modelyard.contract.messages import Heartbeat, HostOnline
from modelyard.contract.states import Admission, Liveness
from modelyard.store.connection import MongoConnection
from modelyard.store.operation_writes import older
from modelyard.store.paging import NamedPage, names_after, read_page
from modelyard.store.records import (
    MEASURED_AFTER_S,
    Document,
    HostRecord,
    JobRecord,
    Reservation,
    reservations_of,
)

KEPT_INCARNATIONS = 32


class Hosts:
    """The collection `hosts`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("hosts")

    async def all(
        self, host_ids: Sequence[str] | None = None, *, most: int = 0
    ) -> list[HostRecord]:
        """Return every host that ever came online, by name; with `host_ids` only these.

        With `most` no more than the first so many.
        """
        criteria: Document = {} if host_ids is None else {"_id": {"$in": list(host_ids)}}
        return await self._find(criteria, most=most)

    async def lost(self) -> list[HostRecord]:
        """Return the hosts that are LOST."""
        return await self._find({"liveness": Liveness.LOST})

    async def draining(self) -> list[HostRecord]:
        """Return the hosts that are DRAINING, whether they are empty by now or not."""
        return await self._find({"admission": Admission.DRAINING})

    async def _find(self, criteria: Document, *, most: int = 0) -> list[HostRecord]:
        async with self._connection.answering():
            found = await self._collection.find(criteria).sort("_id", 1).limit(most).to_list(None)
        return [HostRecord.model_validate(document) for document in found]

    async def standings(self) -> dict[str, tuple[Liveness, Admission]]:
        """Return the liveness and admission of every host that ever came online."""
        fields = {"liveness": 1, "admission": 1}
        came: Document = {"liveness": {"$exists": True}}
        async with self._connection.answering():
            found = await self._collection.find(came, fields).to_list(None)
        return {
            one["_id"]: (Liveness(one["liveness"]), Admission(one["admission"])) for one in found
        }

    async def reservations(self) -> list[tuple[str, Reservation]]:
        """Return all that is reserved, each with the id of its host."""
        async with self._connection.answering():
            found = await self._collection.find({}, {"reservations": 1}).to_list(None)
        return [
            (host["_id"], Reservation.model_validate(one))
            for host in found
            for one in host["reservations"]
        ]

    async def page(self, *, after: str | None = None, limit: int) -> NamedPage[HostRecord]:
        """Return the next hosts by name. Raises `SlowQueryError` too."""
        cursor = self._collection.find(names_after(after)).sort("_id", 1)
        found = await read_page(self._connection, cursor, limit)
        return NamedPage.of(found, limit, HostRecord.model_validate)

    async def get(self, host_id: str) -> HostRecord | None:
        """Return one host."""
        async with self._connection.answering():
            found = await self._collection.find_one({"_id": host_id})
        return HostRecord.model_validate(found) if found else None

    async def admit(self, host_id: str, admission: Admission) -> HostRecord | None:
        """Set a host's admission and return the host. A boot of its worker does not change it."""
        async with self._connection.writing(hosts=[host_id]):
            found = await self._collection.find_one_and_update(
                {"_id": host_id},
                {"$set": {"admission": admission, "drain": None}},
                return_document=ReturnDocument.AFTER,
            )
        return HostRecord.model_validate(found) if found else None

    async def drain(
        self, host_id: str, *, move: bool, deadline_s: float | None
    ) -> HostRecord | None:
        """Begin to drain a host, or change its drain; return it. `deadline_s` counts from now."""
        deadline = {"$add": ["$$NOW", int(deadline_s * 1_000)]} if deadline_s else None
        async with self._connection.writing(hosts=[host_id]):
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
        """Record that a draining host is empty; False if that was recorded, or is not true."""
        async with self._connection.writing(hosts=[host_id]):
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
        """Return draining hosts whose deadline has passed."""
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

        The order of boots is the order in which they were recorded, never a host's clock. An
        earlier incarnation can't become the current one again.
        """
        async with self._connection.writing(hosts=[host_id]):
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
                        "begun_known": online.begun_known,
                        "liveness": Liveness.ONLINE,
                        "slots": online.slots,
                        "labels": online.labels,
                        "capacity": online.capacity.model_dump() if online.capacity else None,
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
        """Record heartbeats of each host's current incarnation; True if none was dropped.

        Heartbeats of other incarnations are dropped. So are those of a host that is LOST: its
        worker has to announce itself again, because other hosts may have been given its work.
        """
        writes = [
            UpdateOne(
                {
                    "_id": heartbeat.host_id,
                    "incarnation": heartbeat.incarnation,
                    "liveness": {"$ne": Liveness.LOST},
                },
                [
                    {
                        "$set": {
                            "liveness": Liveness.ONLINE,
                            "slots": heartbeat.slots,
                            "labels": {"$literal": heartbeat.labels},
                            "running": heartbeat.running,
                            "readings": {
                                "$literal": [one.model_dump() for one in heartbeat.devices]
                            },
                            "memory_used": heartbeat.memory_used,
                            "measured_jobs": _IN_MEMORY,
                            "last_seen": "$$NOW",
                            "measured_at": "$$NOW",
                        },
                    },
                ],
            )
            for heartbeat in heartbeats
        ]
        if not writes:
            return True
        async with self._connection.answering():
            done = await self._collection.bulk_write(writes, ordered=False)
        return done.matched_count == len(writes)

    async def note_local_content(self, told: Mapping[str, LocalContent]) -> None:
        """Record what hosts have at hand, by host; a host that has no record is left out.

        No more than the bounds of `within_bounds`, whatever a worker tells.
        """
        if not told:
            return
        writes = [
            UpdateOne(
                {"_id": host_id},
                {
                    "$set": {
                        "images": list(within_bounds(content.images)),
                        "datasets": list(within_bounds(content.datasets)),
                    }
                },
            )
            for host_id, content in told.items()
        ]
        async with self._connection.writing(hosts=list(told)):
            await self._collection.bulk_write(writes, ordered=False)

    async def count_fenced_off(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add to the counts of late reports that were fenced off, by `(host_id, reason)`.

        For a host that never came online nothing is counted, because it has no record.
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
        """Return the current incarnation of each of these hosts that is recorded."""
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
        """Mark hosts without a heartbeat for `after_s` seconds SUSPECT; return those it marked."""
        return await self._silent(Liveness.ONLINE, Liveness.SUSPECT, after_s)

    async def lose_silent(self, *, after_s: float) -> list[str]:
        """Mark SUSPECT hosts without a heartbeat for `after_s` seconds LOST; return those."""
        return await self._silent(Liveness.SUSPECT, Liveness.LOST, after_s)

    async def _silent(self, now: Liveness, then: Liveness, after_s: float) -> list[str]:
        silent: Document = {"liveness": now, "$expr": older("$last_seen", after_s)}
        async with self._connection.answering():
            found = await self._collection.find(silent, {"_id": 1}).to_list(None)
        host_ids = [one["_id"] for one in found]
        if not host_ids:
            return []
        async with self._connection.writing(hosts=host_ids):
            done = await self._collection.update_many(
                {**silent, "_id": {"$in": host_ids}}, {"$set": {"liveness": then}}
            )
            if done.modified_count < len(host_ids):
                # A heartbeat of some of them has come since they were found.
                marked: Document = {"_id": {"$in": host_ids}, "liveness": then}
                found = await self._collection.find(marked, {"_id": 1}).to_list(None)
        return [one["_id"] for one in found]

    async def reserve(self, host: HostRecord, wanted: Sequence[Allocation], *, token: str) -> bool:
        """Reserve what these jobs need, all or nothing, in one guarded update.

        False if the host has not enough of something left, is not OPEN and ONLINE under the
        incarnation that `host` has, or holds a reservation of one of the jobs already. The
        listeners of changes are told only if it is false or unknown: who calls this keeps its
        memory itself, see `HostRecord.with_reserved`.
        """
        entries = [one.model_dump() for one in reservations_of(wanted, token)]
        reserved = False
        try:
            async with self._connection.answering():
                done = await self._collection.update_one(
                    {
                        "_id": host.host_id,
                        "incarnation": host.incarnation,
                        "admission": Admission.OPEN,
                        "liveness": Liveness.ONLINE,
                        "reservations.job_id": {"$nin": [one.job_id for one in wanted]},
                        **_untainted({uuid for one in wanted for uuid in one.devices}),
                        "$expr": {"$and": _fits(host, wanted)},
                    },
                    {
                        "$push": {"reservations": {"$each": entries}},
                        "$inc": {"slots_used": sum(one.slots for one in wanted)},
                    },
                )
            reserved = done.matched_count == 1
        finally:
            if not reserved:
                self._connection.changes.written(hosts=[host.host_id])
        return reserved

    async def hold(
        self, host: HostRecord, job_id: str, generation: int, resident: ResidentAllocation
    ) -> bool:
        """Give a job what it needs while its model is in memory, in one guarded update.

        What it holds already is replaced. False if the host has not enough left, is not ONLINE
        under the incarnation that `host` has, or holds no reservation of this generation of the
        job; if one of the devices is tainted; also if what the job holds was given to a later
        attempt.
        """
        not_later = {"$not": {"$gt": resident.version}}
        return await self._replace_resident(host, (job_id, generation), resident, not_later)

    async def raise_resident(
        self, host: HostRecord, job_id: str, generation: int, resident: ResidentAllocation
    ) -> bool:
        """Let a job hold more for its model, in one guarded update like that of `hold`.

        False also if it does not hold what was given to it with this version any more.
        """
        return await self._replace_resident(
            host, (job_id, generation), resident, {"$eq": resident.version}
        )

    async def _replace_resident(
        self,
        host: HostRecord,
        key: tuple[str, int],
        resident: ResidentAllocation,
        version: Document,
    ) -> bool:
        """Set what a generation of a job holds if the version of what it holds now is so."""
        job_id, generation = key
        asked = Allocation(job_id=job_id, generation=generation, slots=0, resident=resident)
        this = {"job_id": job_id, "generation": generation}
        async with self._connection.writing(hosts=[host.host_id]):
            done = await self._collection.update_one(
                {
                    "_id": host.host_id,
                    "incarnation": host.incarnation,
                    "liveness": Liveness.ONLINE,
                    "reservations": {"$elemMatch": this | {"resident.version": version}},
                    **_untainted(resident.devices),
                    "$expr": {"$and": _fits(host, [asked], besides=job_id)},
                },
                [_changed(_is(job_id, generation), {"$literal": resident.model_dump()})],
            )
        return done.matched_count == 1

    async def rebind(self, host: HostRecord, wanted: Allocation) -> bool:
        """Let what a job holds be that of its next container, on the same host, in one update.

        Only the generation and the devices change: binding takes nothing. False if the host is not
        OPEN and ONLINE under the incarnation that `host` has, if one of the devices is tainted, if
        the job's model holds memory, or if it is that of this generation already.
        """
        guard: Document = {
            "incarnation": host.incarnation,
            "admission": Admission.OPEN,
            "liveness": Liveness.ONLINE,
            **_untainted(set(wanted.devices)),
        }
        earlier: Document = {"generation": {"$lt": wanted.generation}}
        return await self._bind(host.host_id, wanted, guard, earlier)

    async def bind_back(self, host_id: str, job: JobRecord) -> bool:
        """Let what a job holds be that of its container, after `rebind` if nothing came of that.

        False if the job's model holds memory there.
        """
        asked = Allocation(job_id=job.job_id, generation=job.generation, devices=job.devices)
        return await self._bind(host_id, asked, {}, {})

    async def _bind(
        self, host_id: str, wanted: Allocation, guard: Document, held: Document
    ) -> bool:
        job_id = wanted.job_id
        changed = {"generation": wanted.generation, "devices": list(wanted.devices)}
        async with self._connection.writing(hosts=[host_id]):
            done = await self._collection.update_one(
                {
                    "_id": host_id,
                    "reservations": {"$elemMatch": {"job_id": job_id, "resident": None, **held}},
                    **guard,
                },
                [
                    _with_changed(
                        {"$eq": ["$$held.job_id", {"$literal": job_id}]}, {"$literal": changed}
                    )
                ],
            )
        return done.matched_count == 1

    async def let_go(self, host_id: str, job_id: str, generation: int, *, before: int) -> bool:
        """Free what a job held while its model was in memory; return whether it held anything.

        Only what was given before the version `before` of the job: a later attempt keeps its own.
        """
        async with self._connection.writing(hosts=[host_id]):
            done = await self._collection.update_one(
                {
                    "_id": host_id,
                    "reservations": {
                        "$elemMatch": {
                            "job_id": job_id,
                            "generation": generation,
                            "resident.version": {"$lt": before},
                        }
                    },
                },
                [_noting_freed(_is(job_id, generation)), _changed(_is(job_id, generation), None)],
            )
        return done.matched_count == 1

    async def release(self, leaving: Mapping[str, Sequence[tuple[str, int]]]) -> None:
        """Free reservations of `(job_id, generation)` by host; those already free are ignored."""
        await self._drop(
            {
                host_id: [_is(job_id, generation) for job_id, generation in pairs]
                for host_id, pairs in leaving.items()
            },
            used=True,
        )

    async def release_token(self, host_id: str, job_ids: Sequence[str], *, token: str) -> None:
        """Free the reservations that one scheduling pass made and could not use."""
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
            used=False,
        )

    async def _drop(self, conditions: Mapping[str, list[Document]], *, used: bool) -> None:
        """Remove reservations; with `used`, what they held on devices may have been measured."""
        writes = [
            UpdateOne(
                {"_id": host_id},
                [
                    *([_noting_freed({"$or": which})] if used else []),
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
            async with self._connection.writing(hosts=conditions):
                await self._collection.bulk_write(writes, ordered=False)


def _is(job_id: str, generation: int) -> Document:
    """Return the condition that `$$held` is the reservation of this generation of the job."""
    return {
        "$and": [
            {"$eq": ["$$held.job_id", {"$literal": job_id}]},
            {"$eq": ["$$held.generation", generation]},
        ]
    }


def _untainted(devices: Collection[str]) -> Document:
    """Return the condition that the last heartbeat told of no taint on any of these devices."""
    if not devices:
        return {}
    tainted = {"uuid": {"$in": sorted(devices)}, "tainted": {"$type": "object"}}
    return {"readings": {"$not": {"$elemMatch": tainted}}}


def _residents(*which: Document) -> Document:
    """Return those reservations whose models are held in memory and for which conditions hold."""
    held = {"$and": [{"$gt": ["$$held.resident", None]}, *which]}
    return {"$filter": {"input": "$reservations", "as": "held", "cond": held}}


_IN_MEMORY = {"$map": {"input": _residents(), "as": "held", "in": "$$held.job_id"}}
"""The jobs whose models are held in memory."""


def _noting_freed(which: Document) -> Document:
    """Return the stage that notes what reservations hold on devices, before they give it back.

    What the last measurement does not count any more is forgotten.
    """
    counted = {
        "$gt": ["$$one.at", {"$subtract": ["$measured_at", int(MEASURED_AFTER_S * 1_000)]}],
    }
    kept = {"$filter": {"input": {"$ifNull": ["$freed", []]}, "as": "one", "cond": counted}}
    leaving = _residents(which)
    freed = {
        "devices": "$$held.resident.devices",
        "at": "$$NOW",
        "counted": {"$in": ["$$held.job_id", {"$ifNull": ["$measured_jobs", []]}]},
    }
    added = {"$map": {"input": leaving, "as": "held", "in": freed}}
    return {"$set": {"freed": {"$concatArrays": [kept, added]}}}


def _changed(which: Document, resident: Document | None) -> Document:
    """Return the stage that sets `resident` of the reservations for which a condition holds."""
    return _with_changed(which, {"resident": resident})


def _with_changed(which: Document, fields: Document) -> Document:
    """Return the stage that sets fields of the reservations for which a condition holds."""
    changed = {"$mergeObjects": ["$$held", fields]}
    return {
        "$set": {
            "reservations": {
                "$map": {
                    "input": "$reservations",
                    "as": "held",
                    "in": {"$cond": [which, changed, "$$held"]},
                }
            }
        }
    }


def _fits(
    host: HostRecord, wanted: Sequence[Allocation], *, besides: str | None = None
) -> list[Document]:
    """Return the conditions that a host has enough left of each resource that is wanted.

    What is allocated is summed up from the host's document as it is when the update is made, so two
    updates can't both take what is left once. With `besides`, what that job holds while its model
    is in memory is not counted: it is replaced. The limits are of the incarnation that the caller
    compares; only the slots may change within it.
    """
    total, residents = host.total, [one.resident for one in wanted if one.resident]
    conditions: list[Document] = []
    if slots := sum(one.slots for one in wanted):
        capped = total.slots is not None
        conditions += [_at_most(slots, ["$slots_used"], "$slots")] if capped else []
    if total.millicpus is not None and (cpus := sum(one.millicpus for one in wanted)):
        allocated = {"$sum": "$reservations.millicpus"}
        conditions.append(_at_most(cpus, [allocated], total.millicpus))
    memory = sum(one.all_memory for one in wanted)
    if total.memory is not None and memory:
        held = [{"$sum": "$reservations.memory"}, _resident("memory", besides)]
        conditions.append(_at_most(memory, held, total.memory))
    devices: Counter[str] = Counter()
    for one in residents:
        devices.update(one.devices)
    for uuid, amount in devices.items():
        there = total.devices.get(uuid)
        held = [_resident(f"devices.{uuid}", besides)]
        conditions.append(_at_most(amount, held, there.memory if there else 0))
    return conditions


def _at_most(added: int, held: Sequence[object], limit: object) -> Document:
    return {"$lte": [{"$add": [*held, added]}, limit]}


def _resident(field: str, besides: str | None) -> Document:
    """Return the sum of what models in memory hold of something."""
    if besides is None:
        return {"$sum": f"$reservations.resident.{field}"}
    other = {"$ne": ["$$held.job_id", {"$literal": besides}]}
    amount = {"$cond": [other, f"$$held.resident.{field}", None]}
    return {"$sum": {"$map": {"input": "$reservations", "as": "held", "in": amount}}}
