"""What belongs to operations, and goes with them."""

from collections.abc import Sequence

from modelyard.store.connection import MongoConnection
from modelyard.store.content.retention import ContentRetention


async def delete_dependents(
    connection: MongoConnection, contents: ContentRetention, operation_ids: Sequence[str]
) -> None:
    """Delete the stored inputs and results of operations, their events and their notes.

    To be called before the operations go, and again after a crash in between. Raises
    `StoreUnavailableError`.
    """
    await contents.delete_of(operation_ids)
    for name in ("events", "audit"):
        async with connection.answering():
            await connection.collection(name).delete_many(
                {"operation_id": {"$in": list(operation_ids)}}
            )
