"""How long what an attempt has left of a large result stays in the database."""

import pytest

from dispatcher.maintenance.retention.orphaned_content import OrphanedContent
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import OperationState, Verb
from modelyard.store.content.results import BUCKET
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.records import NewOperation
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore

MOST_S = 180
"""Seconds from the end of an operation to that of what its attempt had stored."""


async def test_a_result_that_broke_off_is_gone_within_three_minutes_of_its_operations_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    database = MemoryDatabase(lambda: now)
    store = MemoryStore(database)
    monkeypatch.setattr(f"{OrphanedContent.__module__}.time.monotonic", lambda: now)
    content = OrphanedContent(store)
    one = NewOperation.of("one", JobRequest(job_id="j", operation_type=Verb.INFER, input=1), "http")
    await store.operations.take_in([(one, 1)])
    claim = DispatchClaim(one.queued(1), "h", "boot", 1)
    assert await store.operations.claim([claim], token="t")
    await store.results.put_piece("one", 1, 0, b"piece")
    for _ in range(600):
        await content.remove()
        now += 1.0
    assert database.documents(f"{BUCKET}.chunks")
    given = await store.operation_queries.get("one")
    assert given is not None
    error = ErrorInfo.of(ErrorCode.RESULT_TOO_LARGE)
    assert await store.operations.end_given(given, OperationState.FAILED, error)
    for _ in range(MOST_S):
        await content.remove()
        now += 1.0
    assert database.documents(f"{BUCKET}.chunks") == []
    assert database.documents(f"{BUCKET}.files") == []
