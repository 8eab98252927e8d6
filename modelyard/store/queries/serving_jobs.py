"""The jobs of a model that can take an inference, with the number of their open operations.

The sort is an index's and the filters come before the limit: MongoDB reads no jobs of other models
or in other states, and no operations of more jobs than it needs to find enough. How long a job's
line is does not matter: no more than `MOST_COUNTED` of its operations are read, the last ones, for
what changes the job last counts. Those that are not taken in yet have no position, and come last;
they are read apart, for an index has them before all others, and no more of them either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pymongo.errors import OperationFailure

from modelyard.contract.states import JobState, Liveness, Verb
from modelyard.store.connection import BAD_VALUE, MongoConnection
from modelyard.store.indexes import COPIES
from modelyard.store.records import Document

MOST_COUNTED = 160
"""Most open operations of a job that are counted; more than may run together."""
MOST_JOBS_COUNTED = 10_000
"""Most jobs of a model that are counted by their states."""
_AFTER_ALL = (1 << 63) - 1
"""The position of operations that have none yet: behind all others."""
_LINE, _NOT_TAKEN_IN = "line", "not_taken_in"
"""Where a query puts the operations of a job, by verb: those with a position, those without."""


class Stage(StrEnum):
    """How far a job is from answering, once its line has come to a new inference."""

    RESIDENT = "resident"
    """Its model is in memory."""
    LOADING = "loading"
    """Its model will be in memory: operations in line load it."""
    UNLOADED = "unloaded"
    """Its model is not in memory; the inference would have it loaded (`residency.on_demand`)."""


@dataclass(frozen=True, slots=True)
class ServingJob:
    """A job that can take an inference."""

    job_id: str
    stage: Stage
    open: int
    """Its operations that have not ended, up to `MOST_COUNTED`."""
    max_concurrency: int
    """Inferences that may run in it at the same time."""


_FIELDS = ("state", "on_demand", "max_concurrency", _LINE, _NOT_TAKEN_IN)


@dataclass(frozen=True, slots=True)
class Copies:
    """Which jobs are meant: those of a model, or only those that have a certain dataset too."""

    model: str
    dataset: str | None = None

    @property
    def criteria(self) -> Document:
        """The fields of the jobs' documents."""
        return {"model": self.model} | ({"dataset": self.dataset} if self.dataset else {})


class ServingJobs:
    """Queries over jobs, their hosts and their operations. They raise `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._jobs = connection.collection("jobs")

    async def resident(
        self, copies: Copies, *, limit: int, after: str | None = None
    ) -> list[ServingJob]:
        """Return up to `limit` LOADED jobs that can take an inference, by id.

        They begin behind the id `after`, and go on with the lowest ids if there are too few. Those
        whose line unloads the model are among them if an inference would load it again.
        """
        found = await self._find(copies, JobState.LOADED, {"$gt": after} if after else {}, limit)
        if after is not None and len(found) < limit:
            found += await self._find(copies, JobState.LOADED, {"$lte": after}, limit - len(found))
        return found

    async def loadable(self, copies: Copies, *, limit: int) -> list[ServingJob]:
        """Return up to `limit` CREATED jobs that can take an inference, by id.

        Their models are being loaded, or an inference would have them loaded.
        """
        return await self._find(copies, JobState.CREATED, {}, limit)

    async def states(self, copies: Copies) -> dict[JobState, int]:
        """Count the jobs that are CREATED, LOADED, FAILED or LOST, by state.

        At most `MOST_JOBS_COUNTED` are counted.
        """
        counted = [JobState.CREATED, JobState.LOADED, JobState.FAILED, JobState.LOST]
        pipeline: list[Document] = [
            {"$match": {**copies.criteria, "state": {"$in": counted}}},
            {"$limit": MOST_JOBS_COUNTED},
            {"$group": {"_id": "$state", "jobs": {"$sum": 1}}},
        ]
        found = await self._aggregate(pipeline)
        return {JobState(one["_id"]): one["jobs"] for one in found}

    async def _find(
        self, copies: Copies, state: JobState, ids: Mapping[str, str], limit: int
    ) -> list[ServingJob]:
        found = await self._aggregate(_pipeline(copies, state, ids, limit))
        return [job for one in found if (job := _serving_job(one)) is not None]

    async def _aggregate(self, pipeline: list[Document]) -> list[Document]:
        """Run a query by its index: left to choose, MongoDB goes over the jobs of all models by id.

        The index may be missing: it is being made, or an operator dropped it.
        """
        try:
            async with self._connection.answering():
                return await self._jobs.aggregate(pipeline, hint=COPIES).to_list(None)
        except OperationFailure as error:
            if error.code != BAD_VALUE:
                raise
        async with self._connection.answering():
            return await self._jobs.aggregate(pipeline).to_list(None)


def _pipeline(
    copies: Copies, state: JobState, ids: Mapping[str, str], limit: int
) -> list[Document]:
    """Return the query for jobs in a state that can take an inference.

    Not among them are jobs that are about to be restored (they are down), that a TERMINATE waits
    for, or whose host is not ONLINE. A job that is being moved is: it serves meanwhile.
    """
    ends_in_memory: list[Document] = [
        {"on_demand": True},
        {f"{_LINE}._id": Verb.DEPLOY_LOAD},
        {f"{_NOT_TAKEN_IN}._id": Verb.DEPLOY_LOAD},
    ]
    if state is JobState.LOADED:
        ends_in_memory.append(_without(Verb.DEPLOY_UNLOAD))
    return [
        {
            "$match": {
                **copies.criteria,
                "state": state,
                "recovery": None,
                **({"_id": dict(ids)} if ids else {}),
            }
        },
        {"$sort": {"_id": 1}},
        {
            "$lookup": {
                "from": "hosts",
                "localField": "host_id",
                "foreignField": "_id",
                "pipeline": [{"$match": {"liveness": Liveness.ONLINE}}, {"$project": {"_id": 1}}],
                "as": "host",
            }
        },
        {"$match": {"host": {"$ne": []}}},
        _operations(_LINE, {"line": {"$ne": None}}),
        _operations(_NOT_TAKEN_IN, {"line": None}),
        {"$match": {**_without(Verb.TERMINATE), "$or": ends_in_memory}},
        {"$limit": limit},
        {"$project": dict.fromkeys(_FIELDS, 1)},
    ]


def _operations(name: str, which: Document) -> Document:
    """Return the stage that adds a job's last open operations, counted by verb."""
    return {
        "$lookup": {
            "from": "operations",
            "localField": "_id",
            "foreignField": "job_id",
            "pipeline": [
                {"$match": {"open": True, "aside": {"$ne": True}, **which}},
                {"$sort": {"line": -1}},
                {"$limit": MOST_COUNTED},
                {
                    "$group": {
                        "_id": "$verb",
                        "open": {"$sum": 1},
                        "last": {"$max": {"$ifNull": ["$line", _AFTER_ALL]}},
                    }
                },
            ],
            "as": name,
        }
    }


def _without(verb: Verb) -> Document:
    """Return the criteria for jobs without an open operation of this verb."""
    return {f"{_LINE}._id": {"$ne": verb}, f"{_NOT_TAKEN_IN}._id": {"$ne": verb}}


def _serving_job(document: Mapping[str, Any]) -> ServingJob | None:
    # What is not taken in yet is behind what has a position, of each verb.
    counted = [*document[_LINE], *document[_NOT_TAKEN_IN]]
    last = {one["_id"]: one["last"] for one in counted}
    on_demand = document.get("on_demand", False)
    stage = _stage(JobState(document["state"]), last, on_demand=on_demand)
    if stage is None:
        return None
    return ServingJob(
        job_id=document["_id"],
        stage=stage,
        open=min(MOST_COUNTED, sum(one["open"] for one in counted)),
        max_concurrency=document.get("max_concurrency", 1),
    )


def _stage(state: JobState, last: Mapping[str | None, float], *, on_demand: bool) -> Stage | None:
    """Return the stage of a job; `last` has the last position of its open operations by verb.

    None if its model will not be in memory, and an inference would not have it loaded.
    """
    if state is JobState.LOADED and Verb.DEPLOY_UNLOAD not in last:
        return Stage.RESIDENT
    loads, unloads = (
        last.get(verb, float("-inf")) for verb in (Verb.DEPLOY_LOAD, Verb.DEPLOY_UNLOAD)
    )
    if loads > unloads:
        return Stage.LOADING
    if not on_demand:
        return None
    return Stage.LOADING if Verb.INFER in last else Stage.UNLOADED
