"""The jobs in memory: what is held, what drops it, what may not overwrite it, and how much."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dispatcher.scheduling import lines as bounds
from dispatcher.scheduling.lines import Lines, LinesRead
from modelyard.contract.errors import StoreUnavailableError
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store.jobs import LINE_HEAD, JobEffect, JobLines
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.operations import QueuedEnding
from modelyard.store.records import JobLine, JobRecord, NewOperation, OperationRecord
from tests.fakes.broker_links import Call, Fate
from tests.support.dispatcher.parts import HOST, INCARNATION, JOB, DispatcherParts, new_operation

BYTES_OF_AN_OPERATION = 3_000
"""At most, without its input: tens of thousands are in memory."""


@pytest.fixture
async def parts() -> DispatcherParts:
    made = DispatcherParts()
    await made.begin()
    return made


async def read_line(lines: Lines, job_id: str = JOB) -> list[str]:
    """Read a job and return the ids of its operations."""
    await lines.read([job_id])
    return held(lines, job_id)


def held(lines: Lines, job_id: str = JOB) -> list[str]:
    """Return the ids of a job's operations that are in memory."""
    line = lines.line(job_id)
    return [one.operation_id for one in line.operations] if line else []


def inputs_at_hand(lines: Lines) -> list[bool]:
    line = lines.line(JOB)
    return [one.input_at_hand for one in line.operations] if line else []


def queued(one: NewOperation, line: int = 1_000) -> OperationRecord:
    return one.queued(line)


def dispatched(one: OperationRecord) -> OperationRecord:
    return DispatchClaim(one, HOST, INCARNATION, 1).dispatched


# --- reading ---


async def test_a_job_is_read_once(parts: DispatcherParts) -> None:
    one = new_operation()
    await parts.put_in_line(one)
    first = await parts.lines.read([JOB, JOB])
    reads = parts.link.calls[Call.READ]
    again = await parts.lines.read([JOB])
    assert [line.job.job_id for line in first.lines] == [JOB]
    assert first == again
    assert parts.lines.operation(JOB, one.operation_id) == first.lines[0].operations[0]
    assert parts.link.calls[Call.READ] == reads


async def test_a_job_that_does_not_exist_is_left_out(parts: DispatcherParts) -> None:
    assert await parts.lines.read(["other"]) == LinesRead()
    assert parts.lines.line("other") is None


# --- what drops a job ---


async def test_operations_that_others_put_in_line_are_seen(parts: DispatcherParts) -> None:
    first, second = new_operation(), new_operation()
    await parts.put_in_line(first)
    await parts.lines.read([JOB])
    await parts.put_in_line(second)
    assert await read_line(parts.lines) == [first.operation_id, second.operation_id]


async def test_an_operation_that_others_end_is_gone(parts: DispatcherParts) -> None:
    one = new_operation()
    await parts.put_in_line(one)
    await parts.lines.read([JOB])
    ending = QueuedEnding(await parts.recorded(one), OperationState.CANCELLED)
    await parts.store.operations.end_queued([ending], token="t")
    assert await read_line(parts.lines) == []


def down(generation: int = 1) -> JobEffect:
    return JobEffect(
        JOB,
        "any",
        1,
        1,
        generation,
        HOST,
        JobState.FAILED,
        container_id=None,
        error=None,
        shared=True,
    )


@pytest.mark.parametrize("fate", ["lost_before", "lost_after"])
async def test_a_job_of_which_it_is_unknown_what_a_report_did_is_dropped(
    parts: DispatcherParts, fate: Fate
) -> None:
    await parts.lines.read([JOB])
    parts.link.fates.append(fate)
    with pytest.raises(StoreUnavailableError):
        await parts.store.jobs.apply([down()])
    assert parts.lines.line(JOB) is None


async def test_a_job_to_which_a_report_does_not_apply_is_dropped(parts: DispatcherParts) -> None:
    await parts.lines.read([JOB])
    assert await parts.store.jobs.apply([down(generation=2)]) == 0
    assert parts.lines.line(JOB) is None


async def test_what_a_write_made_of_a_job_takes_the_place_of_what_it_was(
    parts: DispatcherParts,
) -> None:
    await parts.lines.read([JOB])
    before = parts.lines.job(JOB)
    assert before is not None
    assert await parts.store.jobs.apply([down()]) == 1
    parts.lines.replace_job(JOB, before=before, after=down().applied_to(before))
    now = parts.lines.job(JOB)
    assert now is not None
    assert (now.state, now.version, now.host_id) == (JobState.FAILED, before.version + 1, None)
    parts.lines.replace_job(JOB, before=before, after=down().applied_to(before))
    assert parts.lines.job(JOB) is None, "it was written over what another write had made"


async def test_a_job_of_which_only_the_database_knows_what_it_is_now_is_dropped(
    parts: DispatcherParts,
) -> None:
    await parts.lines.read([JOB])
    before = parts.lines.job(JOB)
    assert before is not None
    parts.lines.replace_job(JOB, before=before, after=None)
    assert parts.lines.job(JOB) is None


async def test_a_new_job_is_in_memory_as_recorded(parts: DispatcherParts) -> None:
    await parts.lines.ensure(["new"])
    job = parts.lines.job("new")
    assert job is not None
    assert (job.state, job.version, held(parts.lines, "new")) == (JobState.NONE, 0, [])


async def test_a_job_that_was_deleted_while_an_operation_entered_is_recorded_with_its_line(
    parts: DispatcherParts,
) -> None:
    """Else what comes behind a CREATE was rejected, as for a job that was never created."""
    create = new_operation(Verb.DEPLOY_CREATE, "new", model="m")
    load = new_operation(Verb.DEPLOY_LOAD, "new")
    await parts.store.jobs.ensure(["new"])
    parts.link.hold(only=1)  # the answer that no operation waits in its line
    deleting = asyncio.create_task(parts.store.deletions.unborn_jobs(["new"]))
    await parts.link.held.wait()
    await parts.first_pass.take([create])
    parts.link.let_go()
    await deleting
    assert await parts.store.jobs.get("new") is None
    await parts.first_pass.take([load])
    assert held(parts.lines, "new") == [create.operation_id, load.operation_id]


async def test_a_new_job_begins_above_the_generations_of_deleted_ones(
    parts: DispatcherParts,
) -> None:
    await parts.store.jobs.raise_generation_floor([JobRecord(job_id="old", generation=7)])
    await parts.lines.ensure(["new"])
    for _ in range(2):
        job = parts.lines.job("new")
        assert job is not None
        assert job.next_generation == 8
        parts.lines.forget(["new"])
        await parts.lines.read(["new"])


async def test_a_job_that_others_have_recorded_meanwhile_is_read(parts: DispatcherParts) -> None:
    await parts.lines.ensure([JOB])
    job = parts.lines.job(JOB)
    assert job is not None
    assert job.state is JobState.LOADED


async def test_a_new_job_that_is_changed_while_it_is_recorded_is_read(
    parts: DispatcherParts,
) -> None:
    parts.link.hold()
    ensuring = asyncio.create_task(parts.lines.ensure(["new"]))
    await parts.link.held.wait()
    parts.database.write("jobs", {"_id": "new", "state": JobState.NONE, "version": 7})
    parts.lines.forget(["new"])  # as after each write to a job
    parts.link.let_go()
    await ensuring
    job = parts.lines.job("new")
    assert job is not None
    assert job.version == 7


async def test_a_write_whose_answer_is_lost_drops_the_job(parts: DispatcherParts) -> None:
    one = new_operation()
    await parts.lines.read([JOB])
    parts.link.fates.append("lost_after")
    with pytest.raises(StoreUnavailableError):
        await parts.store.operations.take_in([(one, 7)])
    assert parts.lines.line(JOB) is None
    assert await read_line(parts.lines) == [one.operation_id]


async def test_claims_that_only_some_operations_took_drop_their_jobs(
    parts: DispatcherParts,
) -> None:
    won, lost = new_operation(), new_operation()
    await parts.put_in_line(won, lost)
    claims = [DispatchClaim(await parts.recorded(one), HOST, INCARNATION, 1) for one in (won, lost)]
    await parts.store.operations.claim(claims[1:], token="another")
    await parts.lines.read([JOB])
    await parts.store.operations.claim(claims, token="t")
    assert parts.lines.line(JOB) is None


# --- what happens while a job is read ---

Change = Callable[[Lines, OperationRecord], None]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines, _: lines.forget([JOB]),
        lambda lines, _: lines.append(queued(new_operation())),
        lambda lines, one: lines.replace(dispatched(one)),
        lambda lines, one: lines.remove(JOB, one.operation_id),
        lambda lines, _: lines.replace_job(JOB, before=None, after=None),
    ],
    ids=["forget", "append", "replace", "remove", "job"],
)
async def test_what_was_read_before_a_change_is_not_kept(
    parts: DispatcherParts, change: Change
) -> None:
    one = new_operation()
    await parts.put_in_line(one)
    parts.link.hold()
    reading = asyncio.create_task(parts.lines.read([JOB]))
    await parts.link.held.wait()
    change(parts.lines, queued(one))
    parts.link.let_go()
    assert await reading == LinesRead((), frozenset({JOB}))
    assert parts.lines.line(JOB) is None


async def test_a_change_of_another_job_does_not_matter(parts: DispatcherParts) -> None:
    parts.link.hold()
    reading = asyncio.create_task(parts.lines.read([JOB]))
    await parts.link.held.wait()
    parts.lines.forget(["other"])
    parts.link.let_go()
    assert (await reading).moved == frozenset()
    assert parts.lines.line(JOB) is not None


async def test_a_read_that_fails_holds_nothing(parts: DispatcherParts) -> None:
    parts.link.fates.append("lost_before")
    with pytest.raises(StoreUnavailableError):
        await parts.lines.read([JOB])
    assert (await parts.lines.read([JOB])).moved == frozenset()


# --- while operations enter ---


async def test_what_enters_is_not_certain_until_its_write_has_ended(
    parts: DispatcherParts,
) -> None:
    """Others of its job that were not published may have to go before it."""
    one, entering, behind = (new_operation() for _ in range(3))
    await parts.put_in_line(one)
    await parts.lines.read([JOB])
    with parts.lines.entering([JOB]):
        for new in (entering, behind):
            parts.lines.append(queued(new, 2_000))
        line = parts.lines.certain(JOB)
        assert line is not None
        assert [it.operation_id for it in line.operations] == [one.operation_id]
        assert held(parts.lines) == [it.operation_id for it in (one, entering, behind)]
    line = parts.lines.certain(JOB)
    assert line is not None
    assert len(line.operations) == 3


async def test_a_job_is_not_read_while_operations_enter_its_line(parts: DispatcherParts) -> None:
    with parts.lines.entering([JOB]):
        assert await parts.lines.read([JOB]) == LinesRead()
    assert len((await parts.lines.read([JOB])).lines) == 1


async def test_a_job_that_is_held_is_there_while_operations_enter(parts: DispatcherParts) -> None:
    one = new_operation()
    await parts.lines.read([JOB])
    with parts.lines.entering([JOB]):
        parts.lines.append(queued(one))
        assert await read_line(parts.lines) == [one.operation_id]
    assert held(parts.lines) == [one.operation_id]


async def test_a_job_enters_until_all_that_enter_have_ended(parts: DispatcherParts) -> None:
    with parts.lines.entering([JOB]):
        with parts.lines.entering([JOB]):
            pass
        assert await parts.lines.read([JOB]) == LinesRead()


async def test_a_write_that_fails_leaves_nothing_in_memory(parts: DispatcherParts) -> None:
    await parts.lines.read([JOB])

    async def enter() -> None:
        with parts.lines.entering([JOB]):
            parts.lines.append(queued(new_operation()))
            raise StoreUnavailableError

    with pytest.raises(StoreUnavailableError):
        await enter()
    assert parts.lines.line(JOB) is None
    assert await read_line(parts.lines) == []


async def test_a_read_that_began_before_operations_entered_is_not_kept(
    parts: DispatcherParts,
) -> None:
    parts.link.hold()
    reading = asyncio.create_task(parts.lines.read([JOB]))
    await parts.link.held.wait()
    with parts.lines.entering([JOB]):
        pass
    parts.link.let_go()
    assert (await reading).moved == {JOB}


# --- keeping the copy exact ---


async def test_an_id_that_comes_again_with_another_request_changes_nothing(
    parts: DispatcherParts,
) -> None:
    one = new_operation()
    await parts.put_in_line(one)
    await parts.lines.read([JOB])
    before = parts.lines.operation(JOB, one.operation_id)
    parts.lines.append(one.model_copy(update={"verb": Verb.TERMINATE}).queued(1_000))
    assert parts.lines.operation(JOB, one.operation_id) is before
    assert held(parts.lines) == [one.operation_id]


async def test_an_operation_becomes_what_is_noted_and_keeps_its_place(
    parts: DispatcherParts,
) -> None:
    first, second = new_operation(), new_operation()
    await parts.put_in_line(first, second)
    await parts.lines.read([JOB])
    there = parts.lines.operation(JOB, first.operation_id)
    assert there is not None
    then = dispatched(there)
    parts.lines.replace(then)
    assert held(parts.lines) == [first.operation_id, second.operation_id]
    assert parts.lines.operation(JOB, first.operation_id) == then
    parts.lines.replace(there)
    assert parts.lines.operation(JOB, first.operation_id) == then  # that was earlier
    parts.lines.remove(JOB, first.operation_id)
    assert held(parts.lines) == [second.operation_id]


async def test_what_is_noted_of_absent_ones_changes_nothing(parts: DispatcherParts) -> None:
    absent = queued(new_operation())
    parts.lines.replace(absent)
    parts.lines.remove(JOB, absent.operation_id)
    parts.lines.append(absent)
    assert parts.lines.line(JOB) is None
    await parts.lines.read([JOB])
    parts.lines.replace(absent)
    parts.lines.remove(JOB, absent.operation_id)
    assert held(parts.lines) == []


async def test_memory_and_record_agree_on_who_waits(parts: DispatcherParts) -> None:
    waiting, missing = new_operation(), new_operation()
    await parts.put_in_line(waiting)
    assert parts.lines.agree(queued(waiting))  # nothing is in memory
    await parts.lines.read([JOB])
    assert parts.lines.agree(queued(waiting))
    assert not parts.lines.agree(queued(missing))
    parts.lines.replace(dispatched(queued(waiting)))
    assert not parts.lines.agree(queued(waiting))


# --- what a former leader still wrote ---


async def active(parts: DispatcherParts, *jobs: str) -> list[NewOperation]:
    """Have an operation of each job under way, in the record and in memory."""
    many = [new_operation(job_id=job_id) for job_id in jobs]
    for one in many:
        await parts.put_in_line(one)
        claim = DispatchClaim(await parts.recorded(one), HOST, INCARNATION, 1)
        await parts.store.operations.claim([claim], token="t")
    await parts.lines.read(jobs)
    return many


def write_unheard(parts: DispatcherParts, one: NewOperation, **changes: object) -> None:
    """Change the record as a write that another process sent."""
    documents = parts.database.collections["operations"]
    parts.database.write("operations", documents[one.operation_id] | changes)


@pytest.mark.parametrize(
    "changes",
    [{"state": OperationState.SUCCEEDED}, {"state": OperationState.QUEUED}, {"epoch": 2}],
    ids=["ended", "requeued", "other_epoch"],
)
async def test_an_active_operation_that_is_not_so_in_the_record_drops_its_job(
    parts: DispatcherParts, changes: dict[str, object]
) -> None:
    (one,) = await active(parts, JOB)
    write_unheard(parts, one, **changes)
    await parts.lines.verify()
    assert parts.lines.line(JOB) is not None  # it may be about to be noted
    await parts.lines.verify()
    assert parts.lines.line(JOB) is None


async def test_what_is_as_in_the_record_stays(parts: DispatcherParts) -> None:
    (one,) = await active(parts, JOB)
    write_unheard(parts, one, state=OperationState.RUNNING, seq=3)
    for _ in range(3):
        await parts.lines.verify()
    assert parts.lines.line(JOB) is not None


async def test_what_is_noted_while_the_record_is_asked_stays(parts: DispatcherParts) -> None:
    (one,) = await active(parts, JOB)
    await parts.lines.verify()
    write_unheard(parts, one, state=OperationState.QUEUED)
    parts.link.hold()
    verifying = asyncio.create_task(parts.lines.verify())
    await parts.link.held.wait()
    there = parts.lines.operation(JOB, one.operation_id)
    assert there is not None
    parts.lines.replace(there.model_copy(update={"seq": 1}))
    parts.link.let_go()
    await verifying
    assert parts.lines.line(JOB) is not None


async def test_all_active_operations_have_their_turn(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "VERIFIED_AT_ONCE", 1)
    jobs = ("a", "b", "c")
    for job_id in jobs:
        parts.load_job(job_id)
    many = await active(parts, *jobs)
    await parts.lines.verify()
    for stale in many:
        assert len([job_id for job_id in jobs if parts.lines.line(job_id)]) == len(jobs)
        write_unheard(parts, stale, epoch=2)
        for _ in range(2 * len(jobs)):  # wherever its turn is; a round may begin anew meanwhile
            await parts.lines.verify()
        assert parts.lines.line(stale.job_id or "") is None
        write_unheard(parts, stale, epoch=1)
        await parts.lines.read(jobs)
        await parts.lines.verify()


async def test_nothing_is_read_if_nothing_is_active(parts: DispatcherParts) -> None:
    await parts.lines.read([JOB])
    reads = parts.link.calls[Call.READ]
    await parts.lines.verify()
    await parts.lines.verify()
    assert parts.link.calls[Call.READ] == reads


# --- bounds ---


async def test_a_long_line_is_read_again_when_half_of_what_was_read_is_left(
    parts: DispatcherParts,
) -> None:
    many = [new_operation() for _ in range(LINE_HEAD + 1)]
    await parts.put_in_line(*many)
    assert len(await read_line(parts.lines)) == LINE_HEAD
    assert parts.lines.agree(queued(many[-1]))  # it stands behind what is in memory
    reads = parts.link.calls[Call.READ]
    gone = LINE_HEAD // 2
    for one in many[: gone - 1]:
        parts.lines.remove(JOB, one.operation_id)
    assert len(await read_line(parts.lines)) == LINE_HEAD - gone + 1
    assert parts.link.calls[Call.READ] == reads
    parts.lines.remove(JOB, many[gone].operation_id)
    assert len(await read_line(parts.lines)) == LINE_HEAD
    assert parts.link.calls[Call.READ] > reads


async def test_what_comes_behind_a_line_that_is_not_all_in_memory_stays_in_the_record(
    parts: DispatcherParts,
) -> None:
    await parts.put_in_line(*(new_operation() for _ in range(LINE_HEAD)))
    await parts.lines.read([JOB])
    parts.lines.append(queued(new_operation()))
    assert len(held(parts.lines)) == LINE_HEAD


async def test_of_one_job_only_so_many_operations_are_in_memory(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_OF_A_JOB", 2)
    many = [new_operation() for _ in range(4)]
    await parts.lines.read([JOB])
    for one in many[:3]:
        parts.lines.append(queued(one))
    parts.lines.remove(JOB, many[0].operation_id)
    parts.lines.append(queued(many[3]))  # the third is not in memory, so this one may not be
    assert held(parts.lines) == [many[1].operation_id]


async def test_an_operation_in_memory_is_small(parts: DispatcherParts) -> None:
    await parts.put_in_line(*(new_operation() for _ in range(LINE_HEAD)))
    tracemalloc.start()
    try:
        await parts.lines.read([JOB])
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held(parts.lines)) == LINE_HEAD
    assert taken / LINE_HEAD < BYTES_OF_AN_OPERATION


async def test_the_jobs_that_were_not_used_for_the_longest_time_are_dropped(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_JOBS", 2)
    for job_id in ("a", "b", "c"):
        parts.load_job(job_id)
    await parts.lines.read(["a"])
    await parts.lines.read(["b"])
    parts.lines.line("a")
    await parts.lines.read(["c"])
    assert [job_id for job_id in "abc" if parts.lines.line(job_id)] == ["a", "c"]


async def test_all_operations_in_memory_are_bounded(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_OPERATIONS", 3)
    for job_id in ("a", "b"):
        parts.load_job(job_id)
        await parts.put_in_line(*(new_operation(job_id=job_id) for _ in range(2)))
        await parts.lines.read([job_id])
    assert parts.lines.line("a") is None
    parts.lines.append(queued(new_operation(job_id="b")))
    assert len(held(parts.lines, "b")) == 3
    parts.lines.append(queued(new_operation(job_id="b")))
    assert parts.lines.line("b") is None


async def test_a_job_whose_operations_enter_is_never_dropped_for_room(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_JOBS", 1)
    parts.load_job("other")
    await parts.lines.read([JOB])
    with parts.lines.entering([JOB]):
        await parts.lines.read(["other"])
        assert parts.lines.line(JOB) is not None
        assert parts.lines.line("other") is None


async def test_a_read_drops_others_before_the_jobs_that_it_is_to_return(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_JOBS", 2)
    for job_id in ("a", "b", "c"):
        parts.load_job(job_id)
    await parts.lines.read(["a"])
    await parts.lines.read(["c"])
    read = await parts.lines.read(["a", "b"])
    assert [line.job.job_id for line in read.lines] == ["a", "b"]
    assert parts.lines.line("c") is None


async def test_jobs_for_which_a_read_has_no_room_are_to_be_read_again(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the wake for which they are read would be lost."""
    monkeypatch.setattr(bounds, "MAX_JOBS", 2)
    for job_id in ("a", "b", "c", "d"):
        parts.load_job(job_id)
    await parts.lines.read(["a"])
    read = await parts.lines.read(["a", "b", "c", "d", "none"])
    assert [line.job.job_id for line in read.lines] == ["c", "d"]
    assert read.moved == {"a", "b"}


async def test_a_job_that_is_changed_while_others_are_read_is_to_be_read_again(
    parts: DispatcherParts,
) -> None:
    parts.load_job("other")
    await parts.lines.read([JOB])
    parts.link.hold()
    reading = asyncio.create_task(parts.lines.read([JOB, "other"]))
    await parts.link.held.wait()
    parts.lines.forget([JOB])
    parts.link.let_go()
    read = await reading
    assert [line.job.job_id for line in read.lines] == ["other"]
    assert read.moved == {JOB}


async def test_an_input_is_kept_only_until_its_operation_starts(parts: DispatcherParts) -> None:
    one = queued(new_operation())
    await parts.lines.read([JOB])
    parts.lines.append(one)
    assert inputs_at_hand(parts.lines) == [True]
    parts.lines.replace(dispatched(one))
    assert inputs_at_hand(parts.lines) == [False]


async def test_what_is_noted_of_an_operation_keeps_to_the_budget(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (queued(new_operation(input="x" * 10)) for _ in range(2))
    monkeypatch.setattr(bounds, "MAX_INPUT_BYTES", len(first.input_json or ""))
    await parts.lines.read([JOB])
    for one in (first, second):
        parts.lines.append(one)
        parts.lines.replace(one)
    assert inputs_at_hand(parts.lines) == [True, False]


async def test_inputs_beyond_the_budget_stay_in_the_record(
    parts: DispatcherParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (queued(new_operation(input="x" * 10)) for _ in range(3))
    monkeypatch.setattr(bounds, "MAX_INPUT_BYTES", 2 * len(first.input_json or ""))
    await parts.lines.read([JOB])
    for one in (first, second, third):
        parts.lines.append(one)
    assert inputs_at_hand(parts.lines) == [True, True, False]
    parts.lines.remove(JOB, first.operation_id)
    parts.lines.append(queued(new_operation(input="x" * 10)))
    assert inputs_at_hand(parts.lines) == [True, False, True]
    parts.lines.forget([JOB])
    await parts.lines.read([JOB])
    parts.lines.append(first)
    assert inputs_at_hand(parts.lines) == [True]


async def test_a_new_operation_costs_the_same_however_many_jobs_are_in_memory() -> None:
    few, many = await cost_of_appending(among=100), await cost_of_appending(among=10_000)
    assert many < few * 5


async def cost_of_appending(*, among: int) -> float:
    """Return the seconds of processor time, the least of three, for 200 new operations."""

    async def read(job_ids: Sequence[str]) -> JobLines:
        jobs = (JobRecord(job_id=job_id) for job_id in job_ids)
        return JobLines(tuple(JobLine(job=job, operations=()) for job in jobs), frozenset())

    store: Any = SimpleNamespace(jobs=SimpleNamespace(lines=read))
    lines = Lines(store)
    await lines.read([f"job-{number}" for number in range(among)])
    least = float("inf")
    for _ in range(3):
        operations = [queued(new_operation(job_id="job-0")) for _ in range(200)]
        began = time.process_time()
        for operation in operations:
            lines.append(operation)
        least = min(least, time.process_time() - began)
    assert len(held(lines, "job-0")) == 600
    return least
