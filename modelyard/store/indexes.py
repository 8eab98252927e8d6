"""Every index, in one place; created at start, and harmless to create again."""

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import OperationFailure

from modelyard.store.capacity.footprints import UNUSED_S
from modelyard.store.connection import MongoConnection
from modelyard.store.records import ENDED_JOB

_OPEN = {"partialFilterExpression": {"open": True}}
UNBROUGHT = "unbrought"
UNPUBLISHED = "unpublished"
COPIES = "copies"

INDEXES: dict[str, list[IndexModel]] = {
    "operations": [
        # The open operations of a job in order.
        IndexModel([("job_id", ASCENDING), ("line", ASCENDING)], name="line", **_OPEN),
        # Recorded operations whose message has not arrived, oldest first; and those of a job whose
        # message the broker did not confirm.
        IndexModel(
            [("line", ASCENDING), ("accepted_at", ASCENDING), ("accepted_place", ASCENDING)],
            name=UNBROUGHT,
            **_OPEN,
        ),
        IndexModel(
            [("job_id", ASCENDING), ("line", ASCENDING)],
            name=UNPUBLISHED,
            partialFilterExpression={"open": True, "unpublished": True},
        ),
        # Waiting operations in the order in which the scheduler tries them.
        IndexModel(
            [("state", ASCENDING), ("rank", ASCENDING), ("line", ASCENDING)],
            name="waiting_by_rank",
            **_OPEN,
        ),
        IndexModel(
            [("rank", ASCENDING), ("line", ASCENDING)],
            name="without_host_by_rank",
            partialFilterExpression={"waits": True},
        ),
        IndexModel(
            [("expires_at", ASCENDING)],
            name="deadline",
            partialFilterExpression={"open": True, "expires_at": {"$exists": True}},
        ),
        IndexModel([("host_id", ASCENDING), ("state", ASCENDING)], name="on_host", **_OPEN),
        IndexModel(
            [("not_before", ASCENDING)],
            name="resting",
            partialFilterExpression={"open": True, "not_before": {"$exists": True}},
        ),
        IndexModel(
            [("cancel_requested", ASCENDING)],
            name="wishes",
            partialFilterExpression={"open": True, "cancel_requested": True},
        ),
        # Loads that were put before inferences.
        IndexModel(
            [("reason", ASCENDING)],
            name="reason",
            partialFilterExpression={"reason": {"$type": "string"}},
        ),
        # Who uses an uploaded input.
        IndexModel(
            [("input_id", ASCENDING)],
            name="input",
            partialFilterExpression={"input_id": {"$type": "string"}},
        ),
        # Operations that have ended, oldest first: what is removed by its age.
        IndexModel(
            [("finished_at", ASCENDING), ("_id", ASCENDING)],
            name="ended",
            partialFilterExpression={"open": False},
        ),
        # Pages for clients.
        IndexModel([("accepted_at", DESCENDING), ("_id", DESCENDING)], name="page"),
        IndexModel(
            [("job_id", ASCENDING), ("accepted_at", DESCENDING), ("_id", DESCENDING)],
            name="job_page",
        ),
        IndexModel(
            [("state", ASCENDING), ("accepted_at", DESCENDING), ("_id", DESCENDING)],
            name="state_page",
        ),
        # A page by a verb alone has none: each index is one more write of each operation, and only
        # pages of verbs that are hardly used are slow. MongoDB ends those after `PAGE_S`.
        IndexModel(
            [("model", ASCENDING), ("accepted_at", DESCENDING), ("_id", DESCENDING)],
            name="model_page",
            partialFilterExpression={"model": {"$gt": ""}},
        ),
        IndexModel(
            [("host_id", ASCENDING), ("accepted_at", DESCENDING), ("_id", DESCENDING)],
            name="host_page",
            partialFilterExpression={"host_id": {"$gt": ""}},
        ),
    ],
    "jobs": [
        IndexModel([("host_id", ASCENDING)], name="on_host"),
        IndexModel(
            [("move.host_id", ASCENDING)],
            name="moving",
            partialFilterExpression={"move": {"$type": "object"}},
        ),
        IndexModel(
            [("recovery.key", ASCENDING)],
            name="to_bring_back",
            partialFilterExpression={"recovery": {"$type": "object"}},
        ),
        IndexModel(
            [("state", ASCENDING)],
            name="idle_unloading",
            partialFilterExpression={"idle_unload_s": {"$gt": 0}},
        ),
        # The copies of a model by state: for inferences that any of them may answer.
        IndexModel([("model", ASCENDING), ("state", ASCENDING), ("_id", ASCENDING)], name=COPIES),
        # Jobs without a container, those first that were not written for the longest time.
        IndexModel(
            [("updated_at", ASCENDING), ("_id", ASCENDING)],
            name="ended",
            partialFilterExpression={"state": ENDED_JOB["state"]},
        ),
        IndexModel([("created_at", DESCENDING), ("_id", DESCENDING)], name="page"),
        IndexModel(
            [("state", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
            name="state_page",
        ),
    ],
    **{
        f"{bucket}.files": [
            # Files that nothing was found to use, oldest first.
            IndexModel(
                [("uploadDate", ASCENDING)],
                name="unused",
                partialFilterExpression={"unused": True},
            )
        ]
        for bucket in ("results", "inputs")
    },
    **{
        # GridFS's own; the driver makes it too.
        f"{bucket}.chunks": [
            IndexModel(
                [("files_id", ASCENDING), ("n", ASCENDING)], name="files_id_1_n_1", unique=True
            )
        ]
        for bucket in ("results", "inputs")
    },
    "footprints": [
        IndexModel([("model", ASCENDING)], name="model"),
        IndexModel([("last_seen", ASCENDING)], name="age", expireAfterSeconds=UNUSED_S),
    ],
    "events": [
        IndexModel([("operation_id", ASCENDING), ("at", ASCENDING)], name="operation"),
        IndexModel([("at", ASCENDING), ("_id", ASCENDING)], name="oldest"),
    ],
    "dead_letters": [
        IndexModel([("recorded_at", DESCENDING), ("_id", DESCENDING)], name="letters_page"),
        IndexModel(
            [("reason", ASCENDING), ("recorded_at", DESCENDING), ("_id", DESCENDING)],
            name="reason_page",
        ),
        IndexModel(
            [("queue", ASCENDING), ("recorded_at", DESCENDING), ("_id", DESCENDING)],
            name="queue_page",
        ),
    ],
    "audit": [IndexModel([("operation_id", ASCENDING)], name="operation")],
}


_OBSOLETE = (
    ("operations", "token"),
    ("operations", "waiting"),
    ("operations", "without_host"),
    ("events", "age"),
)
"""Indexes that an earlier version made."""
_INDEX_NOT_FOUND = 27  # of MongoDB's error codes


async def ensure_indexes(connection: MongoConnection) -> None:
    """Create what is missing, and drop what is obsolete; raises `StoreUnavailableError`."""
    for collection, indexes in INDEXES.items():
        async with connection.answering(timeout_s=60.0):
            await connection.collection(collection).create_indexes(indexes)
    for collection, name in _OBSOLETE:
        try:
            async with connection.answering(timeout_s=60.0):
                await connection.collection(collection).drop_index(name)
        except OperationFailure as error:
            if error.code != _INDEX_NOT_FOUND:
                raise
