"""Deleting and retention, on a real MongoDB and in memory: what goes, stays, or is left by a crash.

A test says how old a record is by the age from which it is to be removed: below zero, all are old.
"""

import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.errors import StoreUnavailableError
from modelyard.contract.messages import (
    MAX_INLINE_RESULT_BYTES,
    EngineFacts,
    Event,
    HostOnline,
    JobRequest,
    OperationReport,
)
from modelyard.contract.states import JobState, OperationState
from modelyard.store import Store
from modelyard.store.deleting.deletions import Fate
from modelyard.store.jobs import Assignment, JobEffect
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.records import DeadLetter, NewOperation
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore

ONE, TWO, THREE = (f"0190c2f0-0000-7000-8000-00000000000{n}" for n in (1, 2, 3))
SPEC = ModelSpec(name="m", image="x/y", profile=Profile.BATCH)
ALL = -3_600.0
"""From this age on everything that there is, is old."""
NONE = 3_600.0
"""Nothing is that old."""
LARGE = '"' + "x" * MAX_INLINE_RESULT_BYTES + '"'


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


def new(operation_id: str, job_id: str = "j", **fields: object) -> NewOperation:
    request = JobRequest.model_validate(
        {"job_id": job_id, "operation_type": "TEMP", "model": "m", "input": {"a": 1}} | fields
    )
    return NewOperation.of(operation_id, request, "http")


async def opened(store: Store, operation_id: str, job_id: str = "j") -> None:
    """Take an operation in and dispatch it."""
    operation = new(operation_id, job_id)
    await store.jobs.ensure([job_id])
    await store.operations.take_in([(operation, 1)])
    claims = [DispatchClaim(operation.queued(1), "h", "boot", 1)]
    assert await store.operations.claim(claims, token=uuid.uuid4().hex)


async def finished(
    store: Store, operation_id: str, job_id: str = "j", result_json: str | None = '"answer"'
) -> None:
    """Take an operation to its end, with a result, events and a note."""
    await opened(store, operation_id, job_id)
    state = OperationState.SUCCEEDED
    ended = OperationReport(
        operation_id=operation_id, epoch=1, seq=2, job_id=job_id, generation=1, state=state
    )
    results = {}
    if result_json is not None:
        results[operation_id] = await store.results.put(operation_id, 1, result_json)
    assert await store.operations.apply([ended], results) == 1
    now = datetime.now(UTC)
    event = Event(event_id=uuid.uuid4().hex, type="x.y", at=now, operation_id=operation_id)
    await store.events.append([event])
    await store.audit.payload_mismatch(operation_id, "kept", "dropped")


async def traces(store: Store, operation_id: str) -> dict[str, bool]:
    """Return what there is of an operation."""
    files = store._connection.collection("results.files")
    found = [one["_id"] for one in await files.find({}, {"_id": 1}).to_list(None)]
    return {
        "record": await store.operation_queries.get(operation_id) is not None,
        "result": await store.operation_queries.result(operation_id) is not None,
        "file": any(file_id.startswith(f"{operation_id}:") for file_id in found),
        "events": bool(await store.events.of_operation(operation_id)),
        "notes": bool(await store.audit.of_operation(operation_id)),
    }


def only(*names: str) -> dict[str, bool]:
    return {one: one in names for one in ("record", "result", "file", "events", "notes")}


async def ended_job(store: Store, job_id: str, generation: int = 1) -> None:
    """Record a job whose container of this generation has come and gone."""
    await store.jobs.ensure([job_id])
    job = await store.jobs.get(job_id)
    assert job is not None
    await store.jobs.assign(
        [Assignment(job_id, job.version, ONE, 1, generation, "h", SPEC)], token="t"
    )
    effect = JobEffect(job_id, ONE, 1, 1, generation, "h", JobState.TERMINATED, None, None)
    assert await store.jobs.apply([effect]) == 1


# --- on request ---


@pytest.mark.parametrize("result_json", ['"answer"', LARGE], ids=["small", "large"])
async def test_a_deleted_operation_leaves_a_stub_that_no_list_has(
    store: Store, result_json: str
) -> None:
    await finished(store, ONE, result_json=result_json)
    await finished(store, TWO)
    assert (await store.deletions.operation(ONE)).fate is Fate.DELETED
    assert await traces(store, ONE) == only("record")
    assert await traces(store, TWO) == only("record", "result", "events", "notes")
    stub = await store.operation_queries.with_input(ONE)
    assert stub is not None
    assert (stub.deleted, stub.input_json, stub.metadata) == (True, None, {})
    page = await store.operation_queries.page({}, after=None, limit=10)
    assert [one.operation_id for one in page.items] == [TWO]
    assert await store.operations.record([new(ONE)]) == [False], "its message may come again"
    assert (await store.deletions.operation(ONE)).fate is Fate.MISSING


async def test_an_operation_that_has_not_ended_is_not_deleted(store: Store) -> None:
    await opened(store, ONE)
    refused = await store.deletions.operation(ONE)
    assert (refused.fate, refused.reason) == (
        Fate.IN_USE,
        "The operation is DISPATCHED: cancel it first.",
    )
    assert (await store.deletions.operation(TWO)).fate is Fate.MISSING
    assert (await traces(store, ONE))["record"]


async def test_a_job_is_deleted_only_when_nothing_of_it_goes_on(store: Store) -> None:
    assert (await store.deletions.job("j")).fate is Fate.MISSING
    await store.jobs.ensure(["j"])
    await store.jobs.assign([Assignment("j", 0, ONE, 1, 1, "h", SPEC)], token="t")
    created = JobEffect("j", ONE, 1, 1, 1, "h", JobState.CREATED, "c" * 64, None)
    await store.jobs.apply([created])
    refused = await store.deletions.job("j")
    assert (refused.fate, refused.reason) == (
        Fate.IN_USE,
        "The job is CREATED: terminate it first.",
    )
    await store.jobs.apply([JobEffect("j", ONE, 1, 2, 1, "h", JobState.FAILED, None, None)])
    await store.operations.take_in([(new(TWO), 1)])
    refused = await store.deletions.job("j")
    assert refused.reason == "The job has operations that have not ended."
    await finished(store, TWO)
    assert (await store.deletions.job("j")).fate is Fate.DELETED
    assert await store.jobs.get("j") is None
    assert (await traces(store, TWO))["record"], "its operations stay"


async def test_generations_of_a_deleted_job_are_given_to_no_new_one(store: Store) -> None:
    await ended_job(store, "j", generation=7)
    await ended_job(store, "other", generation=3)
    await store.jobs.ensure(["there"])
    for job_id in ("other", "j"):
        assert (await store.deletions.job(job_id)).fate is Fate.DELETED
    await store.jobs.ensure(["j", "there"])
    lines = (await store.jobs.lines(["j", "there"])).lines
    assert [line.job.next_generation for line in lines] == [8, 8]
    await ended_job(store, "had-one", generation=1)
    (line,) = (await store.jobs.lines(["had-one"])).lines
    assert line.job.next_generation == 2, "it goes on from its own"


async def test_only_a_lost_host_without_work_is_deleted(store: Store) -> None:
    engine = EngineFacts(version="1", api_version="1")
    assert (await store.deletions.host("h")).fate is Fate.MISSING
    await store.hosts.come_online("h", "boot", HostOnline(slots=2, engine=engine))
    refused = await store.deletions.host("h")
    assert refused.reason == "The host is ONLINE, not LOST."
    await store.hosts.suspect_silent(after_s=-60)
    await store.hosts.lose_silent(after_s=-60)
    await store.jobs.ensure(["j"])
    await store.jobs.assign([Assignment("j", 0, ONE, 1, 1, "h", SPEC)], token="t")
    refused = await store.deletions.host("h")
    assert (refused.fate, refused.reason) == (
        Fate.IN_USE,
        "Its jobs are about to be moved or ended.",
    )
    await store.jobs.apply([JobEffect("j", ONE, 1, 1, 1, "h", JobState.FAILED, None, None)])
    await opened(store, TWO, "other")
    assert (await store.deletions.host("h")).fate is Fate.IN_USE
    await store.operations.apply(
        [
            OperationReport(
                operation_id=TWO,
                epoch=1,
                seq=2,
                job_id="other",
                generation=1,
                state=OperationState.FAILED,
            )
        ],
        {},
    )
    assert (await store.deletions.host("h")).fate is Fate.DELETED
    assert await store.hosts.all() == []


async def test_a_job_of_which_nothing_came_goes_and_all_others_stay(store: Store) -> None:
    await store.jobs.ensure(["never", "waits", "there"])
    await store.operations.take_in([(new(ONE, "waits"), 1)])
    await store.jobs.assign([Assignment("there", 0, TWO, 1, 1, "h", SPEC)], token="t")
    told: list[str] = []
    store.changes.listen(jobs=told.extend, hosts=told.extend)
    gone = await store.deletions.unborn_jobs(["never", "waits", "there", "unknown"])
    assert gone == told == ["never"]
    assert set(await store.jobs.get_many(["never", "waits", "there"])) == {"waits", "there"}


async def test_jobs_of_which_nothing_came_are_listed_page_by_page(store: Store) -> None:
    await store.jobs.ensure(["a", "b", "c", "placed"])
    await store.jobs.assign([Assignment("placed", 0, TWO, 1, 1, "h", SPEC)], token="t")
    stale = store.deletions.stale_unborn_jobs
    assert (await stale(older_than_s=NONE, after=None, limit=2)).items == ()
    first = await stale(older_than_s=ALL, after=None, limit=2)
    rest = await stale(older_than_s=ALL, after=first.next, limit=2)
    assert sorted(one.job_id for one in (*first.items, *rest.items)) == ["a", "b", "c"]
    assert rest.next is None


# --- by age ---


async def test_what_ended_long_ago_goes_with_all_that_belongs_to_it(store: Store) -> None:
    await finished(store, ONE, result_json=LARGE)
    await opened(store, TWO, "other")
    assert await store.old_records.operations(older_than_s=NONE, limit=10) == 0
    assert await traces(store, ONE) == only("record", "result", "file", "events", "notes")
    assert await store.old_records.operations(older_than_s=ALL, limit=10) == 1
    assert await traces(store, ONE) == only()
    assert (await traces(store, TWO))["record"], "it has not ended"


async def test_a_batch_takes_no_more_than_its_limit(store: Store) -> None:
    for operation_id in (ONE, TWO, THREE):
        await finished(store, operation_id)
    taken = [await store.old_records.operations(older_than_s=ALL, limit=2) for _ in range(3)]
    assert taken == [2, 1, 0]


async def test_a_stub_goes_when_operations_of_its_age_go(store: Store) -> None:
    await finished(store, ONE)
    await store.deletions.operation(ONE)
    assert await store.old_records.operations(older_than_s=ALL, limit=10) == 1
    assert await store.operation_queries.get(ONE) is None


async def test_results_may_go_before_their_operations(store: Store) -> None:
    await finished(store, ONE, result_json=LARGE)
    await finished(store, TWO)
    await finished(store, THREE, result_json=None)
    results = store.old_records.results
    assert await results(older_than_s=NONE, after=None, limit=10) == (0, None)
    removed, place, places = 0, None, []
    for _ in range(4):
        taken, place = await results(older_than_s=ALL, after=place, limit=1)
        removed += taken
        places.append(place)
    assert removed == 2
    assert places[2] == places[3], "there is nothing behind the last one"
    for operation_id, bytes_ in ((ONE, len(LARGE)), (TWO, len('"answer"')), (THREE, None)):
        assert await traces(store, operation_id) == only("record", "events", "notes")
        found = await store.operation_queries.get(operation_id)
        assert found is not None
        assert (found.result_bytes, found.result_gone) == (bytes_, bytes_ is not None)


async def test_old_events_and_dead_letters_go(store: Store) -> None:
    now = datetime.now(UTC)
    for days in (1, 40):
        at = now - timedelta(days=days)
        await store.events.append([Event(event_id=f"e{days}", type="x.y", at=at)])
    await store.dead_letters.add([DeadLetter(dead_letter_id="d", reason="internal")])
    records = store.old_records
    if not isinstance(store, MemoryStore):  # whose clock is the test's, and not of this year
        assert await records.events(older_than_s=30 * 86_400, limit=10) == 1
        assert set(await store.events.hosts_of(["e1", "e40"])) == {"e1"}
    assert await records.dead_letters(older_than_s=NONE, limit=10) == 0
    assert await records.dead_letters(older_than_s=ALL, limit=10) == 1
    assert await store.dead_letters.get("d") is None


async def test_old_jobs_go_once_nothing_refers_to_them(store: Store) -> None:
    for job_id in ("a", "b", "c"):
        await ended_job(store, job_id, generation=4)
    await store.jobs.ensure(["d"])
    await store.jobs.assign([Assignment("d", 0, ONE, 1, 1, "h", SPEC)], token="t")
    await finished(store, TWO, "b")
    jobs = store.old_records.jobs
    assert await jobs(older_than_s=NONE, after=None, limit=10) == (0, None)
    removed, place = await jobs(older_than_s=ALL, after=None, limit=2)
    more, last = await jobs(older_than_s=ALL, after=place, limit=2)
    assert (removed + more, last) == (2, None)
    assert set(await store.jobs.get_many(["a", "b", "c", "d"])) == {"b", "d"}
    assert await store.jobs.generation_floor() == 4
    await store.old_records.operations(older_than_s=ALL, limit=10)
    await jobs(older_than_s=ALL, after=None, limit=10)
    assert set(await store.jobs.get_many(["b", "d"])) == {"d"}, "d holds a reservation"


# --- what a crash leaves ---


Step = Callable[[Store], Awaitable[object]]


@pytest.mark.parametrize("fate", ["lost_before", "lost_after"])
@pytest.mark.parametrize(
    "step",
    [
        lambda store: store.deletions.operation(ONE),
        lambda store: store.old_records.operations(older_than_s=ALL, limit=10),
        lambda store: store.old_records.results(older_than_s=ALL, after=None, limit=10),
    ],
    ids=["delete", "operations", "results"],
)
async def test_the_next_call_completes_what_a_crash_between_any_two_writes_left(
    step: Step, fate: Any
) -> None:
    async def left(store: Store) -> dict[str, bool]:
        await finished(store, ONE, result_json=LARGE)
        await step(store)
        return await traces(store, ONE)

    whole = await left(MemoryStore(MemoryDatabase(time.monotonic)))
    for calls in count():
        store = MemoryStore(MemoryDatabase(time.monotonic))
        await finished(store, ONE, result_json=LARGE)
        await store.time()
        store.link.fates.extend([None] * calls + [fate])
        try:
            await step(store)
        except StoreUnavailableError:
            await step(store)
            assert await traces(store, ONE) == whole, f"after {calls} calls"
        else:
            assert calls >= 3, "something was interrupted"
            return


@pytest.mark.parametrize("fate", ["lost_before", "lost_after"])
async def test_no_generation_comes_back_wherever_a_crash_interrupts_a_deletion(fate: Any) -> None:
    for calls in count():
        store = MemoryStore(MemoryDatabase(time.monotonic))
        await ended_job(store, "j", generation=7)
        store.link.fates.extend([None] * calls + [fate])
        interrupted = False
        try:
            await store.deletions.job("j")
        except StoreUnavailableError:
            interrupted = True
        store.link.fates.clear()
        await store.jobs.ensure(["j"])
        (line,) = (await store.jobs.lines(["j"])).lines
        assert line.job.next_generation == 8
        if not interrupted:
            assert calls >= 3
            return
