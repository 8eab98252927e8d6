"""What the rest of Modelyard relies on from a store, seen on a real MongoDB.

And on the one in memory, which the state machine runs on.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from modelyard.contract.capacity.ledger import Allocation
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec, Profile
from modelyard.contract.content.results import ResultContent
from modelyard.contract.errors import ErrorCode, ErrorInfo, StoreUnavailableError
from modelyard.contract.messages import (
    MAX_INLINE_RESULT_BYTES,
    EngineFacts,
    Event,
    HostOnline,
    JobRequest,
    OperationReport,
)
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store import Store
from modelyard.store.indexes import INDEXES, UNPUBLISHED
from modelyard.store.jobs import Assignment, JobEffect, PendingRestoration
from modelyard.store.operation_writes import DispatchClaim, IntakeEntry
from modelyard.store.operations import FRONT_OF_LINE, QueuedEnding
from modelyard.store.records import (
    JobRecord,
    LastReport,
    NewOperation,
    OperationRecord,
    ReplyAddress,
    RestorationRecord,
)
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore
from tests.support.placed import placed, spec_of
from tests.support.waiting import eventually

ONE, TWO = (f"0190c2f0-0000-7000-8000-00000000000{n}" for n in (1, 2))
SPEC = ModelSpec(name="m", image="x/y", profile=Profile.BATCH, env={"A": "$x.y"})
ONLINE = HostOnline(slots=2, labels={"a.b": "$c"}, engine=EngineFacts(version="1", api_version="1"))


@pytest.fixture(params=[pytest.param("mongodb", marks=pytest.mark.server), "memory"])
def database(request: pytest.FixtureRequest) -> str | MemoryDatabase:
    """Give the test a database of its own: the URL of a real one, or one in memory."""
    if request.param == "memory":
        return MemoryDatabase(time.monotonic)
    url: str = request.getfixturevalue("mongo_url")
    return url


@pytest.fixture
async def store(database: str | MemoryDatabase) -> AsyncIterator[Store]:
    """Give the test a store with its indexes."""
    if isinstance(database, MemoryDatabase):
        made: Store = MemoryStore(database)
    else:
        made = Store(database, name="test", timeout_s=10.0)
    await made.prepare()
    yield made
    made.close()


def documents(database: str | MemoryDatabase, collection: str) -> list[dict[str, Any]]:
    """Return what is stored, past the store."""
    if isinstance(database, MemoryDatabase):
        return database.documents(collection)
    with MongoClient[dict[str, Any]](database) as client:
        return list(client.get_default_database()[collection].find({}))


def new(operation_id: str | None = None, **fields: object) -> NewOperation:
    request = JobRequest.model_validate(
        {"job_id": "j", "operation_type": "TEMP", "model": "m"} | fields
    )
    return NewOperation.of(operation_id or uuid.uuid4().hex, request, "http")


async def dispatched(store: Store, operation_id: str = ONE) -> OperationRecord:
    await store.operations.take_in([(new(operation_id), 1)])
    (won,) = await store.operations.claim(
        [DispatchClaim(new(operation_id).queued(1), "h", "boot", 1)], token=uuid.uuid4().hex
    )
    return won


def report(
    state: OperationState, *, seq: int, epoch: int = 1, operation_id: str = ONE, **fields: object
) -> OperationReport:
    return OperationReport.model_validate(
        {
            "operation_id": operation_id,
            "epoch": epoch,
            "seq": seq,
            "job_id": "j",
            "generation": 1,
            "state": state,
        }
        | fields
    )


async def state_of(store: Store, operation_id: str = ONE) -> OperationState:
    found = await store.operation_queries.get(operation_id)
    assert found is not None
    return found.state


async def test_every_declared_index_is_there_on_the_real_server(mongo_url: str) -> None:
    store = Store(mongo_url, name="test", timeout_s=10.0)
    await store.prepare()
    store.close()
    with MongoClient[dict[str, object]](mongo_url) as client:
        database = client.get_default_database()
        for collection, indexes in INDEXES.items():
            there = set(database[collection].index_information())
            assert {index.document["name"] for index in indexes} <= there


async def test_an_operation_is_recorded_once_however_often_it_comes(store: Store) -> None:
    results = await asyncio.gather(*(store.operations.record([new(ONE)]) for _ in range(20)))
    assert sum(made for (made,) in results) == 1
    first = await store.operation_queries.get(ONE)
    assert await store.operations.record([new(ONE, priority=9)]) == [False]
    assert await store.operation_queries.get(ONE) == first


async def test_what_one_process_records_is_in_the_order_of_its_calls(store: Store) -> None:
    ids = [uuid.uuid4().hex for _ in range(40)]
    for n in range(0, 40, 4):
        await store.operations.record([new(one) for one in ids[n : n + 4]])
    known = await store.operation_queries.known(ids)
    assert sorted(ids, key=lambda one: known[one].accepted) == ids


async def test_what_the_broker_did_not_confirm_is_found_until_it_has_a_place(store: Store) -> None:
    first, second, third, other = (new() for _ in range(4))
    for one in (first, second, third):
        await store.operations.record([one])
    other = other.model_copy(update={"job_id": "another"})
    await store.operations.record([other])
    await store.operations.mark_unpublished([third.operation_id, other.operation_id])
    await store.operations.mark_unpublished([first.operation_id])

    async def unpublished() -> list[str]:
        return [one.operation_id for one in await store.operation_queries.unpublished(["j"])]

    assert await unpublished() == [first.operation_id, third.operation_id]
    for entry, found in ((second, True), (other, False)):
        assert (await store.operations.enter([IntakeEntry(entry, 1)])).unpublished is found
    await store.operations.take_in([(first, 1)])
    assert await unpublished() == [third.operation_id]


async def test_operations_enter_although_an_operator_dropped_an_index(mongo_url: str) -> None:
    store = Store(mongo_url, name="test", timeout_s=10.0)
    await store.prepare()
    with MongoClient[dict[str, object]](mongo_url) as client:
        client.get_default_database()["operations"].drop_index(UNPUBLISHED)
    known = new()
    await store.operations.record([known])
    entered = await store.operations.enter([IntakeEntry(known, 1), IntakeEntry(new(), 2)])
    assert (entered.left_alone, entered.unpublished) == (frozenset(), True)
    assert await store.operation_queries.unpublished(["j"]) == []
    store.close()


async def test_an_operation_was_accepted_when_its_gateway_says_whoever_records_it(
    store: Store,
) -> None:
    moment = (datetime(2025, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC), 9)
    ways = [new(uuid.uuid4().hex, queue_timeout_s=2.0) for _ in range(3)]
    ways = [one.model_copy(update={"accepted": moment}) for one in ways]
    await store.operations.record([ways[0]])
    await store.operations.take_in([(ways[1], 1)])
    await store.operations.enter([IntakeEntry(ways[2], 2)])
    known = await store.operation_queries.known([one.operation_id for one in ways])
    assert [one.accepted for one in known.values()] == [moment] * 3
    assert len(await store.operations.expired(limit=9)) == 3


async def test_a_deadline_counts_by_the_clock_of_the_database(store: Store) -> None:
    await store.operations.record([new(ONE, queue_timeout_s=0.001), new(TWO, queue_timeout_s=60)])

    async def late() -> bool:
        return bool(await store.operations.expired(limit=9))

    await eventually(late, what="the deadline")
    assert [one.operation_id for one in await store.operations.expired(limit=9)] == [ONE]


async def test_a_report_ends_the_deadline_of_the_queue(store: Store) -> None:
    operation = new(ONE, queue_timeout_s=0.001)
    await store.operations.take_in([(operation, 1)])
    await store.operations.claim([DispatchClaim(operation.queued(1), "h", "boot", 1)], token="t")
    await store.operations.apply([report(OperationState.RUNNING, seq=1)], {})
    running = await store.operation_queries.get(ONE)
    assert running is not None
    assert await store.operations.requeue(running)
    assert await store.operations.expired(limit=9) == []


async def test_what_clients_send_is_never_an_expression(store: Store) -> None:
    odd = {"$ne": "", "a.b": "$$NOW", "$expr": {"$function": 1}, "": None}
    operation = new(ONE, input=odd, metadata={"k": "$$ROOT"})
    await store.operations.take_in([(operation, 1)])
    (won,) = await store.operations.claim(
        [DispatchClaim(operation.queued(1), "$h", "$$NOW", 1)], token="t"
    )
    assert won.input_json == operation.input_json
    assert (won.metadata, won.host_id, won.incarnation) == ({"k": "$$ROOT"}, "$h", "$$NOW")
    error = ErrorInfo(code=ErrorCode.EXITED, message="$x", detail={"log_tail": "$y", "$z": 1})
    await store.operations.apply([report(OperationState.FAILED, seq=1, error=error)], {})
    ended = await store.operation_queries.get(ONE)
    assert ended is not None
    assert ended.error == error


async def test_a_place_in_line_is_given_once(store: Store) -> None:
    lines = await store.operations.next_positions(3)
    assert list(await store.operations.next_positions(2)) == [lines.stop, lines.stop + 1]
    await store.operations.record([new(ONE)])
    await store.operations.take_in([(new(ONE), 7)])
    await store.operations.take_in([(new(ONE), 9)])
    known = await store.operation_queries.known([ONE])
    await store.operations.put_in_line([(known[ONE], 11)])
    found = await store.operation_queries.get(ONE)
    assert found is not None
    assert found.line == 7


async def test_the_time_has_its_zone_as_all_recorded_times_have(store: Store) -> None:
    """Without one, a gateway whose machine is not on UTC would take it for its own time."""
    now = await store.time()
    assert now.tzinfo is UTC
    await store.operations.record([new(ONE)])
    found = await store.operation_queries.get(ONE)
    assert found is not None
    assert found.accepted_at is not None
    assert abs((found.accepted_at - now).total_seconds()) < 5.0


async def test_new_operations_enter_the_line_and_start_with_one_write(store: Store) -> None:
    recorded, brought, known, other, ended = (new(uuid.uuid4().hex) for _ in range(5))
    await store.operations.record([recorded, ended])
    await store.operations.take_in([(known, 1)])
    await store.operations.record([other])
    await store.operations.end_queued(
        [QueuedEnding(ended.queued(), OperationState.CANCELLED)], token="t"
    )
    changed = new(other.operation_id, input="another")
    claims = [DispatchClaim(one.queued(), "h", "boot", 1) for one in (recorded, brought)]
    entries = [
        IntakeEntry(recorded, 2, claims[0]),
        IntakeEntry(brought, 3, claims[1]),
        *(IntakeEntry(one, 4) for one in (known, changed, ended)),
    ]
    entered = await store.operations.enter(entries)
    assert not entered.unpublished
    assert entered.left_alone == {one.operation_id for one in (known, other, ended)}
    found = await store.operation_queries.get_many([one.new.operation_id for one in entries])
    for line, one in ((2, recorded), (3, brought)):
        there = found[one.operation_id]
        assert (there.line, there.state, there.epoch) == (line, OperationState.DISPATCHED, 1)
        assert (there.host_id, there.generation, there.model) == ("h", 1, "m")
        assert there.accepted_at is not None
        assert there.accepted_at <= (there.dispatched_at or there.accepted_at)
    assert [found[one.operation_id].line for one in (known, other, ended)] == [1, None, None]
    await store.operations.withdraw(entries[:2])
    back = await store.operation_queries.get_many([recorded.operation_id, brought.operation_id])
    assert all((one.line, one.state) == (None, OperationState.QUEUED) for one in back.values())


async def test_only_one_of_many_claims_wins(store: Store) -> None:
    await store.operations.take_in([(new(ONE), 1)])
    claims = await asyncio.gather(
        *(
            store.operations.claim(
                [DispatchClaim(new(ONE).queued(1), f"h{n}", "boot", 1)], token=f"t{n}"
            )
            for n in range(10)
        )
    )
    won = [one for claim in claims for one in claim]
    assert len(won) == 1
    found = await store.operation_queries.get(ONE)
    assert found is not None
    assert (found.host_id, found.epoch) == (won[0].host_id, 1)


async def test_an_operation_started_as_long_before_its_first_report_as_that_says(
    store: Store,
) -> None:
    for operation_id, ran_s in ((ONE, None), (TWO, 900.0)):
        await dispatched(store, operation_id)
        ended = report(OperationState.SUCCEEDED, seq=2, operation_id=operation_id, ran_s=ran_s)
        await store.operations.apply([ended], {})
        known = await store.operation_queries.get(operation_id)
        assert known is not None
        assert known.started_at is not None
        assert known.finished_at is not None
        if ran_s is None:
            assert known.started_at == known.finished_at
        else:
            lasted = known.finished_at - known.started_at
            assert lasted < timedelta(seconds=60), "never before it was dispatched"


async def test_what_never_began_is_queued_again_only_if_it_has_not_begun_meanwhile(
    store: Store,
) -> None:
    given = await dispatched(store)
    await store.operations.apply([report(OperationState.RUNNING, seq=1)], {})
    assert not await store.operations.requeue(given)
    assert await state_of(store) is OperationState.RUNNING


async def test_reports_are_fenced_by_epoch_sequence_and_state(store: Store) -> None:
    await dispatched(store)
    apply = store.operations.apply
    assert await apply([report(OperationState.RUNNING, seq=2)], {}) == 1
    assert await apply([report(OperationState.RUNNING, seq=1)], {}) == 0
    assert await apply([report(OperationState.RUNNING, seq=2)], {}) == 0
    assert await apply([report(OperationState.FAILED, seq=9, epoch=2)], {}) == 0
    assert await apply([report(OperationState.SUCCEEDED, seq=3)], {}) == 1
    assert await apply([report(OperationState.FAILED, seq=4)], {}) == 0
    assert await state_of(store) is OperationState.SUCCEEDED


async def test_no_report_leads_back_to_the_queue(store: Store) -> None:
    await dispatched(store)
    assert await store.operations.apply([report(OperationState.RUNNING, seq=1)], {}) == 1
    for state in (OperationState.QUEUED, OperationState.DISPATCHED):
        assert await store.operations.apply([report(state, seq=2)], {}) == 0
    assert await state_of(store) is OperationState.RUNNING


async def test_requeueing_needs_the_epoch_and_the_next_claim_raises_it(store: Store) -> None:
    first = await dispatched(store)
    assert not await store.operations.requeue(first.model_copy(update={"epoch": 5}))
    assert await store.operations.requeue(first)
    assert await store.operations.apply([report(OperationState.RUNNING, seq=1)], {}) == 0
    (second,) = await store.operations.claim([DispatchClaim(first, "h", "boot", 1)], token="t")
    assert second.epoch == 2


async def test_only_what_is_queued_can_be_rejected(store: Store) -> None:
    await dispatched(store)
    assert not await store.operations.end_queued(
        [QueuedEnding(new(ONE).queued(1), OperationState.REJECTED)], token="t"
    )
    assert await state_of(store) is OperationState.DISPATCHED


async def test_what_was_decided_on_another_request_with_the_same_id_has_no_effect(
    store: Store,
) -> None:
    """The other request is in memory for a moment, with a position that it never gets."""
    await store.operations.take_in([(new(ONE), 1)])
    other = new(ONE, operation_type="TERMINATE", job_id="another").queued(2)
    ending = QueuedEnding(other, OperationState.SUCCEEDED)
    assert not await store.operations.end_queued([ending], token="t")
    claim = DispatchClaim(other, "h", "boot", 1)
    assert not await store.operations.claim([claim], token="t")
    assert await state_of(store) is OperationState.QUEUED


async def test_waiting_counts_as_priority_so_none_waits_for_ever(store: Store) -> None:
    now = await store.time()

    def asked(name: str, priority: int, minutes_ago: float) -> NewOperation:
        at = now - timedelta(minutes=minutes_ago)
        return new(name, priority=priority).model_copy(update={"accepted": (at, 0)})

    given = [
        asked("old", 0, 11), asked("urgent", 10, 0), asked("older", -100, 90),
        asked("oldest", -100, 120), asked("plain", 0, 0), asked("least", -100, 0),
    ]  # fmt: skip
    await store.operations.record(given[:3])
    await store.operations.take_in([(one, line) for line, one in enumerate(given, start=1)])
    await store.operations.take_in([(new("by AMQP", priority=1), 9)])
    found = await store.operation_queries.waiting(after=None, limit=9)
    names = [one.operation_id for one in found]
    assert names == [
        "oldest", "old", "urgent", "by AMQP", "plain", "older", "least",
    ]  # fmt: skip
    pages: list[str] = []
    after: OperationRecord | None = None
    while page := await store.operation_queries.waiting(after=after, limit=2):
        pages += [one.operation_id for one in page]
        after = page[-1]
    assert pages == names
    by_id = {one.operation_id: one for one in found}
    assert by_id["urgent"].rank == given[1].queued(2).rank


async def test_many_reservations_at_once_never_exceed_a_host(store: Store) -> None:
    await store.hosts.come_online("h", "boot", ONLINE)
    host = await store.hosts.get("h")
    assert host is not None
    done = await asyncio.gather(
        *(
            store.hosts.reserve(host, [Allocation(job_id=f"j{n}", generation=1)], token="t")
            for n in range(20)
        )
    )
    assert sum(done) == 2
    full = await store.hosts.get("h")
    assert full is not None
    assert (full.slots_used, len(full.reservations)) == (2, 2)


async def test_a_reservation_is_freed_once_and_only_for_its_generation(store: Store) -> None:
    await store.hosts.come_online("h", "boot", ONLINE)
    host = await store.hosts.get("h")
    assert host is not None
    assert await store.hosts.reserve(host, [Allocation(job_id="j", generation=2)], token="t")
    assert not await store.hosts.reserve(host, [Allocation(job_id="j", generation=3)], token="t")
    await store.hosts.release({"h": [("j", 1)]})
    used = []
    for _ in range(2):
        found = await store.hosts.get("h")
        assert found is not None
        used.append(found.slots_used)
        await store.hosts.release({"h": [("j", 2)]})
        await store.hosts.release({"h": [("j", 2)]})
    assert used == [1, 0]


async def test_a_boot_that_was_followed_by_another_cannot_come_back(store: Store) -> None:
    assert await store.hosts.come_online("h", "one", ONLINE)
    assert await store.hosts.come_online("h", "one", ONLINE)
    assert await store.hosts.come_online("h", "two", ONLINE)
    assert not await store.hosts.come_online("h", "one", ONLINE)
    host = await store.hosts.get("h")
    assert host is not None
    assert host.incarnation == "two"
    assert host.labels == {"a.b": "$c"}


async def test_what_is_fenced_off_is_counted_by_host_and_reason_and_outlives_boots(
    store: Store,
) -> None:
    for host_id in ("h", "other"):
        await store.hosts.come_online(host_id, "one", ONLINE)
    await store.hosts.count_fenced_off({})
    await store.hosts.count_fenced_off({("h", "late"): 2, ("h", "illegal"): 1, ("other", "a"): 1})
    await store.hosts.come_online("h", "two", ONLINE)
    await asyncio.gather(
        *(store.hosts.count_fenced_off({("h", "late"): 1, ("nowhere", "a"): 1}) for _ in range(9))
    )
    counted = {one.host_id: one.fenced_off for one in await store.hosts.all()}
    assert counted == {"h": {"late": 11, "illegal": 1}, "other": {"a": 1}}


async def test_only_the_current_attempt_may_change_a_job(store: Store) -> None:
    await store.jobs.ensure(["j"])
    job = await store.jobs.get("j")
    assert job is not None

    def assignment(operation_id: str, version: int) -> Assignment:
        return Assignment("j", version, operation_id, 1, 1, "h", SPEC)

    assert await store.jobs.assign([assignment(ONE, job.version)], token="t1") == {"j"}
    assert await store.jobs.assign([assignment(TWO, job.version)], token="t2") == set()

    def effect(operation_id: str, seq: int, state: JobState, generation: int = 1) -> JobEffect:
        return JobEffect("j", operation_id, 1, seq, generation, "h", state, "c" * 64, None)

    assert await store.jobs.apply([effect(TWO, 1, JobState.CREATED)]) == 0
    assert await store.jobs.apply([effect(ONE, 1, JobState.CREATED, generation=2)]) == 0
    assert await store.jobs.apply([effect(ONE, 5, JobState.CREATED)]) == 1
    assert await store.jobs.apply([effect(ONE, 5, JobState.CREATED)]) == 1
    assert await store.jobs.apply([effect(ONE, 4, JobState.FAILED)]) == 0
    now = await store.jobs.get("j")
    assert now is not None
    assert (now.state, now.container_id, now.spec) == (JobState.CREATED, "c" * 64, SPEC)


async def test_jobs_are_read_without_what_takes_longest_to_read(store: Store) -> None:
    await store.jobs.ensure(["j", "k"])
    await store.jobs.assign([Assignment("j", 0, ONE, 1, 1, "h", SPEC)], token="t")
    wanted = ["j", "k", "nobody"]
    found, whole = await store.jobs.without_specs(wanted), await store.jobs.get_many(wanted)
    assert whole["j"].spec == SPEC
    assert found == {"j": whole["j"].model_copy(update={"spec": None}), "k": whole["k"]}


async def test_a_load_of_a_model_in_memory_changes_neither_when_nor_how_long_it_was_loaded(
    store: Store,
) -> None:
    await store.jobs.ensure(["j"])
    await store.jobs.assign([Assignment("j", 0, ONE, 1, 1, "h", SPEC)], token="t")

    async def report(seq: int, state: JobState, ran_s: float) -> JobRecord:
        told = LastReport(incarnation="boot", number=seq)
        effect = JobEffect(
            "j", ONE, 1, seq, 1, "h", state, "c" * 64, None, told=told, ran_s=ran_s
        )  # fmt: skip
        assert await store.jobs.apply([effect]) == 1
        job = await store.jobs.get("j")
        assert job is not None
        assert job.current is not None
        assert (job.state, job.current.operation_id, job.current.seq) == (state, ONE, seq)
        assert job.told == told
        return job

    await report(1, JobState.CREATED, 1.0)
    loaded = await report(2, JobState.LOADED, 2.0)
    again = await report(3, JobState.LOADED, 0.1)
    assert again.version == loaded.version + 1
    assert loaded.loaded_at is not None
    assert (again.loaded_at, again.load_s) == (loaded.loaded_at, 2.0)


async def test_what_a_write_says_it_makes_of_a_job_is_what_the_record_has_then(
    store: Store,
) -> None:
    await store.jobs.ensure(["j"])
    job = JobRecord(job_id="j")
    lost = ErrorInfo(code=ErrorCode.CREATE_FAILED, message="no", detail={"$a": [1, {"b.c": None}]})
    dataset = DatasetSpec(name="d", volume="v")
    steps: list[Assignment | JobEffect] = [
        Assignment("j", 0, ONE, 1, 1, "h", SPEC, dataset, devices=("GPU-1",), anew=True),
        JobEffect("j", ONE, 1, 2, 1, "h", JobState.CREATED, "c" * 64, None),
        Assignment("j", 2, TWO, 3, 1, "h"),
        JobEffect(
            "j", TWO, 3, 1, 1, "h", JobState.TERMINATED, None, None,
            told=LastReport(incarnation="boot", number=7), ran_s=0.5,
        ),
        Assignment("j", 4, ONE, 4, 2, "other", SPEC),
        JobEffect("j", ONE, 4, 1, 2, "other", JobState.FAILED, None, lost),
        Assignment("j", 6, TWO, 5, 3, "h", SPEC),
        JobEffect("j", TWO, 5, 2, 3, "h", JobState.CREATED, "d" * 64, None),
        JobEffect("j", "any", 1, 9, 3, "h", JobState.FAILED, None, lost, shared=True),
    ]  # fmt: skip
    for step in steps:
        if isinstance(step, Assignment):
            assert await store.jobs.assign([step], token="t") == {"j"}
        else:
            assert await store.jobs.apply([step]) == 1
        after = step.applied_to(job)
        recorded = await store.jobs.get("j")
        assert after is not None
        assert recorded is not None
        times = {"created_at": None, "updated_at": None}
        assert recorded.model_copy(update=times) == after.model_copy(update=times), step
        job = after


@pytest.mark.parametrize("limit_reached", [False, True])
@pytest.mark.parametrize("state", [JobState.LOADED, JobState.CREATED])
async def test_a_job_that_is_found_down_counts_it_if_it_was_loaded(
    store: Store, state: JobState, *, limit_reached: bool
) -> None:
    await store.jobs.ensure(["j"])
    await store.jobs.assign([Assignment("j", 0, ONE, 1, 1, "h", SPEC)], token="t")
    error = ErrorInfo(code=ErrorCode.EXITED, message="no", detail={"$a": [1]})
    restoration = RestorationRecord(to=JobState.LOADED, key=0, rest_s=1.0)
    found = JobEffect(
        "j", "any", 1, 9, 1, "h", JobState.FAILED, None, error, shared=True,
        coming=None if limit_reached else PendingRestoration(restoration, 3),
        again=restoration.model_copy(update={"rest_s": 2.0}),
    )  # fmt: skip
    assert await store.jobs.apply([found]) == 0  # not live
    for now in (JobState.CREATED, state):
        assert await store.jobs.apply([JobEffect("j", ONE, 1, 1, 1, "h", now, "c" * 64, None)]) == 1
    before = await store.jobs.get("j")
    assert before is not None
    assert await store.jobs.apply([found]) == 1
    assert await store.jobs.apply([found]) == 0
    job = await store.jobs.get("j")
    assert job is not None
    assert (job.state, job.host_id, job.container_id) == (JobState.FAILED, None, None)
    assert (job.error, job.version) == (error, before.version + 1)
    counts = state is JobState.LOADED and not limit_reached
    assert job.restarts == (3 if counts else 0)
    if state is JobState.LOADED and limit_reached:
        assert job.recovery is None
    else:
        rest_s = 1.0 if counts else 2.0
        expected = {"key": before.version, "rest_s": rest_s}
        assert job.recovery == restoration.model_copy(update=expected)


@pytest.mark.parametrize("size", [10, MAX_INLINE_RESULT_BYTES + 1])
async def test_results_of_any_size_come_back_whole(store: Store, size: int) -> None:
    await dispatched(store)
    text = '"' + "ä" * (size // 2) + '"'
    place = await store.results.put(ONE, 1, text)
    assert place == await store.results.put(ONE, 1, text)
    assert (place.inline_json is None) == (size > MAX_INLINE_RESULT_BYTES)
    await store.operations.apply([report(OperationState.SUCCEEDED, seq=1)], {ONE: place})
    chunks = await store.results.get(ONE)
    assert chunks is not None
    assert b"".join([chunk async for chunk in chunks]).decode() == text


@pytest.mark.parametrize("size", [10, MAX_INLINE_RESULT_BYTES + 1])
async def test_a_result_that_is_not_json_comes_back_with_its_type(store: Store, size: int) -> None:
    await dispatched(store)
    content = bytes(range(256)) * (size // 256) + b"\xff" * (size % 256)
    result = ResultContent(content_type="image/png", content=content)
    place = await store.results.put(ONE, 1, result)
    assert (place.inline_content is None) == (size > MAX_INLINE_RESULT_BYTES)
    await store.operations.apply([report(OperationState.SUCCEEDED, seq=1)], {ONE: place})
    record = await store.operation_queries.get(ONE)
    assert record is not None
    assert (record.result_type, record.result_bytes) == ("image/png", size)
    assert record.result_sha256 == hashlib.sha256(content).hexdigest()
    chunks = await store.results.get(ONE)
    assert chunks is not None
    assert b"".join([chunk async for chunk in chunks]) == content


async def test_the_newest_reply_address_is_kept_while_an_operation_is_open(store: Store) -> None:
    addresses = [ReplyAddress(queue=f"amq.gen-{n}", correlation_id="$$NOW") for n in range(4)]
    await store.operations.record([new(ONE), new(TWO)])
    # Its message brings the address; whoever recorded it had none.
    brought = new(ONE).model_copy(update={"reply": addresses[0]})
    await store.operations.enter([IntakeEntry(brought, 1)])
    first = await store.operation_queries.get_many([ONE, TWO])
    assert [first[key].reply for key in (ONE, TWO)] == [addresses[0], None]
    ended = QueuedEnding(first[TWO], OperationState.CANCELLED)
    await store.operations.end_queued([ended], token="t")
    known = await store.operation_queries.known([ONE, TWO])
    for address in addresses[1:]:
        await store.operations.set_replies([(known[ONE], address), (known[TWO], address)])
    kept = await store.operation_queries.get_many([ONE, TWO])
    assert [kept[key].reply for key in (ONE, TWO)] == [addresses[-1], None]


async def test_only_small_results_of_json_are_read_at_once(store: Store) -> None:
    text = ResultContent(content_type="text/plain", content=b"1")
    small, large, other, without = (str(uuid.uuid4()) for _ in range(4))
    results: dict[str, str | ResultContent] = {small: "[1]", large: "[22]", other: text}
    for key, result in results.items():
        await dispatched(store, key)
        place = await store.results.put(key, 1, result)
        ending = report(OperationState.SUCCEEDED, seq=1, operation_id=key)
        await store.operations.apply([ending], {key: place})
    await dispatched(store, without)
    found = await store.operation_queries.small_results([*results, without, "d"], most_bytes=3)
    assert found == {small: "[1]"}


async def test_an_operation_without_a_result_has_none(store: Store) -> None:
    await dispatched(store)
    assert await store.results.get(ONE) is None
    assert await store.results.get("nothing") is None


async def test_the_waiting_room_is_ordered_by_priority_then_line(store: Store) -> None:
    await store.operations.take_in(
        [
            (new("a", priority=0), 1),
            (new("b", priority=5), 2),
            (new("c", priority=5), 3),
            (new("d", priority=9), 4),
        ]
    )
    first = await store.operation_queries.waiting(after=None, limit=3)
    rest = await store.operation_queries.waiting(after=first[-1], limit=3)
    assert [one.operation_id for one in (*first, *rest)] == ["d", "b", "c", "a"]


async def test_an_operation_may_go_before_all_those_of_clients(store: Store) -> None:
    await store.jobs.ensure(["j"])
    lines = {"a": 1, "b": 2, "c": 3 + FRONT_OF_LINE}
    await store.operations.take_in([(new(key), line) for key, line in lines.items()])
    room = await store.operation_queries.waiting(after=None, limit=9)
    assert [one.operation_id for one in room] == ["c", "a", "b"]
    (line,) = (await store.jobs.lines(["j"])).lines
    assert [one.line for one in line.operations] == [lines["c"], 1, 2]


async def test_lines_of_more_jobs_than_are_read_at_once_are_all_returned(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.store.jobs.LINES_AT_ONCE", 2)
    jobs = [f"j-{number}" for number in range(5)]
    await store.jobs.ensure(jobs)
    await store.operations.take_in([(new(job, job_id=job), 1) for job in jobs])
    read = await store.jobs.lines([*jobs, "unknown"])
    assert {line.job.job_id: line.operations[0].operation_id for line in read.lines} == {
        job: job for job in jobs
    }
    assert len(read.lines) == 5
    assert not read.moved
    assert not (await store.jobs.lines([])).lines


async def test_the_head_of_a_line_has_its_first_open_operations_in_order(store: Store) -> None:
    await store.jobs.ensure(["j", "without"])
    lines = {"a": 1, "b": 2, "c": 3 + FRONT_OF_LINE}
    await store.operations.take_in([(new(key), line) for key, line in lines.items()])
    heads = await store.jobs.heads_of_lines(["j", "without", "unknown"])
    assert [*heads] == ["j"]
    assert [one.operation_id for one in heads["j"].operations] == ["c", "a", "b"]
    assert [one.line for one in heads["j"].operations] == [lines["c"], 1, 2]
    assert {one.state for one in heads["j"].operations} == {OperationState.QUEUED}
    assert heads["j"].max_concurrency == 1


async def test_the_head_of_a_line_knows_how_many_inferences_its_model_takes(store: Store) -> None:
    await placed(store, "j", spec=spec_of(max_concurrency=4))
    await store.operations.take_in([(new("a"), 1)])
    assert (await store.jobs.heads_of_lines(["j"]))["j"].max_concurrency == 4


async def test_what_is_open_of_a_job_is_counted_and_what_is_not_in_line_is_listed(
    store: Store,
) -> None:
    lines = {"a": 1, "b": 2, "c": 3 + FRONT_OF_LINE}
    await store.operations.take_in([(new(key), line) for key, line in lines.items()])
    outside = new("leg").model_copy(update={"aside": True})
    other = new("of another", job_id="k")
    rejected = new("bad").model_copy(update={"rejection": ErrorInfo.of(ErrorCode.INTERNAL)})
    for one in (new("d"), new("e", input={"large": 1}), outside, other, rejected):
        await store.operations.record([one])
    queries = store.operation_queries
    late = await queries.not_in_line("j", limit=9)
    assert [one.operation_id for one in late] == ["d", "e"]
    assert [(one.has_input, one.input_json) for one in late] == [(False, None), (True, None)]
    assert len(await queries.not_in_line("j", limit=1)) == 1
    assert await queries.open_of_job("j") == 5
    assert [await queries.open_of_job("j", before=line) for line in (lines["c"], 1, 2)] == [0, 1, 2]
    assert await queries.open_of_job("nobody's") == 0


async def test_more_urgent_operations_are_counted_for_a_host_too(store: Store) -> None:
    verbs = {"here": Verb.DEPLOY_LOAD, "there": Verb.DEPLOY_LOAD, "one": Verb.TEMP}
    verbs |= {"other": Verb.DEPLOY_CREATE, "mine": Verb.DEPLOY_LOAD, "later": Verb.TEMP}
    for line, (job_id, verb) in enumerate(verbs.items(), 1):
        one = new(job_id, job_id=job_id, operation_type=verb, model="m")
        await store.operations.take_in([(one, line)])
    await store.operations.explain_waiting({key: ("no room",) for key in verbs if key != "there"})
    mine = await store.operation_queries.get("mine")
    assert mine is not None
    last, first = (mine.model_copy(update={"rank": rank}) for rank in (1 << 60, -1))
    queries = store.operation_queries
    assert await queries.more_urgent(last) == 5
    assert await queries.more_urgent(last, loads_of=["here", "there"]) == 3
    assert await queries.more_urgent(last, loads_of=[]) == 2
    assert await queries.more_urgent(first) == 0


async def test_how_long_operations_took_lately_is_known_by_model(store: Store) -> None:
    queries = store.operation_queries
    assert await queries.took_lately(Verb.TEMP, ["m"], most=9) == {}
    for operation_id, end in ((ONE, OperationState.SUCCEEDED), (TWO, OperationState.FAILED)):
        await dispatched(store, operation_id)
        await store.operations.apply([report(end, seq=1, operation_id=operation_id)], {})
    known = await queries.get(ONE)
    assert known is not None
    assert known.started_at is not None
    assert known.finished_at is not None
    took_s = (known.finished_at - known.started_at).total_seconds()
    assert await queries.took_lately(Verb.TEMP, ["m", "x"], most=9) == {"m": took_s}
    assert await queries.took_lately(Verb.TEMP, ["x"], most=9) == {}
    assert await queries.took_lately(Verb.DEPLOY_LOAD, ["m"], most=9) == {}


async def test_pages_list_everything_once_newest_first(store: Store) -> None:
    for number in range(7):
        await store.operations.record([new(f"o{number}")])
    seen: list[str] = []
    after = None
    while True:
        page = await store.operation_queries.page({"job_id": "j"}, after=after, limit=3)
        seen += [one.operation_id for one in page.items]
        if page.next is None:
            break
        after = page.next
    assert seen == [f"o{number}" for number in reversed(range(7))]


async def test_events_are_appended_once(store: Store) -> None:
    event = Event.model_validate(
        {
            "event_id": "e",
            "type": "operation.queued",
            "at": "2026-01-01T00:00:00Z",
            "operation_id": ONE,
            "state": "QUEUED",
        }
    )
    assert await store.events.append([event]) == {"e"}
    other = event.model_copy(update={"event_id": "f", "host_id": "h"})
    assert await store.events.append([event, other]) == {"f"}
    assert await store.events.append([event, other]) == set()
    assert [one.event_id for one in await store.events.of_operation(ONE)] == ["e", "f"]
    assert await store.events.hosts_of(["e", "f", "g", "f"]) == {"e": None, "f": "h"}


async def test_the_catalog_keeps_entries_by_name(store: Store) -> None:
    assert await store.models.put(SPEC)
    assert not await store.models.put(SPEC)
    assert await store.models.get("m") == SPEC
    assert (await store.models.page(limit=1)).items == (SPEC,)
    dataset = DatasetSpec(name="d", volume="v")
    await store.datasets.put(dataset)
    assert await store.datasets.get_many(["d", "e"]) == {"d": dataset}
    assert await store.models.delete("m")
    assert not await store.models.delete("m")


async def test_an_entry_is_created_only_once(store: Store) -> None:
    created = await asyncio.gather(*(store.models.create(SPEC) for _ in range(8)))
    assert sorted(created) == [False] * 7 + [True]
    other = SPEC.model_copy(update={"image": "a/b:2"})
    assert not await store.models.create(other)
    assert await store.models.get(SPEC.name) == SPEC


async def test_an_entry_is_replaced_or_deleted_only_as_it_was_seen(store: Store) -> None:
    await store.models.put(SPEC)
    seen = await store.models.find(SPEC.name)
    assert seen is not None
    others = [SPEC.model_copy(update={"image": f"a/b:{n}"}) for n in range(8)]
    replaced = await asyncio.gather(*(store.models.replace(one, seen) for one in others))
    assert sorted(replaced) == [False] * 7 + [True]
    assert await store.models.get(SPEC.name) == others[replaced.index(True)]
    assert not await store.models.delete(SPEC.name, seen)
    now = await store.models.find(SPEC.name)
    assert await store.models.delete(SPEC.name, now)
    assert await store.models.find(SPEC.name) is None
    assert not await store.models.replace(SPEC, seen)


async def test_pages_by_name_hold_every_entry_once(store: Store) -> None:
    names = ["B", "a", "a-1", "b", "z"]
    for name in names:
        await store.models.put(SPEC.model_copy(update={"name": name}))
        online = HostOnline(slots=1, engine=EngineFacts(version="29", api_version="1.44"))
        await store.hosts.come_online(name, "i", online)
    for collection in (store.models, store.hosts):
        found, after = list[str](), None
        for size in (2, 2, 1):
            page = await collection.page(after=after, limit=2)
            assert len(page.items) == size
            found += [getattr(one, "host_id", getattr(one, "name", "")) for one in page.items]
            after = page.next
        assert after is None
        assert found == sorted(names)


@pytest.fixture(params=["mongodb", "memory", "silent memory"])
async def nowhere(request: pytest.FixtureRequest) -> Store:
    """Return a store whose database does not answer."""
    if request.param == "mongodb":
        return Store("mongodb://127.0.0.1:1/x?replicaSet=rs0", name="test", timeout_s=0.5)
    made = MemoryStore(MemoryDatabase(time.monotonic), timeout_s=0.5)
    made.link.up = request.param == "silent memory"
    made.link.silent = request.param == "silent memory"
    return made


async def test_a_database_that_is_not_there_is_said_within_the_deadline(nowhere: Store) -> None:
    async with asyncio.timeout(2):
        with pytest.raises(StoreUnavailableError):
            await nowhere.ping()
        with pytest.raises(StoreUnavailableError):
            await nowhere.operations.record([new()])
    nowhere.close()


async def test_verbs_and_states_are_stored_as_plain_text(
    store: Store, database: str | MemoryDatabase
) -> None:
    await dispatched(store)
    (document,) = documents(database, "operations")
    assert type(document["state"]) is str
    assert (document["state"], document["verb"]) == ("DISPATCHED", Verb.TEMP.value)


async def test_an_operation_that_is_seen_ended_has_left_its_mark_on_the_job_that_is_seen(
    store: Store, database: str | MemoryDatabase
) -> None:
    """The recorder writes the job first; whoever reads them together must not read it older.

    The fake's clients take turns in the same order each time: more rounds show nothing new.
    """
    rounds = 25 if isinstance(database, MemoryDatabase) else 100
    await store.jobs.ensure(["j"])
    ids = [f"0190c2f0-0000-7000-8000-{number:012d}" for number in range(1, rounds + 2)]
    await store.operations.take_in([(new(key), line) for line, key in enumerate(ids, start=1)])
    looks = 0

    async def look() -> None:
        nonlocal looks
        while True:
            read = await store.jobs.lines(["j"])
            if read.moved:
                continue
            (line,) = read.lines
            first_open = line.operations[0].line
            assert first_open is not None
            assert line.job.generation >= first_open - 1
            looks += 1
            if first_open > rounds:
                return

    async def write() -> None:
        job = await store.jobs.get("j")
        assert job is not None
        for number in range(1, rounds + 1):
            step = Assignment("j", job.version + number - 1, ids[number - 1], 1, number, "h")
            assert await store.jobs.assign([step], token=f"t{number}") == {"j"}
            await store.operations.end_queued(
                [QueuedEnding(new(ids[number - 1]).queued(number), OperationState.SUCCEEDED)],
                token=f"t{number}",
            )

    await asyncio.gather(write(), *(look() for _ in range(4)))
    assert looks > rounds
