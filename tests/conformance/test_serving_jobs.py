"""Which jobs of a model can take an inference, on a real MongoDB and in memory."""

from typing import Any

import pytest
from pymongo import MongoClient

from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store import Store
from modelyard.store.indexes import COPIES
from modelyard.store.operations import QueuedEnding
from modelyard.store.queries.serving_jobs import (
    MOST_COUNTED,
    Copies,
    ServingJob,
    Stage,
)
from modelyard.store.records import RelocationRecord, RestorationRecord
from tests.support.placed import host_online, in_line, placed, spec_of

M = Copies("m")
LOAD, UNLOAD, TERMINATE, INFER = (
    Verb.DEPLOY_LOAD,
    Verb.DEPLOY_UNLOAD,
    Verb.TERMINATE,
    Verb.INFER,
)
ON_DEMAND = spec_of(on_demand=True)


@pytest.fixture
async def store(any_store: Store) -> Store:
    await host_online(any_store)
    return any_store


async def resident(store: Store, **options: Any) -> list[str]:
    found = await store.serving_jobs.resident(M, **{"limit": 9, **options})
    return [one.job_id for one in found]


async def stages(store: Store) -> dict[str, Stage]:
    loaded = await store.serving_jobs.resident(M, limit=9)
    created = await store.serving_jobs.loadable(M, limit=9)
    return {one.job_id: one.stage for one in (*loaded, *created)}


async def test_a_loaded_job_is_found_with_its_open_operations(store: Store) -> None:
    await placed(store, "busy", spec=spec_of(max_concurrency=4))
    await placed(store, "idle")
    await placed(store, "other", spec=spec_of("another"))
    first, *_ = await in_line(store, "busy", [INFER] * 3)
    await store.operations.end_queued(
        [QueuedEnding(first.queued(1), OperationState.SUCCEEDED)], token="t"
    )
    assert await store.serving_jobs.resident(M, limit=9) == [
        ServingJob("busy", Stage.RESIDENT, 2, 4),
        ServingJob("idle", Stage.RESIDENT, 0, 1),
    ]
    assert await store.serving_jobs.loadable(M, limit=9) == []


async def test_what_has_no_place_in_line_yet_counts_too(store: Store) -> None:
    await placed(store, "j")
    [new] = await in_line(store, "elsewhere", [INFER])
    await store.operations.record([new.model_copy(update={"operation_id": "o", "job_id": "j"})])
    [job] = await store.serving_jobs.resident(M, limit=9)
    assert job.open == 1


async def test_what_is_counted_is_bounded(store: Store) -> None:
    await placed(store, "j")
    await in_line(store, "j", [INFER] * (MOST_COUNTED + 5))
    [job] = await store.serving_jobs.resident(M, limit=9)
    assert job.open == MOST_COUNTED


async def test_a_job_that_a_terminate_waits_for_is_not_found_however_long_its_line(
    store: Store,
) -> None:
    for job_id in ("last", "first"):
        await placed(store, job_id, spec=ON_DEMAND)
    await in_line(store, "last", [INFER] * (MOST_COUNTED + 5))
    await in_line(store, "last", [TERMINATE])
    await in_line(store, "first", [TERMINATE, INFER])
    assert await stages(store) == {}


@pytest.mark.parametrize(
    ("verb", "stage"), [(TERMINATE, None), (UNLOAD, Stage.UNLOADED), (INFER, Stage.RESIDENT)]
)
async def test_what_is_not_taken_in_yet_is_behind_the_longest_line(
    store: Store, verb: Verb, stage: Stage | None
) -> None:
    await placed(store, "j", spec=ON_DEMAND)
    await in_line(store, "j", [LOAD] * (MOST_COUNTED + 5))
    [new] = await in_line(store, "elsewhere", [verb])
    await store.operations.record([new.model_copy(update={"operation_id": "o", "job_id": "j"})])
    assert await stages(store) == ({} if stage is None else {"j": stage})
    if stage is not None:
        [job] = await store.serving_jobs.resident(M, limit=9)
        assert job.open == MOST_COUNTED


@pytest.mark.parametrize(
    ("state", "line", "by_hand", "on_demand"),
    [
        (JobState.LOADED, [], Stage.RESIDENT, Stage.RESIDENT),
        (JobState.LOADED, [INFER, LOAD], Stage.RESIDENT, Stage.RESIDENT),
        (JobState.LOADED, [UNLOAD], None, Stage.UNLOADED),
        (JobState.LOADED, [UNLOAD, INFER], None, Stage.LOADING),
        (JobState.LOADED, [UNLOAD, LOAD], Stage.LOADING, Stage.LOADING),
        (JobState.LOADED, [LOAD, UNLOAD], None, Stage.UNLOADED),
        (JobState.CREATED, [], None, Stage.UNLOADED),
        (JobState.CREATED, [INFER], None, Stage.LOADING),
        (JobState.CREATED, [LOAD], Stage.LOADING, Stage.LOADING),
        (JobState.CREATED, [LOAD, UNLOAD], None, Stage.UNLOADED),
        (JobState.CREATED, [UNLOAD], None, Stage.UNLOADED),
        (JobState.FAILED, [LOAD], None, None),
        (JobState.TERMINATED, [], None, None),
    ],
)
async def test_the_last_in_line_decides_what_a_job_comes_to(
    store: Store, state: JobState, line: list[Verb], by_hand: Stage | None, on_demand: Stage | None
) -> None:
    await placed(store, "by-hand", state)
    await placed(store, "on-demand", state, ON_DEMAND)
    for job_id in ("by-hand", "on-demand"):
        await in_line(store, job_id, line)
    found = await stages(store)
    assert (found.get("by-hand"), found.get("on-demand")) == (by_hand, on_demand)


async def test_an_unload_in_front_of_the_line_does_not_undo_the_load_behind_it(
    store: Store,
) -> None:
    await placed(store, "j")
    await in_line(store, "j", [LOAD])
    await in_line(store, "j", [UNLOAD], in_front=True)
    assert await stages(store) == {"j": Stage.LOADING}


async def test_a_job_serves_while_it_is_moved_but_not_while_it_is_down(store: Store) -> None:
    moving, down = [await placed(store, job_id) for job_id in ("moving", "down")]
    move = RelocationRecord(host_id="h-2", generation=2, state=JobState.LOADED)
    assert await store.jobs.begin_move(moving, move)
    [new] = await in_line(store, "elsewhere", [LOAD])
    aside = {"operation_id": "o", "job_id": "moving", "aside": True}
    await store.operations.record([new.model_copy(update=aside)])
    recovery = RestorationRecord(to=JobState.LOADED, key=1)
    assert await store.jobs.observe(down, JobState.CREATED, None, recovery=recovery)
    assert await store.serving_jobs.resident(M, limit=9) == [
        ServingJob("moving", Stage.RESIDENT, 0, 1)
    ]
    assert await store.serving_jobs.loadable(M, limit=9) == []


async def test_a_job_on_a_silent_host_is_not_found(store: Store) -> None:
    await host_online(store, "silent")
    await placed(store, "here")
    await placed(store, "there", host_id="silent")
    await placed(store, "nowhere", host_id="unknown")
    assert await resident(store) == ["here", "there"]
    assert set(await store.hosts.suspect_silent(after_s=0.0)) == {"h-1", "silent"}
    assert await resident(store) == []
    await host_online(store, boot="another")
    assert await resident(store) == ["here"]


async def test_a_dataset_narrows_the_choice(store: Store) -> None:
    await placed(store, "a", dataset="ds-1")
    await placed(store, "b", dataset="ds-2")
    await placed(store, "c")
    found = await store.serving_jobs.resident(Copies("m", "ds-2"), limit=9)
    assert [one.job_id for one in found] == ["b"]
    assert await store.serving_jobs.states(Copies("m", "ds-2")) == {JobState.LOADED: 1}
    assert await resident(store) == ["a", "b", "c"]


async def test_a_window_moves_on_over_many_jobs_and_comes_round(store: Store) -> None:
    for name in "abcde":
        await placed(store, name)
    await in_line(store, "b", [TERMINATE])
    windows = [await resident(store, limit=3, after=after) for after in (None, "d", "e", "c")]
    assert windows == [["a", "c", "d"], ["e", "a", "c"], ["a", "c", "d"], ["d", "e", "a"]]
    assert await resident(store, limit=9, after="c") == ["d", "e", "a", "c"]


async def test_jobs_are_counted_by_their_states(store: Store) -> None:
    states = [JobState.LOADED, JobState.LOADED, JobState.FAILED, JobState.TERMINATED, JobState.NONE]
    for number, state in enumerate(states):
        await placed(store, f"j-{number}", state)
    assert await store.serving_jobs.states(M) == {JobState.LOADED: 2, JobState.FAILED: 1}
    assert await store.serving_jobs.states(Copies("unknown")) == {}


async def test_the_real_server_looks_at_the_jobs_of_the_model_alone_and_never_sorts(
    mongo_url: str,
) -> None:
    store = Store(mongo_url, name="test", timeout_s=10.0)
    await store.prepare()
    await host_online(store)
    await placed(store, "one")
    with MongoClient[dict[str, Any]](mongo_url) as client:
        database = client.get_default_database()
        [one] = database["jobs"].find({})
        for name, change in (("j", {}), ("past", {"state": "TERMINATED"}), ("of", {"model": "n"})):
            made = [{**one, **change, "_id": f"{name}-{n:04d}"} for n in range(2_000)]
            database["jobs"].insert_many(made)
        database.command("profile", 2)
        found = await store.serving_jobs.resident(M, limit=30, after="j-1500")
        database.command("profile", 0)
        [done] = database["system.profile"].find({"command.aggregate": "jobs"})
    store.close()
    assert [found[0].job_id, found[-1].job_id] == ["j-1501", "j-1530"]
    # The 500 behind that id, all of which MongoDB may read ahead, and the hosts of those 30.
    assert done["docsExamined"] <= 500 + 30
    assert not done.get("hasSortStage")


async def test_jobs_are_found_although_an_operator_dropped_an_index(mongo_url: str) -> None:
    store = Store(mongo_url, name="test", timeout_s=10.0)
    await store.prepare()
    await host_online(store)
    await placed(store, "one")
    with MongoClient[dict[str, object]](mongo_url) as client:
        client.get_default_database()["jobs"].drop_index(COPIES)
    assert await resident(store) == ["one"]
    store.close()
