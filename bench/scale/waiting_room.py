"""Fills the record with operations that wait, many more than could be submitted in the time.

The first `ORIGINALS` take the real road through RabbitMQ, intake and scheduler. All others are
copies of their documents, made inside of MongoDB, with ids, jobs and positions of their own. Two
kinds wait, half of each:

- TEMP operations, each of a job of its own, for which no host has a free slot;
- INFER operations in the lines of jobs whose loads never end (`host.HELD`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient, ReturnDocument

from bench.scale.host import HELD
from bench.scale.load import INPUT, infer
from bench.scale.polling import until
from bench.scale.site import MODEL
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import OperationState, Verb
from modelyard.store.operations import LINE_COUNTER

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.collection import Collection

    from bench.scale.load import Load

ORIGINALS = 1_000
"""Waiting operations that are submitted; the fewest that can wait."""
LINES = 100
"""Held jobs, in whose lines the INFER operations wait."""
HELD_JOBS = [f"{HELD}{number:03}" for number in range(LINES)]
HELD_FOR_S = 86_400.0
COPIES_AT_ONCE = 50
"""Copies of each original in one command, so that progress can be shown."""
_WAITS = "waits-"
_ID_DIGITS = 12


def held_jobs() -> list[JobRequest]:
    """Return the requests that create the held jobs and begin their loads."""
    return [
        request
        for job_id in HELD_JOBS
        for request in (
            JobRequest(job_id=job_id, operation_type=Verb.DEPLOY_CREATE, model=MODEL.name),
            JobRequest(job_id=job_id, operation_type=Verb.DEPLOY_LOAD, timeout_s=HELD_FOR_S),
        )
    ]


def originals() -> list[JobRequest]:
    """Return the requests of the operations that wait."""
    each = ORIGINALS // 2
    temps = [
        JobRequest(
            job_id=f"{_WAITS}{number:03}", operation_type=Verb.TEMP, model=MODEL.name, input=INPUT
        )
        for number in range(each)
    ]
    infers = [infer(HELD_JOBS[number % LINES]) for number in range(each)]
    return [request for pair in zip(temps, infers, strict=True) for request in pair]


class WaitingRoom:
    """The waiting operations in the record. No dispatcher may run while it is filled further."""

    def __init__(self, mongo_url: str) -> None:
        client: MongoClient[dict[str, Any]] = MongoClient(mongo_url)
        database = client.get_default_database()
        self._operations: Collection[dict[str, Any]] = database["operations"]
        self._jobs: Collection[dict[str, Any]] = database["jobs"]
        self._counters: Collection[dict[str, Any]] = database["counters"]
        self._copies = 0
        """Copies that each original has."""

    @property
    def waiting(self) -> int:
        """How many operations wait, by what was put there."""
        return ORIGINALS * (1 + self._copies)

    async def open(self, load: Load, *, within_s: float) -> None:
        """Submit the originals, and wait until the scheduler has seen all of them.

        Raises `TimeoutError`. Needs hosts whose slots the held jobs take up altogether.
        """
        held = await load.submit(held_jobs())
        loading = {"_id": {"$in": held}, "verb": Verb.DEPLOY_LOAD, "state": OperationState.RUNNING}
        await self._until_there_are(LINES, loading, within_s)
        waiting = await load.submit(originals())
        explained = {"_id": {"$in": waiting}, "waits": True}
        await self._until_there_are(ORIGINALS // 2, explained, within_s)
        load.forget(held + waiting)

    async def _until_there_are(self, count: int, criteria: dict[str, Any], within_s: float) -> None:
        async def there() -> bool:
            found = await asyncio.to_thread(self._operations.count_documents, criteria)
            return found == count

        await until(there, within_s=within_s)

    def fill(self, waiting: int, note: Callable[[str], None]) -> None:
        """Copy until so many operations wait; say in `note` how many there are meanwhile."""
        wanted = waiting // ORIGINALS - 1
        while self._copies < wanted:
            some = range(self._copies, min(wanted, self._copies + COPIES_AT_ONCE))
            self._copy(some)
            self._copies = some.stop
            note(f"{self.waiting:,} wait")

    def _copy(self, numbers: range) -> None:
        queued = {
            "state": OperationState.QUEUED,
            "job_id": {"$regex": f"^({_WAITS}|{HELD})[0-9]{{3}}$"},
            "copy": {"$exists": False},
        }
        ends = self._operations.aggregate(
            [
                {"$match": queued},
                {"$group": {"_id": None, "first": {"$min": "$line"}, "last": {"$max": "$line"}}},
            ]
        ).next()
        span = ends["last"] - ends["first"] + 1
        first = self._take_positions(span * len(numbers))
        copies: list[dict[str, Any]] = [
            {"$set": {"copy": {"$range": [numbers.start, numbers.stop]}}},
            {"$unwind": "$copy"},
        ]
        self._jobs.aggregate(
            [
                {"$match": {"_id": {"$regex": f"^{_WAITS}[0-9]{{3}}$"}}},
                *copies,
                {"$set": {"_id": _job_of_copy("$_id")}},
                {"$unset": "copy"},
                {"$merge": {"into": self._jobs.name, "whenMatched": "fail"}},
            ]
        )
        line = {
            "$add": [
                {"$subtract": ["$line", ends["first"]]},
                {"$multiply": [{"$subtract": ["$copy", numbers.start]}, span]},
                first,
            ]
        }
        own_job = {"$cond": ["$waits", _job_of_copy("$job_id"), "$job_id"]}
        self._operations.aggregate(
            [
                {"$match": queued},
                *copies,
                {"$set": {"line": line, "job_id": own_job}},
                {"$set": {"_id": _ID_OF_LINE, "accepted_at": "$$NOW"}},
                {"$merge": {"into": self._operations.name, "whenMatched": "fail"}},
            ]
        )

    def _take_positions(self, count: int) -> int:
        """Return the first of `count` positions that nobody has."""
        counter = self._counters.find_one_and_update(
            {"_id": LINE_COUNTER},
            {"$inc": {"value": count}},
            return_document=ReturnDocument.AFTER,
        )
        assert counter is not None  # noqa: S101 - for the type checker: the originals have positions
        return int(counter["value"]) - count + 1


def _job_of_copy(job_id: str) -> dict[str, Any]:
    return {"$concat": [job_id, "-", {"$toString": "$copy"}]}


_ID_OF_LINE = {
    "$concat": [
        "00000000-0000-7000-8000-",
        {"$substrBytes": [{"$toString": {"$add": [10**_ID_DIGITS, "$line"]}}, 1, _ID_DIGITS]},
    ]
}
"""An operation id that has the position in its last digits."""
