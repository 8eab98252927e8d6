"""Jobs that no operation refers to."""

from modelyard.store.connection import MongoConnection
from modelyard.store.records import Document


async def jobs_without(
    connection: MongoConnection, operations: Document, criteria: Document
) -> list[str]:
    """Return the jobs that meet `criteria` and have no operation that meets `operations`.

    However many a job has, one is read. Raises `StoreUnavailableError`.
    """
    pipeline: list[Document] = [
        {"$match": criteria},
        {
            "$lookup": {
                "from": "operations",
                "localField": "_id",
                "foreignField": "job_id",
                "pipeline": [{"$match": operations}, {"$limit": 1}, {"$project": {"_id": 1}}],
                "as": "operations",
            },
        },
        {"$project": {"operations": 1}},
    ]
    async with connection.answering():
        found = await connection.collection("jobs").aggregate(pipeline).to_list(None)
    return [one["_id"] for one in found if not one["operations"]]
