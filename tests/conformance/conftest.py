"""The store that several suites run on: in MongoDB, and in memory."""

import time
from collections.abc import AsyncIterator

import pytest

from modelyard.store import Store
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore


@pytest.fixture(params=[pytest.param("mongodb", marks=pytest.mark.server), "memory"])
async def any_store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Give the test a store of each kind, with its indexes."""
    if request.param == "memory":
        made: Store = MemoryStore(MemoryDatabase(time.monotonic))
    else:
        made = Store(request.getfixturevalue("mongo_url"), name="test", timeout_s=10.0)
    await made.prepare()
    yield made
    made.close()
