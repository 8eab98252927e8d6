"""Taking in step by step what the record has to be asked about first."""

from collections.abc import Sequence

import pytest

from modelyard.contract.errors import ErrorCode, ErrorInfo, StoreUnavailableError
from modelyard.contract.states import OperationState
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.records import NewOperation
from tests.fakes.broker_links import Fate
from tests.support.dispatcher.parts import HOST, INCARNATION, JOB, DispatcherParts, new_operation


@pytest.fixture
async def parts() -> DispatcherParts:
    made = DispatcherParts()
    await made.begin()
    return made


async def take(parts: DispatcherParts, *new: NewOperation) -> None:
    await parts.ordered.take(new, {one.operation_id: {one.payload_hash: None} for one in new})


def ids(new: Sequence[NewOperation]) -> list[str]:
    return [one.operation_id for one in new]


async def test_operations_come_into_line_in_the_brokers_order(parts: DispatcherParts) -> None:
    many = [new_operation() for _ in range(3)]
    await take(parts, *many)
    assert await parts.in_line() == ids(many)
    assert parts.woken == [JOB]
    assert await parts.told() == ["operation.queued"] * 3


async def test_what_was_recorded_earlier_comes_before(parts: DispatcherParts) -> None:
    many = [new_operation() for _ in range(4)]
    for one in many:
        await parts.store.operations.record([one])
    await parts.store.operations.mark_unpublished(ids(many[:2]))
    await take(parts, many[2], many[3])
    assert await parts.in_line() == ids(many)
    assert await parts.told() == ["operation.queued"] * 2  # the others have their own messages


async def test_a_redelivery_keeps_its_place_and_is_told_again(parts: DispatcherParts) -> None:
    first, second = new_operation(), new_operation()
    await take(parts, first, second)
    before = parts.database.documents("operations")
    await take(parts, first)
    assert parts.database.documents("operations") == before
    assert len(await parts.told()) == 3


async def test_of_one_that_has_started_nothing_is_told_again(parts: DispatcherParts) -> None:
    one = new_operation()
    await parts.put_in_line(one)
    claim = DispatchClaim(await parts.recorded(one), HOST, INCARNATION, 1)
    await parts.store.operations.claim([claim], token="t")
    await take(parts, one)
    assert (await parts.recorded(one)).state is OperationState.DISPATCHED
    assert await parts.told() == []


async def test_what_is_in_memory_of_its_job_is_dropped(parts: DispatcherParts) -> None:
    await parts.lines.read([JOB])
    one = new_operation()
    await take(parts, one)
    assert parts.lines.line(JOB) is None


@pytest.mark.parametrize("recorded", [False, True])
async def test_the_first_payload_of_an_id_counts_and_others_are_noted(
    parts: DispatcherParts, *, recorded: bool
) -> None:
    first = new_operation()
    other = new_operation(input="another").model_copy(update={"operation_id": first.operation_id})
    if recorded:
        await parts.store.operations.record([first])
    payloads = {first.operation_id: {first.payload_hash: None, other.payload_hash: None}}
    await parts.ordered.take([other if recorded else first], payloads)
    kept = await parts.recorded(first)
    assert (kept.payload_hash, kept.payload_mismatch) == (first.payload_hash, True)
    assert await parts.in_line() == [first.operation_id]
    (note,) = parts.database.documents("audit")
    assert (note["kept_hash"], note["dropped_hash"]) == (first.payload_hash, other.payload_hash)


async def test_what_is_rejected_is_recorded_as_such(parts: DispatcherParts) -> None:
    error = ErrorInfo.of(ErrorCode.INVALID_REQUEST)
    wrong = new_operation().model_copy(update={"rejection": error})
    await take(parts, wrong)
    assert (await parts.recorded(wrong)).state is OperationState.REJECTED
    assert await parts.in_line() == []
    assert await parts.told() == ["operation.rejected"]


async def test_a_repetition_that_is_rejected_changes_and_tells_nothing(
    parts: DispatcherParts,
) -> None:
    one = new_operation()
    await parts.put_in_line(one)
    error = ErrorInfo.of(ErrorCode.INVALID_REQUEST)
    await take(parts, one.model_copy(update={"rejection": error}))
    assert (await parts.recorded(one)).state is OperationState.QUEUED
    assert await parts.told() == []


async def test_a_valid_request_under_the_id_of_a_rejected_one_tells_nothing(
    parts: DispatcherParts,
) -> None:
    error = ErrorInfo.of(ErrorCode.INVALID_REQUEST)
    one = new_operation()
    await take(parts, one.model_copy(update={"rejection": error, "payload_hash": "wrong"}))
    await take(parts, one)
    assert (await parts.recorded(one)).state is OperationState.REJECTED
    assert await parts.told() == ["operation.rejected"]


@pytest.mark.parametrize("fate", ["lost_before", "lost_after"])
@pytest.mark.parametrize("call", range(6))  # each of its calls to MongoDB
async def test_what_fails_is_done_again_without_doing_anything_twice(
    parts: DispatcherParts, call: int, fate: Fate
) -> None:
    many = [new_operation() for _ in range(3)]
    await parts.store.operations.record(many[:2])
    await parts.store.operations.mark_unpublished([many[0].operation_id])
    parts.link.fates.extend([None] * call)
    parts.link.fates.append(fate)
    with pytest.raises(StoreUnavailableError):
        await take(parts, many[1], many[2])
    assert await parts.told() == []
    await take(parts, many[1], many[2])
    assert await parts.in_line() == ids(many)
    assert len(await parts.told()) == 2
