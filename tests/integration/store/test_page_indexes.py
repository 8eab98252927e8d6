"""How much MongoDB looks at for the pages of filters that leave little."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from gateway.routes.dead_letters import DeadLetterQuery
from gateway.routes.jobs import JobQuery
from gateway.routes.operations import OperationQuery
from modelyard.store import Store
from modelyard.store.paging import Position

ENTRIES = 300
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = {"operations": "accepted_at", "jobs": "created_at", "dead_letters": "recorded_at"}
NO_FILTERS = {"limit", "cursor"}
WITHOUT_INDEX = {"operation_type"}
"""Alone. MongoDB ends a page that takes too long."""
FILTERS = [
    (collection, name)
    for collection, query in (
        ("operations", OperationQuery),
        ("jobs", JobQuery),
        ("dead_letters", DeadLetterQuery),
    )
    for name in query.model_fields.keys() - NO_FILTERS - WITHOUT_INDEX
]


@pytest.mark.parametrize(("collection", "name"), sorted(FILTERS))
async def test_a_page_that_a_filter_leaves_empty_looks_at_nothing(
    store: Store, mongo_url: str, collection: str, name: str
) -> None:
    pages: dict[str, Any] = {
        "operations": store.operation_queries.page,
        "jobs": store.jobs.page,
        "dead_letters": store.dead_letters.page,
    }
    with MongoClient[dict[str, Any]](mongo_url) as client:
        database = client.get_default_database()
        for number in range(ENTRIES):
            at = BEGAN + timedelta(seconds=number)
            database[collection].insert_one(
                {"_id": f"{number:03}", name: "common", TIMES[collection]: at}
            )
        database.command({"profile": 2})
        last = Position(BEGAN + timedelta(seconds=ENTRIES), "z")
        for after in (None, last):
            assert not (await pages[collection]({name: "rare"}, after=after, limit=50)).items
        database.command({"profile": 0})
        looked_at = [
            one["docsExamined"] + one["keysExamined"]
            for one in database["system.profile"].find({"command.find": collection})
        ]
    assert len(looked_at) == len((None, last))
    assert max(looked_at) <= len(looked_at)
