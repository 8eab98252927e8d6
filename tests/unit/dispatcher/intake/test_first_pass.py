"""The first pass over new operations: one write takes them in and starts what may start."""

from collections.abc import Sequence

import pytest

from modelyard.contract.errors import ErrorCode, ErrorInfo, StoreUnavailableError
from modelyard.contract.states import JobState, Liveness, OperationState, Verb
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import NewOperation
from tests.fakes.broker_links import Call, Fate
from tests.support.dispatcher.parts import HOST, INCARNATION, JOB, DispatcherParts, new_operation

QUEUED, DISPATCHED = OperationState.QUEUED, OperationState.DISPATCHED


@pytest.fixture
async def parts() -> DispatcherParts:
    """Return parts that have the job and its host in memory."""
    made = DispatcherParts()
    await made.begin()
    await made.lines.read([JOB])
    await made.fleet.hosts()
    await made.positions.take(1)
    return made


async def states(parts: DispatcherParts, *new: NewOperation) -> list[OperationState]:
    return [(await parts.recorded(one)).state for one in new]


async def left_unpublished(parts: DispatcherParts, job_id: str = JOB) -> NewOperation:
    """Have an operation in the record that the broker did not confirm to its gateway."""
    one = new_operation(job_id=job_id)
    await parts.store.operations.record([one])
    await parts.store.operations.mark_unpublished([one.operation_id])
    return one


# --- what may start ---


@pytest.mark.parametrize("recorded", [False, True], ids=["by_nobody", "by_the_gateway"])
async def test_an_inference_is_taken_in_and_dispatched_with_one_write(
    parts: DispatcherParts, *, recorded: bool
) -> None:
    one = new_operation()
    if recorded:
        await parts.store.operations.record([one])
    before = parts.link.calls[Call.WRITE]
    assert ids(await parts.first_pass.take([one])) == ids([])
    assert parts.link.calls[Call.WRITE] == before + 1
    there = await parts.recorded(one)
    assert (there.state, there.epoch, there.generation) == (DISPATCHED, 1, 1)
    assert (there.host_id, there.incarnation) == (HOST, INCARNATION)
    assert await parts.in_line() == [one.operation_id]
    assert parts.commanded == [one.operation_id]
    assert await parts.told() == ["operation.dispatched"]
    assert parts.lines.operation(JOB, one.operation_id) is not None
    assert await parts.memory_is_as_the_record()


@pytest.mark.parametrize("accepted", [False, True], ids=["by_nobody", "by_a_gateway"])
async def test_the_time_is_read_only_for_what_no_gateway_has_accepted(
    parts: DispatcherParts, *, accepted: bool
) -> None:
    one = new_operation()
    if accepted:
        one = one.model_copy(update={"accepted": (parts.database.now, 0)})
    before = parts.link.calls[Call.READ]
    await parts.first_pass.take([one])
    assert parts.link.calls[Call.READ] == before + (0 if accepted else 1)


def ids(operations: Sequence[NewOperation]) -> list[str]:
    return [one.operation_id for one in operations]


async def test_only_as_many_start_as_may_run_together(parts: DispatcherParts) -> None:
    many = [new_operation() for _ in range(3)]
    assert ids(await parts.first_pass.take(many)) == ids([])
    assert await states(parts, *many) == [DISPATCHED, DISPATCHED, QUEUED]
    assert await parts.in_line() == [one.operation_id for one in many]
    assert parts.commanded == [one.operation_id for one in many[:2]]
    told = ["operation.dispatched", "operation.dispatched", "operation.queued"]
    assert await parts.told() == told
    assert await parts.memory_is_as_the_record()
    after = new_operation()
    await parts.first_pass.take([after])
    assert await states(parts, after) == [QUEUED]


async def test_what_waits_already_is_left_to_the_scheduler(parts: DispatcherParts) -> None:
    waiting, one = new_operation(), new_operation()
    await parts.put_in_line(waiting)
    await parts.first_pass.take([one])
    assert await parts.in_line() == [waiting.operation_id, one.operation_id]
    assert await states(parts, waiting, one) == [QUEUED, DISPATCHED]  # both may run together
    assert parts.commanded == [one.operation_id]


@pytest.mark.parametrize("verb", [Verb.TERMINATE, Verb.DEPLOY_UNLOAD, Verb.DEPLOY_LOAD])
@pytest.mark.parametrize("together", [False, True])
async def test_nothing_starts_behind_what_has_the_job_alone(
    parts: DispatcherParts, verb: Verb, *, together: bool
) -> None:
    alone, one = new_operation(verb), new_operation()
    if not together:
        await parts.put_in_line(alone)
    assert ids(await parts.first_pass.take([alone, one] if together else [one])) == ids([])
    assert await parts.in_line() == [alone.operation_id, one.operation_id]
    assert await states(parts, alone, one) == [QUEUED, QUEUED]
    assert parts.commanded == []
    assert await parts.memory_is_as_the_record()


@pytest.mark.parametrize("liveness", [Liveness.SUSPECT, Liveness.LOST, None])
async def test_nothing_starts_on_a_host_that_is_not_online(
    parts: DispatcherParts, liveness: Liveness | None
) -> None:
    hosts = parts.database.collections["hosts"]
    if liveness is None:
        parts.database.write("jobs", parts.database.documents("jobs")[0] | {"host_id": "other"})
        parts.lines.forget([JOB])
    else:
        parts.database.write("hosts", hosts[HOST] | {"liveness": liveness})
        parts.fleet.mark([HOST])
    one = new_operation()
    assert ids(await parts.first_pass.take([one])) == ids([])
    assert await states(parts, one) == [QUEUED]
    assert parts.commanded == []
    assert await parts.told() == ["operation.queued"]


async def test_a_job_of_which_nobody_has_heard_is_recorded_first(parts: DispatcherParts) -> None:
    one = new_operation(Verb.DEPLOY_CREATE, "new", model="m")
    assert ids(await parts.first_pass.take([one])) == ids([])
    assert await parts.in_line("new") == [one.operation_id]
    job = await parts.store.jobs.get("new")
    assert job is not None
    assert job.state is JobState.NONE
    assert parts.lines.operation("new", one.operation_id) is not None
    assert await parts.memory_is_as_the_record("new")


async def test_what_is_wrong_with_a_request_is_recorded_with_the_others(
    parts: DispatcherParts,
) -> None:
    error = ErrorInfo.of(ErrorCode.INVALID_REQUEST)
    wrong = new_operation().model_copy(update={"rejection": error, "job_id": None})
    of_the_job, right = wrong.model_copy(update={"job_id": JOB}), new_operation()
    of_the_job = of_the_job.model_copy(update={"operation_id": new_operation().operation_id})
    assert ids(await parts.first_pass.take([wrong, of_the_job, right])) == ids([])
    rejected = OperationState.REJECTED
    assert await states(parts, wrong, of_the_job, right) == [rejected, rejected, DISPATCHED]
    told = ["operation.rejected", "operation.rejected", "operation.dispatched"]
    assert await parts.told() == told
    assert await parts.in_line() == [right.operation_id]
    assert await parts.memory_is_as_the_record()


# --- what is not that simple ---


async def test_what_was_taken_in_before_is_left_alone(parts: DispatcherParts) -> None:
    one = new_operation()
    await parts.first_pass.take([one])
    before = parts.database.documents("operations")
    assert ids(await parts.first_pass.take([one])) == ids([one])
    assert parts.database.documents("operations") == before
    assert parts.commanded == [one.operation_id]
    assert await parts.memory_is_as_the_record()


async def test_what_is_recorded_with_another_payload_is_left_alone(parts: DispatcherParts) -> None:
    first = new_operation()
    await parts.store.operations.record([first])
    other = new_operation(input="another").model_copy(update={"operation_id": first.operation_id})
    assert ids(await parts.first_pass.take([other])) == ids([other])
    there = await parts.recorded(first)
    assert (there.line, there.payload_hash) == (None, first.payload_hash)
    assert parts.commanded == []


@pytest.mark.parametrize("ended", [False, True])
async def test_what_was_cancelled_before_it_came_does_not_start(
    parts: DispatcherParts, *, ended: bool
) -> None:
    one = new_operation()
    await parts.store.operations.record([one])
    await parts.store.operations.request_cancel(one.operation_id)
    if ended:
        ending = QueuedEnding(await parts.recorded(one), OperationState.CANCELLED)
        await parts.store.operations.end_queued([ending], token="t")
    assert ids(await parts.first_pass.take([one])) == ids([one])
    assert await states(parts, one) == [OperationState.CANCELLED if ended else QUEUED]
    assert parts.commanded == []
    assert await parts.told() == []


async def test_an_operation_that_was_never_published_goes_before(parts: DispatcherParts) -> None:
    unpublished, one = await left_unpublished(parts), new_operation()
    back = await parts.first_pass.take([one])
    assert ids(back) == ids([one])
    there = await parts.recorded(one)
    assert (there.state, there.line, there.epoch) == (QUEUED, None, 1)
    assert parts.commanded == []
    assert parts.lines.line(JOB) is None
    await parts.ordered.take(back, {one.operation_id: {one.payload_hash: None}})
    assert await parts.in_line() == [unpublished.operation_id, one.operation_id]


async def test_what_was_not_published_and_comes_after_all_starts(parts: DispatcherParts) -> None:
    """Only its confirmation was lost."""
    one = await left_unpublished(parts)
    assert ids(await parts.first_pass.take([one])) == ids([])
    assert parts.commanded == [one.operation_id]


async def test_what_waits_in_the_queue_behind_does_not_matter(parts: DispatcherParts) -> None:
    other, one = new_operation(), new_operation()
    await parts.store.operations.record([other])
    await parts.store.operations.record([one])
    assert ids(await parts.first_pass.take([one])) == ids([])
    assert await parts.in_line() == [one.operation_id]
    assert parts.commanded == [one.operation_id]


async def test_a_troubled_job_does_not_hold_up_another_one(parts: DispatcherParts) -> None:
    parts.load_job("other")
    await left_unpublished(parts, "other")
    ours, first, second = new_operation(), new_operation(job_id="other"), new_operation()
    second = second.model_copy(update={"job_id": "other"})
    assert ids(await parts.first_pass.take([first, ours, second])) == ids([first, second])
    assert await states(parts, first, ours, second) == [QUEUED, DISPATCHED, QUEUED]
    assert await parts.in_line("other") == []
    assert parts.commanded == [ours.operation_id]
    assert await parts.told() == ["operation.dispatched"]
    assert await parts.memory_is_as_the_record()
    assert parts.lines.line("other") is None


async def test_all_operations_of_a_job_go_back_with_one_of_them(parts: DispatcherParts) -> None:
    again, behind = new_operation(), new_operation()
    await parts.put_in_line(again)
    assert ids(await parts.first_pass.take([again, behind])) == ids([again, behind])
    assert await parts.in_line() == [again.operation_id]
    assert parts.commanded == []


# --- what fails ---


@pytest.mark.parametrize("fate", ["lost_before", "lost_after"])
@pytest.mark.parametrize("call", range(3), ids=["enter", "unpublished", "withdraw"])
async def test_after_a_failure_nothing_is_in_memory_that_is_not_in_the_record(
    parts: DispatcherParts, call: int, fate: Fate
) -> None:
    if call > 0:
        await left_unpublished(parts)
    one, behind = new_operation(), new_operation()
    await parts.store.time()  # it is known for some seconds
    parts.link.fates.extend([None] * call)
    parts.link.fates.append(fate)
    with pytest.raises(StoreUnavailableError):
        await parts.first_pass.take([one, behind])
    assert parts.lines.line(JOB) is None
    assert parts.commanded == []
    assert await parts.told() == []
    # The batch is handled again: nothing of it is lost, nothing is there twice.
    back = await parts.first_pass.take([one, behind])
    await parts.ordered.take(back, {it.operation_id: {it.payload_hash: None} for it in back})
    assert (await parts.in_line())[-2:] == [one.operation_id, behind.operation_id]
    await parts.lines.read([JOB])
    assert await parts.memory_is_as_the_record()


async def test_a_job_that_is_dropped_from_memory_just_before_starts_nothing(
    parts: DispatcherParts,
) -> None:
    """Another write of this process may come between the read of a job and the first pass."""
    one = new_operation()
    take = parts.positions.take

    async def interrupted(count: int) -> range:
        parts.lines.forget([JOB])
        return await take(count)

    parts.positions.take = interrupted  # type: ignore[method-assign]
    assert ids(await parts.first_pass.take([one])) == ids([])
    assert await states(parts, one) == [QUEUED]
    assert await parts.in_line() == [one.operation_id]
    assert parts.commanded == []
