"""Replies to publishers whose idempotency key was used before."""

from collections.abc import Sequence

import pytest

from dispatcher.events import operation_event
from dispatcher.intake.consumer import IntakeBatch
from modelyard.contract.content.media_types import JSON_TYPE
from modelyard.contract.errors import ErrorCode, ErrorInfo, StoreUnavailableError
from modelyard.contract.messages import MAX_EVENT_RESULT_BYTES
from modelyard.contract.states import OperationState, Verb
from modelyard.store.records import NewOperation, ReplyAddress
from tests.fakes.broker_links import Fate
from tests.support.dispatcher.parts import DispatcherParts, new_operation

FIRST = ReplyAddress(queue="amq.gen-first", correlation_id="c-1")
SECOND = ReplyAddress(queue="amq.gen-second", correlation_id="c-2")
Told = tuple[str, str | None, str]


@pytest.fixture
async def parts() -> DispatcherParts:
    made = DispatcherParts()
    await made.begin()
    return made


def asking(one: NewOperation, reply: ReplyAddress | None) -> NewOperation:
    """Return the same request, from a publisher that waits at this address."""
    return one.model_copy(update={"reply": reply})


def another(one: NewOperation, reply: ReplyAddress | None) -> NewOperation:
    """Return another request with the same key."""
    other = new_operation(input="another").model_copy(update={"operation_id": one.operation_id})
    return asking(other, reply)


async def take(parts: DispatcherParts, *new: NewOperation) -> None:
    """Take a batch in, as `Intake` does."""
    batch = IntakeBatch()
    for one in new:
        batch.add(one, redelivered=False)
    probably_new, others = batch.split()
    if probably_new:
        others += await parts.first_pass.take(probably_new)
    if others:
        await parts.ordered.take(others, batch.payloads)


async def end(parts: DispatcherParts, **fields: object) -> None:
    """Have the only operation succeed in the record."""
    (document,) = parts.database.documents("operations")
    ended = {"state": OperationState.SUCCEEDED, "open": False, "phase": None, "progress": None}
    parts.database.write("operations", document | ended | fields)


async def heard(parts: DispatcherParts) -> list[Told]:
    """Return where replies went, for what, and their types, once all are sent."""
    await parts.told()
    return [(one.queue, one.correlation_id, event["type"]) for one, event in parts.replies]


def at(address: ReplyAddress, what: str) -> Told:
    return (address.queue, address.correlation_id, f"operation.{what}")


@pytest.mark.parametrize("first", [None, FIRST])
async def test_an_end_is_told_again_where_its_publisher_waits_now(
    parts: DispatcherParts, first: ReplyAddress | None
) -> None:
    one = new_operation()
    await take(parts, asking(one, first))
    result = {
        "result_json": '{"y":[1.5]}',
        "result_bytes": 11,
        "result_type": JSON_TYPE,
    }
    await end(parts, **result)
    await take(parts, asking(one, SECOND))
    assert await heard(parts) == [at(SECOND, "succeeded")]
    _, event = parts.replies[0]
    assert (event["operation_id"], event["result"]) == (one.operation_id, {"y": [1.5]})
    assert (await parts.recorded(one)).reply == first  # nobody reads it any more
    assert await parts.told() == ["operation.dispatched"]  # nobody else hears it again


async def test_a_large_result_is_not_told_again(parts: DispatcherParts) -> None:
    one = new_operation()
    await take(parts, one)
    large = MAX_EVENT_RESULT_BYTES + 1
    await end(parts, result_json="1" * large, result_bytes=large, result_type=JSON_TYPE)
    await take(parts, asking(one, SECOND))
    assert await heard(parts) == [at(SECOND, "succeeded")]
    _, event = parts.replies[0]
    assert event["result_bytes"] == large
    assert "result" not in event


@pytest.mark.parametrize("first", [None, FIRST])
async def test_an_end_that_is_still_to_come_is_told_at_the_newest_address(
    parts: DispatcherParts, first: ReplyAddress | None
) -> None:
    one = new_operation()
    await take(parts, asking(one, first))
    before = await parts.recorded(one)
    await take(parts, asking(one, SECOND))
    await take(parts, asking(one, None))
    assert (await parts.recorded(one)).reply == SECOND
    assert await heard(parts) == []
    # The end was being written by somebody who had read the operation before it came again.
    ended = before.model_copy(update={"state": OperationState.SUCCEEDED})
    parts.event_log.note([operation_event(ended)])
    assert await heard(parts) == [at(SECOND, "succeeded")]
    # No end is redirected but the one that was asked for.
    parts.event_log.note([operation_event(ended)])
    expected = [] if first is None else [at(first, "succeeded")]
    assert await heard(parts) == [at(SECOND, "succeeded"), *expected]


async def test_what_is_in_memory_has_the_newest_address(parts: DispatcherParts) -> None:
    one = new_operation()
    await take(parts, asking(one, FIRST))
    await take(parts, asking(one, SECOND))
    await parts.lines.read([one.job_id or ""])
    held = parts.lines.operation(one.job_id or "", one.operation_id)
    assert held is not None
    assert held.reply == SECOND


async def test_a_request_that_only_http_has_recorded_gets_the_address(
    parts: DispatcherParts,
) -> None:
    one = new_operation()
    await parts.store.operations.record([one])
    await take(parts, asking(one, SECOND))
    assert (await parts.recorded(one)).reply == SECOND


async def test_of_one_batch_the_newest_address_counts(parts: DispatcherParts) -> None:
    one = new_operation()
    await take(parts, asking(one, FIRST), asking(one, SECOND), asking(one, None))
    assert (await parts.recorded(one)).reply == SECOND


@pytest.mark.parametrize("ended", [False, True])
async def test_another_payload_is_told_that_the_key_is_not_its_own(
    parts: DispatcherParts, *, ended: bool
) -> None:
    one = new_operation()
    await take(parts, asking(one, FIRST))
    if ended:
        await end(parts)
    await take(parts, another(one, SECOND))
    assert await heard(parts) == [at(SECOND, "payload_mismatch")]
    _, event = parts.replies[0]
    assert event["operation_id"] == one.operation_id
    assert event["error"]["code"] == ErrorCode.IDEMPOTENCY_KEY_REUSED
    assert "state" not in event
    there = await parts.recorded(one)
    assert (there.reply, there.payload_mismatch) == (FIRST, True)


async def test_both_payloads_of_a_batch_are_answered(parts: DispatcherParts) -> None:
    one = new_operation()
    await take(parts, asking(one, FIRST), another(one, SECOND))
    assert await heard(parts) == [at(SECOND, "payload_mismatch")]
    assert (await parts.recorded(one)).reply == FIRST


async def test_a_bad_request_with_a_used_key_is_no_end_of_its_operation(
    parts: DispatcherParts,
) -> None:
    one = new_operation()
    await take(parts, asking(one, FIRST))
    error = ErrorInfo.of(ErrorCode.INVALID_REQUEST)
    bad = another(one, SECOND).model_copy(update={"rejection": error})
    await take(parts, bad)
    assert await heard(parts) == [at(SECOND, "payload_mismatch")]
    assert await parts.told() == ["operation.dispatched"]


async def test_a_rejection_is_told_once_to_each_who_asks(parts: DispatcherParts) -> None:
    error = ErrorInfo.of(ErrorCode.INVALID_REQUEST)
    bad = new_operation(Verb.TERMINATE).model_copy(update={"rejection": error})
    await take(parts, asking(bad, FIRST))
    await take(parts, asking(bad, SECOND))
    assert await heard(parts) == [at(FIRST, "rejected"), at(SECOND, "rejected")]


async def test_nothing_is_asked_for_those_who_do_not_wait(parts: DispatcherParts) -> None:
    one = new_operation()
    await take(parts, one)
    await end(parts)
    calls = [parts.link.calls.total()]
    for reply in (None, SECOND):
        payloads = {one.operation_id: {one.payload_hash: reply}}
        await parts.ordered.take([asking(one, reply)], payloads)
        calls.append(parts.link.calls.total())
    assert calls[2] - calls[1] == calls[1] - calls[0] + 3


@pytest.mark.parametrize("fate", ["lost_before", "lost_after"])
@pytest.mark.parametrize("call", [3, 4, 5])
async def test_what_fails_is_done_again(parts: DispatcherParts, call: int, fate: Fate) -> None:
    one = new_operation()
    await take(parts, one)
    await end(parts)
    again = asking(one, SECOND)
    payloads = {one.operation_id: {one.payload_hash: SECOND}}
    await parts.store.time()
    parts.link.fates.extend([*_unharmed(call), fate])
    with pytest.raises(StoreUnavailableError):
        await parts.ordered.take([again], payloads)
    assert await heard(parts) == []
    await parts.ordered.take([again], payloads)
    assert await heard(parts) == [at(SECOND, "succeeded")]


def _unharmed(calls: int) -> Sequence[Fate | None]:
    return [None] * calls
