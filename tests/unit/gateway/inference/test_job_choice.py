"""Choosing jobs from readings that are kept for a while, over a store in memory."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from gateway.availability import Availability
from gateway.inference import leaving_jobs
from gateway.inference.job_choice import FRESH_S, KEPT_S, WINDOW, JobChoice
from gateway.inference.leaving_jobs import LEAVING_S, LeavingJobs
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.errors import ErrorCode, ModelyardError, StoreUnavailableError
from modelyard.contract.states import JobState, Verb
from modelyard.store.queries.serving_jobs import Copies
from tests.fakes.broker_links import Call
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore
from tests.support.placed import host_online, in_line, placed, spec_of

M = Copies("m")


class Chooser:
    """A choice of jobs over a store of its own; `now` is its clock."""

    def __init__(self) -> None:
        self.database = MemoryDatabase(time.monotonic)
        self.store = MemoryStore(self.database)
        self.hands = MemoryStore(self.database)
        self.now = 1_000.0
        self.availability = Availability("mongodb", self.store.ping, StoreUnavailableError)
        self.leaving = LeavingJobs(clock=lambda: self.now)
        self.choice = JobChoice(self.store, self.availability, self.leaving, clock=lambda: self.now)

    @property
    def reads(self) -> int:
        return self.store.link.calls[Call.READ]

    async def jobs_for(self, count: int, copies: Copies = M) -> Counter[str]:
        asked = (self.choice.job_for(copies) for _ in range(count))
        return Counter(await asyncio.gather(*asked))

    async def refusal(self, copies: Copies = M) -> ModelyardError:
        with pytest.raises(ModelyardError) as refused:
            await self.choice.job_for(copies)
        return refused.value


@pytest.fixture
async def chooser() -> AsyncIterator[Chooser]:
    made = Chooser()
    await made.hands.models.put(spec_of())
    await host_online(made.hands)
    running = asyncio.create_task(made.choice.run())
    yield made
    running.cancel()


async def test_a_thousand_inferences_a_second_cost_one_read_each_200_ms(chooser: Chooser) -> None:
    for name in "abcd":
        await placed(chooser.hands, name)
    first, before = await chooser.jobs_for(200), chooser.reads
    assert first == {"a": 50, "b": 50, "c": 50, "d": 50}
    chooser.now += FRESH_S / 2
    assert await chooser.jobs_for(200) == first
    assert chooser.reads == before == 1
    chooser.now += FRESH_S / 2
    await chooser.jobs_for(200)
    assert chooser.reads == 2


async def test_what_a_job_has_to_do_by_now_counts_from_the_next_reading_on(
    chooser: Chooser,
) -> None:
    await placed(chooser.hands, "a")
    await placed(chooser.hands, "b")
    await chooser.jobs_for(1)
    await in_line(chooser.hands, "a", [Verb.INFER] * 3)
    chooser.now += FRESH_S
    assert await chooser.jobs_for(3) == {"b": 3}


async def test_each_model_and_dataset_is_read_for_itself(chooser: Chooser) -> None:
    await placed(chooser.hands, "a", dataset="ds-1")
    await placed(chooser.hands, "b", dataset="ds-2")
    await placed(chooser.hands, "c", spec=spec_of("n"))
    wanted = [Copies("m", "ds-2"), Copies("n"), Copies("m", "ds-1"), Copies("unknown")]
    found = await asyncio.gather(
        *(chooser.choice.job_for(one) for one in wanted), return_exceptions=True
    )
    assert found[:3] == ["b", "c", "a"]
    assert isinstance(found[3], ModelyardError)


async def test_an_unloaded_copy_is_loaded_if_the_resident_ones_have_a_backlog(
    chooser: Chooser,
) -> None:
    spec = spec_of(on_demand=True)
    await placed(chooser.hands, "cold", JobState.CREATED, spec)
    await placed(chooser.hands, "hot", spec=spec)
    assert await chooser.jobs_for(9) == {"hot": 9}
    await in_line(chooser.hands, "hot", [Verb.INFER] * 9)
    chooser.now += FRESH_S
    assert await chooser.jobs_for(1) == {"cold": 1}


async def test_of_more_jobs_than_a_reading_has_each_has_its_turn(chooser: Chooser) -> None:
    names = [f"j-{number:03d}" for number in range(WINDOW + 3)]
    for name in names:
        await placed(chooser.hands, name)
    assert set(await chooser.jobs_for(WINDOW)) == set(names[:WINDOW])
    chooser.now += FRESH_S
    assert set(await chooser.jobs_for(WINDOW)) == {*names[WINDOW:], *names[: WINDOW - 3]}


async def test_a_job_that_is_about_to_end_is_avoided_at_once(chooser: Chooser) -> None:
    for name in "ab":
        await placed(chooser.hands, name)
    await chooser.jobs_for(2)
    chooser.leaving.mark("a")
    assert await chooser.jobs_for(5) == {"b": 5}
    chooser.now += FRESH_S
    assert await chooser.jobs_for(5) == {"b": 5}  # the record may not say so yet
    chooser.now += LEAVING_S
    assert set(await chooser.jobs_for(5)) == {"a", "b"}


async def test_the_last_job_is_chosen_although_it_may_end(chooser: Chooser) -> None:
    """Whether it is unloaded only, and loaded again for the inference, its line will say."""
    await placed(chooser.hands, "a")
    chooser.leaving.mark("a")
    assert await chooser.jobs_for(2) == {"a": 2}


async def test_while_mongodb_is_down_the_last_reading_is_used_for_a_minute(
    chooser: Chooser,
) -> None:
    await placed(chooser.hands, "a")
    await chooser.jobs_for(1)
    chooser.store.link.up = False
    chooser.now += FRESH_S
    assert await chooser.jobs_for(5) == {"a": 5}
    assert chooser.availability.down
    assert (await chooser.refusal(Copies("n"))).code is ErrorCode.UNAVAILABLE
    chooser.now += KEPT_S
    assert (await chooser.refusal()).code is ErrorCode.UNAVAILABLE


async def test_a_refusal_is_not_used_while_mongodb_is_down(chooser: Chooser) -> None:
    assert (await chooser.refusal()).code is ErrorCode.NO_SERVING_JOB
    chooser.store.link.up = False
    chooser.now += FRESH_S
    assert (await chooser.refusal()).code is ErrorCode.UNAVAILABLE


async def test_an_unknown_model_and_a_batch_model_are_refused(chooser: Chooser) -> None:
    batch = ModelSpec(name="b", image="x/y", profile=Profile.BATCH)
    await chooser.hands.models.put(batch)
    unknown, cannot = await chooser.refusal(Copies("u")), await chooser.refusal(Copies("b"))
    assert (unknown.code, unknown.message) == ("not_found", "The catalog has no model u.")
    assert (cannot.code, cannot.message) == (
        "unsupported_verb",
        "Model 'b' has the profile batch, which knows only TEMP.",
    )


async def test_who_finds_no_job_is_told_which_there_are_and_what_to_do(chooser: Chooser) -> None:
    refused = await chooser.refusal()
    assert refused.code is ErrorCode.NO_SERVING_JOB
    assert refused.message == "There is no job of model 'm': create one with DEPLOY_CREATE."
    states = [JobState.CREATED, JobState.CREATED, JobState.FAILED, JobState.LOADED]
    for number, state in enumerate(states):
        await placed(chooser.hands, f"j-{number}", state, host_id="silent")
    chooser.now += FRESH_S
    assert (await chooser.refusal()).message == (
        "No job of model 'm' can take an inference now. There are: 2 CREATED, 1 LOADED, 1 FAILED. "
        "Load a CREATED one with DEPLOY_LOAD: its model is not loaded on demand. "
        "The host of a LOADED one is silent, or it is about to be unloaded. "
        "Or create another one with DEPLOY_CREATE."
    )
    elsewhere = await chooser.refusal(Copies("m", "ds-1"))
    assert elsewhere.message.startswith("There is no job of model 'm' with the dataset 'ds-1':")


async def test_readings_are_bounded(chooser: Chooser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser.choice._readings, "most", 3)
    for number in range(9):
        await chooser.refusal(Copies(f"m-{number}"))
    assert [copies.model for copies in chooser.choice._readings] == ["m-6", "m-7", "m-8"]


def test_marks_of_leaving_jobs_end_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving_jobs, "MAX_LEAVING", 3)
    now = 0.0
    jobs = LeavingJobs(clock=lambda: now)
    for number in range(9):
        jobs.mark(str(number))
    assert [one for one in map(str, range(9)) if one in jobs] == ["6", "7", "8"]
    now = LEAVING_S / 2
    jobs.mark("7")
    now = LEAVING_S
    assert [one for one in map(str, range(9)) if one in jobs] == ["7"]
    jobs.mark("9")
    assert len(jobs) == 2


async def test_a_request_that_goes_away_takes_no_reading_from_the_others(chooser: Chooser) -> None:
    await placed(chooser.hands, "a")
    leaves, stays = (asyncio.create_task(chooser.choice.job_for(M)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    assert await stays == "a"
