"""Files of large inputs and results, on a real MongoDB and in memory."""

import hashlib
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from modelyard.contract.content.results import ResultContent
from modelyard.contract.content.transfers import PIECE_BYTES, StoredResult
from modelyard.contract.errors import ErrorCode, ErrorInfo, ModelyardError
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import MAX_INLINE_RESULT_BYTES, JobRequest, OperationReport
from modelyard.contract.states import OperationState, Verb
from modelyard.store import Store
from modelyard.store.content import retention
from modelyard.store.content.results import file_of
from modelyard.store.operation_writes import DispatchClaim, ResultPlace
from modelyard.store.operations import AttemptFailure
from modelyard.store.records import NewOperation

TENANT = "default"
CONTENT = bytes(range(256)) * 1_024 * 2 + b"end"
"""Three pieces."""
PIECES = [CONTENT[at : at + PIECE_BYTES] for at in range(0, len(CONTENT), PIECE_BYTES)]
TOLD = StoredResult(
    content_type="image/png", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()
)
AT_ONCE = -1.0
"""Seconds after which a file is old: even one that is begun now."""


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


async def parts_of(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def uploaded(store: Store) -> str:
    """Upload the content in parts of other sizes than the pieces are; return its id."""
    stored = await store.inputs.put("image/png", TENANT, parts_of(CONTENT[:7], CONTENT[7:]))
    return stored.file_id


async def running(store: Store, input_id: str | None = None) -> str:
    """Record an operation that a host works on; return its id."""
    request = JobRequest(
        job_id="j",
        operation_type=Verb.INFER,
        input=None if input_id else 1,
        input_id=input_id,
    )
    operation = NewOperation.of(new_operation_id(), request, "http")
    await store.operations.take_in([(operation, 1)])
    claim = DispatchClaim(operation.queued(1), "h", "boot", 1)
    assert await store.operations.claim([claim], token=uuid.uuid4().hex)
    return operation.operation_id


async def ended(store: Store, operation_id: str, place: ResultPlace | None) -> None:
    end = OperationReport(
        operation_id=operation_id,
        epoch=1,
        seq=1,
        job_id="j",
        generation=1,
        state=OperationState.SUCCEEDED,
    )
    places = {} if place is None else {operation_id: place}
    assert await store.operations.apply([end], places) == 1


async def look(store: Store) -> int:
    """Look for what is of no use, however young it is; return how many files were removed."""
    return await store.content_retention.remove_orphans(kept_s=AT_ONCE, looked_at_s=AT_ONCE)


async def begun(store: Store, operation_id: str, epoch: int = 1) -> str:
    """Store the first piece of a result; return its file."""
    await store.results.put_piece(operation_id, epoch, 0, PIECES[0])
    return file_of(operation_id, epoch)


async def nothing_is_left_of(store: Store, file_id: str) -> bool:
    files = store.results._files
    return await files.find(file_id) is None and await files.piece(file_id, 0) is None


async def read(store: Store, operation_id: str) -> bytes:
    chunks = await store.results.get(operation_id)
    assert chunks is not None
    return b"".join([chunk async for chunk in chunks])


async def test_an_input_comes_back_piece_by_piece(store: Store) -> None:
    input_id = await uploaded(store)
    found = await store.inputs.find(input_id, tenant=TENANT)
    assert found is not None
    assert (found.length, found.content_type, found.pieces) == (len(CONTENT), "image/png", 3)
    assert found.sha256 == TOLD.sha256
    assert [await store.inputs.piece(input_id, number) for number in range(3)] == PIECES
    assert await store.inputs.piece(input_id, 3) is None


async def test_an_input_of_another_tenant_or_one_that_is_not_whole_is_not_there(
    store: Store,
) -> None:
    input_id = await uploaded(store)
    assert await store.inputs.find(input_id, tenant="other") is None
    assert await store.inputs.keep({input_id}, tenant="other") == {input_id}
    assert await store.inputs.keep({input_id}, tenant=TENANT) == set()

    async def broken_off() -> AsyncIterator[bytes]:
        yield CONTENT
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await store.inputs.put("image/png", TENANT, broken_off())
    assert await look(store) == 2


async def test_a_result_that_comes_in_pieces_is_whole_only_with_all_of_them(store: Store) -> None:
    operation_id = await running(store)
    for number in (0, 2):
        await store.results.put_piece(operation_id, 1, number, PIECES[number])
    assert await store.results.complete(operation_id, 1, TOLD) is None, "the second is missing"
    await store.results.put_piece(operation_id, 1, 1, PIECES[1][:-1])
    assert await store.results.complete(operation_id, 1, TOLD) is None, "it is too short"
    await store.results.put_piece(operation_id, 1, 1, PIECES[1])
    await store.results.put_piece(operation_id, 1, 2, PIECES[2] + b"more")
    assert await store.results.complete(operation_id, 1, TOLD) is None
    for number in (2, 0):  # each piece may come again
        await store.results.put_piece(operation_id, 1, number, PIECES[number])
    place = await store.results.complete(operation_id, 1, TOLD)
    assert place == await store.results.complete(operation_id, 1, TOLD)
    assert place is not None
    assert (place.content_type, place.size, place.sha256) == (
        "image/png",
        len(CONTENT),
        TOLD.sha256,
    )
    await ended(store, operation_id, place)
    assert await read(store, operation_id) == CONTENT


async def test_what_another_process_wrote_halfway_is_in_nobodys_way(store: Store) -> None:
    operation_id = await running(store)
    result = ResultContent(content_type="image/png", content=CONTENT)
    other = await store.results.put(operation_id, 1, result)
    assert other.file_id is not None
    await store.results._files.write(other.file_id, 1, b"damaged")
    store.results._writer = "another"
    place = await store.results.put(operation_id, 1, result)
    assert place.file_id != other.file_id
    await ended(store, operation_id, place)
    assert await read(store, operation_id) == CONTENT
    assert [await look(store), await look(store)] == [0, 1]
    assert await store.results._files.find(other.file_id) is None
    assert await read(store, operation_id) == CONTENT


async def test_a_stored_result_with_a_piece_missing_is_said_to_be_gone(store: Store) -> None:
    operation_id = await running(store)
    large = '"' + "x" * MAX_INLINE_RESULT_BYTES + '"'
    place = await store.results.put(operation_id, 1, large)
    await ended(store, operation_id, place)
    await store.results._files._pieces.delete_one({"files_id": place.file_id, "n": 1})
    with pytest.raises(ModelyardError, match="gone") as raised:
        await read(store, operation_id)
    assert raised.value.code is ErrorCode.INTERNAL


async def test_orphans_go_and_what_is_of_use_stays(store: Store) -> None:
    named, lonely = await uploaded(store), await uploaded(store)
    operation_id = await running(store, named)
    for number, piece in enumerate(PIECES):
        await store.results.put_piece(operation_id, 1, number, piece)
    contents = store.content_retention
    assert await contents.remove_orphans(kept_s=3_600.0, looked_at_s=3_600.0) == 0
    # The result of an operation that is open may still be reported.
    assert [await look(store), await look(store)] == [1, 0]
    assert await store.inputs.find(lonely, tenant=TENANT) is None
    assert await store.inputs.piece(lonely, 0) is None
    await ended(store, operation_id, await store.results.complete(operation_id, 1, TOLD))
    assert [await look(store), await look(store)] == [0, 0]
    assert await read(store, operation_id) == CONTENT
    assert await store.inputs.find(named, tenant=TENANT) is not None
    assert await store.results._files.unused(AT_ONCE, limit=10) == []


async def test_a_result_that_was_not_reported_goes_with_the_end_of_its_operation(
    store: Store,
) -> None:
    operation_id = await running(store)
    file_id = await begun(store, operation_id)
    await ended(store, operation_id, None)
    assert await look(store) == 0, "another piece may be being written"
    await store.results.put_piece(operation_id, 1, 1, PIECES[1])
    assert await look(store) == 1
    assert await nothing_is_left_of(store, file_id)
    assert await store.results._files.piece(file_id, 1) is None


async def test_what_an_earlier_attempt_has_stored_goes_while_its_operation_is_open(
    store: Store,
) -> None:
    operation_id = await running(store)
    earlier = await begun(store, operation_id)
    assert [await look(store), await look(store)] == [0, 0]
    one = await store.operation_queries.get(operation_id)
    assert one is not None
    failure = AttemptFailure(ErrorInfo.of(ErrorCode.INFERENCE_FAILED), seq=1, rest_s=0.0)
    assert await store.operations.requeue(one, failure)
    one = await store.operation_queries.get(operation_id)
    assert one is not None
    assert await store.operations.claim([DispatchClaim(one, "h", "boot", 1)], token="t")
    later = await begun(store, operation_id, 2)
    assert [await look(store), await look(store)] == [0, 1]
    assert await nothing_is_left_of(store, earlier)
    assert not await nothing_is_left_of(store, later)


async def test_results_that_are_still_awaited_do_not_keep_others_from_being_looked_at(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 1)
    awaited = await begun(store, await running(store))
    over = await running(store)
    file_id = await begun(store, over)
    await ended(store, over, None)
    removed = [await look(store) for _ in range(4)]
    assert sum(removed) == 1
    assert await nothing_is_left_of(store, file_id)
    assert not await nothing_is_left_of(store, awaited)


async def test_what_attempts_have_left_is_deleted_with_their_operation(store: Store) -> None:
    first, other = await running(store), await running(store)
    left = [await begun(store, first, epoch) for epoch in (1, 2, 10)]
    others = await begun(store, other)
    await ended(store, first, None)
    await store.content_retention.delete_of([first])
    for file_id in left:
        assert await nothing_is_left_of(store, file_id)
    assert not await nothing_is_left_of(store, others)


async def test_what_an_operation_has_stored_is_deleted_with_it(store: Store) -> None:
    shared, own = await uploaded(store), await uploaded(store)
    first, second = await running(store, shared), await running(store, own)
    third = await running(store, shared)
    result = ResultContent(content_type="image/png", content=CONTENT)
    place = await store.results.put(first, 1, result)
    await ended(store, first, place)
    for _ in range(2):  # after a crash it is done again
        await store.content_retention.delete_of([first, second], kept_s=AT_ONCE)
    assert place.file_id is not None
    assert await store.results._files.find(place.file_id) is None
    assert await store.results._files.piece(place.file_id, 0) is None
    assert await store.inputs.find(own, tenant=TENANT) is None
    assert await store.inputs.find(shared, tenant=TENANT) is not None
    await store.content_retention.delete_of([first, third], kept_s=AT_ONCE)
    assert await store.inputs.find(shared, tenant=TENANT) is None


async def test_an_input_stays_for_a_request_that_is_accepted_while_its_last_user_is_deleted(
    store: Store,
) -> None:
    input_id = await uploaded(store)
    first = await running(store, input_id)
    await store.inputs._files.used([input_id])
    long_ago = await store.time() - timedelta(days=2)
    await store.inputs._files._files.update_one(
        {"_id": input_id}, {"$set": {"uploadDate": long_ago}}
    )
    assert await store.inputs.keep({input_id}, tenant=TENANT) == set()
    await store.content_retention.delete_of([first])
    await running(store, input_id)
    assert await store.inputs.find(input_id, tenant=TENANT) is not None
    assert await store.inputs.piece(input_id, 0) == PIECES[0]


async def test_a_young_input_goes_in_time_after_its_last_operation(store: Store) -> None:
    input_id = await uploaded(store)
    first = await running(store, input_id)
    await store.inputs._files.used([input_id])
    await store.content_retention.delete_of([first])
    assert await store.inputs.find(input_id, tenant=TENANT) is not None
    await store.operations._collection.delete_one({"_id": first})
    assert await look(store) == 1
    assert await store.inputs.find(input_id, tenant=TENANT) is None


async def test_an_input_that_is_named_again_is_kept_for_another_day(store: Store) -> None:
    input_id = await uploaded(store)
    found = await store.results._files.unused(AT_ONCE, limit=10)
    assert found == []
    assert await store.inputs._files.unused(AT_ONCE, limit=10) == [input_id]
    await store.inputs._files.used([input_id])
    assert await store.inputs._files.unused(AT_ONCE, limit=10) == []
    missing = new_operation_id()
    assert await store.inputs.keep({input_id, missing}, tenant=TENANT) == {missing}
    assert await store.inputs._files.unused(AT_ONCE, limit=10) == [input_id]
