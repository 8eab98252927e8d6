"""Which job takes the next inference: never one that can't serve, and evenly."""

from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from gateway.inference.least_loaded import LeastLoaded, has_backlog
from modelyard.store.queries.serving_jobs import MOST_COUNTED, ServingJob, Stage

STAGES = st.sampled_from(Stage)
OPEN = st.one_of(st.integers(0, 12), st.just(MOST_COUNTED))
JOBS = st.lists(
    st.builds(ServingJob, st.uuids().map(str), STAGES, OPEN, st.integers(1, 6)),
    max_size=8,
    unique_by=lambda job: job.job_id,
)
CHOICES = st.integers(0, 60)


def job(
    job_id: str, stage: Stage = Stage.RESIDENT, *, open_: int = 0, at_once: int = 1
) -> ServingJob:
    return ServingJob(job_id, stage, open_, at_once)


def chosen(jobs: list[ServingJob], count: int) -> Counter[str | None]:
    choice = LeastLoaded(jobs)
    return Counter(choice.next_job() for _ in range(count))


def load(one: ServingJob, given_since: Mapping[str | None, int], *, before: int = 0) -> float:
    """Return the load of a job, or what it was so many inferences before."""
    return (one.open + given_since[one.job_id] - before) / one.max_concurrency


@given(JOBS, CHOICES)
def test_one_of_the_jobs_is_chosen_and_none_only_if_there_is_none(
    jobs: list[ServingJob], count: int
) -> None:
    names: set[str | None] = {one.job_id for one in jobs}
    assert set(chosen(jobs, count)) <= (names or {None})


@given(JOBS, CHOICES)
def test_no_job_gets_ahead_of_another_by_more_than_one_inference(
    jobs: list[ServingJob], count: int
) -> None:
    resident = [one for one in jobs if one.stage is Stage.RESIDENT]
    given_since = chosen(resident, count)
    least = min((load(one, given_since) for one in resident), default=0.0)
    for one in resident:
        if given_since[one.job_id]:
            assert load(one, given_since, before=1) <= least


@given(JOBS, CHOICES)
def test_a_copy_is_loaded_only_if_all_that_are_loaded_or_loading_have_a_backlog(
    jobs: list[ServingJob], count: int
) -> None:
    choice = LeastLoaded(jobs)
    by_id = {one.job_id: one for one in jobs}
    given_since = Counter[str]()
    for _ in range(count):
        name = choice.next_job()
        if name is None:
            return
        if by_id[name].stage is Stage.UNLOADED and not given_since[name]:
            for one in jobs:
                since = 0 if one.stage is Stage.RESIDENT else given_since[one.job_id]
                unloaded = one.stage is Stage.UNLOADED and not since
                assert unloaded or has_backlog(one.open + since, one.max_concurrency)
        given_since[name] += 1


@given(JOBS, CHOICES, st.data())
def test_a_job_to_avoid_is_chosen_only_if_there_are_no_others(
    jobs: list[ServingJob], count: int, data: st.DataObject
) -> None:
    names = [one.job_id for one in jobs]
    avoided = data.draw(st.sets(st.sampled_from(names))) if names else set[str]()
    choice = LeastLoaded(jobs)
    for _ in range(count):
        name = choice.next_job(avoided)
        assert name not in avoided or avoided == set(names)


def test_inferences_spread_by_what_each_job_may_run_at_once() -> None:
    jobs = [job("small"), job("large", at_once=3), job("busy", open_=5)]
    assert chosen(jobs, 20) == {"small": 5, "large": 15}


def test_a_resident_job_takes_all_while_it_keeps_up() -> None:
    jobs = [job("cold", Stage.UNLOADED), job("hot", open_=3), job("warm", Stage.LOADING)]
    assert chosen(jobs, 100) == {"hot": 100}


def test_each_copy_that_is_loaded_takes_a_backlog_before_the_next_one() -> None:
    jobs = [job("a", Stage.UNLOADED), job("b", Stage.UNLOADED), job("hot", open_=4)]
    choice = LeastLoaded(jobs)
    assert "".join(choice.next_job() or "" for _ in range(8)) == "aaaabbbb"
    assert chosen(jobs, 8 + 3) == {"a": 5, "b": 5, "hot": 1}


def test_what_is_loading_already_goes_before_another_load() -> None:
    jobs = [job("cold", Stage.UNLOADED), job("warm", Stage.LOADING, open_=1)]
    assert chosen(jobs, 3) == {"warm": 3}
    assert chosen(jobs, 4) == {"warm": 3, "cold": 1}


def test_a_count_that_is_cut_off_is_a_backlog_whatever_may_run_at_once() -> None:
    assert has_backlog(MOST_COUNTED, 128)
    assert not has_backlog(MOST_COUNTED - 1, 128)


def test_several_gateways_do_not_all_begin_with_the_same_job() -> None:
    jobs = [job(str(number)) for number in range(16)]
    assert len({LeastLoaded(jobs).next_job() for _ in range(50)}) > 1
