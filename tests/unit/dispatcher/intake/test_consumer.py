"""Intake: which way the operations of a batch go, and when their messages are acked."""

from collections.abc import AsyncIterator

import pytest

from dispatcher.intake.consumer import Intake, IntakeBatch, IntakeStages
from dispatcher.intake.decoder import MessageDecoder
from dispatcher.intake.overdue import OverdueOperations
from dispatcher.intake.reader import JobsReader
from dispatcher.senders import Senders
from modelyard.broker import Delivery, Subscription
from modelyard.contract.errors import StoreUnavailableError
from modelyard.contract.message_types import CANCEL_TYPE, SUBMISSION_TYPE
from modelyard.contract.messages import CancelNotice, JobRequest, Submission, SubmittedRequest
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.topology import JOBS, JOBS_QUEUE, SUBMIT_KEY
from modelyard.store.records import NewOperation
from tests.support.dispatcher.parts import JOB, DispatcherParts, new_operation

# --- which way ---


def batch_of(*new: tuple[NewOperation, bool]) -> IntakeBatch:
    batch = IntakeBatch()
    for one, redelivered in new:
        batch.add(one, redelivered=redelivered)
    return batch


def test_what_comes_for_the_first_time_is_probably_new() -> None:
    first, second = new_operation(), new_operation(job_id="other")
    assert batch_of((first, False), (second, False)).split() == ([first, second], [])


def test_all_operations_of_a_job_go_the_same_way_in_their_order() -> None:
    before, again, behind = (new_operation() for _ in range(3))
    other = new_operation(job_id="other")
    batch = batch_of((before, False), (again, True), (other, False), (behind, False))
    assert batch.split() == ([other], [before, again, behind])


def test_an_operation_that_comes_twice_in_a_batch_is_one() -> None:
    one = new_operation()
    assert batch_of((one, False), (one, False)).split() == ([one], [])
    assert batch_of((one, False), (one, True)).split() == ([], [one])


def test_an_id_with_two_payloads_needs_a_look_at_the_record() -> None:
    one, behind, other = new_operation(), new_operation(), new_operation(job_id="other")
    changed = new_operation(input="another").model_copy(update={"operation_id": one.operation_id})
    batch = batch_of((one, False), (changed, False), (other, False), (behind, False))
    assert batch.split() == ([other], [one, behind])
    assert batch.payloads[one.operation_id].keys() == {one.payload_hash, changed.payload_hash}


def test_one_without_a_job_takes_no_others_along() -> None:
    nobodys = new_operation().model_copy(update={"job_id": None})
    other = new_operation().model_copy(update={"job_id": None})
    assert batch_of((nobodys, True), (other, False)).split() == ([other], [nobodys])


# --- from message to ack ---


class Consumer:
    """Intake with a subscription of its own to the jobs queue."""

    def __init__(self, parts: DispatcherParts, subscription: Subscription) -> None:
        self.parts = parts
        self.subscription = subscription
        self.cancels = 0
        user = parts.broker.user
        senders = Senders(user, gateways=(), workers=user)
        overdue = OverdueOperations(parts.store, parts.broker, parts.positions, parts.wake)
        self._intake = Intake(
            parts.event_log,
            JobsReader(parts.broker, senders, MessageDecoder()),
            IntakeStages(parts.first_pass, parts.ordered, overdue),
            wake=parts.wake,
            on_cancel=self._on_cancel,
        )

    async def publish(self, *new: NewOperation) -> None:
        """Publish operations in one message, as a gateway does."""
        requests = tuple(
            SubmittedRequest(operation_id=one.operation_id, request=_request(one)) for one in new
        )
        body = Submission(requests=requests).model_dump_json(exclude_defaults=True).encode()
        await self.parts.broker.publish(JOBS, SUBMIT_KEY, body, message_type=SUBMISSION_TYPE)

    async def delivered(self, messages: int) -> list[Delivery]:
        """Return the next batch, of so many messages."""
        batch = await anext(aiter(self.subscription.batches(max_items=messages)))
        assert len(batch) == messages
        return batch

    async def handle(self, batch: list[Delivery]) -> None:
        """Have intake handle a batch."""
        await self._intake.handle(self.subscription, batch)

    def _on_cancel(self) -> None:
        self.cancels += 1


def _request(one: NewOperation) -> JobRequest:
    fields = {"job_id": one.job_id, "operation_type": one.verb, "model": one.model}
    return JobRequest.model_validate(fields | ({"input": {"n": 1}} if one.input_json else {}))


@pytest.fixture
async def consumer() -> AsyncIterator[Consumer]:
    parts = DispatcherParts()
    await parts.begin()
    await parts.broker.declare([JOBS_QUEUE])
    async with parts.broker.subscribe(JOBS_QUEUE, prefetch=10) as subscription:
        yield Consumer(parts, subscription)


async def test_a_message_is_acked_once_its_events_are_published(consumer: Consumer) -> None:
    one = new_operation()
    await consumer.publish(one)
    (delivery,) = await consumer.delivered(1)
    await consumer.handle([delivery])
    assert consumer.parts.commanded == [one.operation_id]
    assert not delivery.settled
    assert await consumer.parts.told() == ["operation.dispatched"]
    assert delivery.settled
    assert consumer.parts.woken == [JOB]


async def test_a_batch_that_is_handled_again_before_its_ack_is_taken_in_once(
    consumer: Consumer,
) -> None:
    one = new_operation()
    await consumer.publish(one)
    batch = await consumer.delivered(1)
    await consumer.handle(batch)
    await consumer.handle(batch)
    assert await consumer.parts.in_line() == [one.operation_id]
    assert consumer.parts.commanded == [one.operation_id]
    await consumer.parts.told()
    assert batch[0].settled


async def test_a_redelivery_keeps_its_place(consumer: Consumer) -> None:
    first, second = new_operation(), new_operation()
    await consumer.publish(first)
    await consumer.handle(await consumer.delivered(1))
    consumer.parts.broker.cut()
    async with consumer.parts.broker.subscribe(JOBS_QUEUE, prefetch=10) as subscription:
        again = Consumer(consumer.parts, subscription)
        await again.publish(second)
        batch = await again.delivered(2)
        assert [one.redelivered for one in batch] == [True, False]
        await again.handle(batch)
        await again.parts.told()  # the first subscription's ack comes first, and fails
        assert all(one.settled for one in batch)
    assert await consumer.parts.in_line() == [first.operation_id, second.operation_id]
    assert consumer.parts.commanded == [first.operation_id]  # the other waits for the scheduler
    assert consumer.parts.woken == [JOB, JOB]


async def test_what_has_to_be_put_in_order_is_within_the_same_batch(consumer: Consumer) -> None:
    unpublished, one = new_operation(), new_operation()
    await consumer.parts.store.operations.record([unpublished])
    await consumer.parts.store.operations.mark_unpublished([unpublished.operation_id])
    other = new_operation(Verb.DEPLOY_CREATE, "other", model="m")
    await consumer.publish(one, other)
    batch = await consumer.delivered(1)
    await consumer.handle(batch)
    assert await consumer.parts.in_line() == [unpublished.operation_id, one.operation_id]
    assert await consumer.parts.in_line("other") == [other.operation_id]
    assert await consumer.parts.told() == ["operation.queued"] * 2
    assert batch[0].settled
    assert set(consumer.parts.woken) == {JOB, "other"}


async def test_a_batch_that_fails_is_neither_acked_nor_told(consumer: Consumer) -> None:
    one = new_operation()
    await consumer.publish(one)
    batch = await consumer.delivered(1)
    consumer.parts.link.up = False
    with pytest.raises(StoreUnavailableError):
        await consumer.handle(batch)
    consumer.parts.link.up = True
    assert await consumer.parts.told() == []
    assert not batch[0].settled
    await consumer.handle(batch)
    await consumer.parts.told()
    assert batch[0].settled
    assert (await consumer.parts.recorded(one)).state is OperationState.DISPATCHED


async def test_a_cancel_request_is_passed_on_and_acked(consumer: Consumer) -> None:
    wish = CancelNotice(operation_ids=(new_operation().operation_id,))
    await consumer.parts.broker.publish(
        JOBS, SUBMIT_KEY, wish.model_dump_json().encode(), message_type=CANCEL_TYPE
    )
    batch = await consumer.delivered(1)
    await consumer.handle(batch)
    await consumer.parts.told()
    assert consumer.cancels == 1
    assert batch[0].settled


async def test_whoever_asks_for_overdue_operations_gets_them_behind_earlier_messages(
    consumer: Consumer,
) -> None:
    parts = consumer.parts
    overdue, brought = new_operation(), new_operation()
    await parts.store.operations.record([overdue])
    parts.pass_time(10.0)
    await consumer.publish(brought)
    await OverdueOperations(parts.store, parts.broker, parts.positions, parts.wake).ask()
    batch = await consumer.delivered(2)
    await consumer.handle(batch)
    await parts.told()
    assert await parts.in_line() == [brought.operation_id, overdue.operation_id]
    assert all(one.settled for one in batch)
