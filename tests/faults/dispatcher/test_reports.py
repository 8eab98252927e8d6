"""Whatever order reports come in and however often, the record ends as if they came in order."""

import asyncio
from collections.abc import Iterator, Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import OperationReport, WorkerReports
from modelyard.contract.states import REPORTED_STATES, JobState, OperationState, Verb
from modelyard.store.records import Document
from tests.faults.servers.test_messages import REPORTS
from tests.support.dispatcher.recording import HOST, INCARNATION, Recording
from tests.support.dispatcher.stories import JOBS, MODEL, Ask, End, done, failed, stories

FREEZES, THAWS = 0.6, 0.15
"""How often, between two batches, the other dispatcher is frozen and thaws."""
READ = 2
"""How far it comes until it has read the record, and has written nothing."""
CALLS = (READ, READ, READ, 3, 4, 5, 6, 8, 10, 12)


async def _recorded(story: list[list[Ask]], disorder: Random | None) -> Recording:
    """Record a story. With `disorder`, what a step tells comes in any order and several times.

    Among it comes again what was told in earlier steps, and what no worker can know. And another
    dispatcher, frozen on its way, goes on later with what it has read of it.
    """
    recording = Recording()
    await recording.begin(MODEL, slots=JOBS)
    asks = {one.operation_id: one for step in story for one in step}
    told: list[WorkerReports] = []
    for asked in story:
        given = await recording.step([(one.operation_id, one.request) for one in asked])
        while given:  # an attempt that is made again is given at the next step
            said = [one for each in given for one in asks[each.operation_id].reports(each)]
            new = [_message(len(told) + n, one) for n, one in enumerate(said, start=1)]
            told += new
            for batch in _shuffled(new, told, disorder) if disorder else ([one] for one in new):
                if disorder:
                    await _freeze_or_thaw(recording, new, disorder)
                await recording.told(batch)
            given = await recording.step([])
    await recording.thaw()
    return recording


async def _freeze_or_thaw(
    recording: Recording, new: Sequence[WorkerReports], disorder: Random
) -> None:
    if recording.is_frozen:
        if disorder.random() < THAWS:
            await recording.thaw()
    elif disorder.random() < FREEZES:
        batch = disorder.choices(new, k=disorder.randint(1, 2))
        await recording.freeze(batch, calls=disorder.choice(CALLS))


def _message(number: int, report: OperationReport) -> WorkerReports:
    return WorkerReports(host_id=HOST, incarnation=INCARNATION, number=number, operations=(report,))


def _shuffled(
    new: Sequence[WorkerReports], told: Sequence[WorkerReports], disorder: Random
) -> Iterator[list[WorkerReports]]:
    left = [*new, *disorder.choices(told, k=disorder.randint(0, len(new) + 3))]
    left += [_forged(one, disorder) for one in disorder.choices(new, k=disorder.randint(0, 2))]
    disorder.shuffle(left)
    while left:
        size = disorder.randint(1, 4)
        yield left[:size]
        left = left[size:]


def _forged(message: WorkerReports, disorder: Random) -> WorkerReports:
    """Return a report, now or later than one that was made, of what only a dispatcher decides."""
    (report,) = message.operations
    lie = disorder.choice(LIES) | {"seq": report.seq + disorder.randint(0, 3)}
    return message.model_copy(update={"operations": (report.model_copy(update=lie),)})


def _ends(recording: Recording) -> dict[str, dict[str, Document]]:
    """Return what must not depend on the order."""
    hosts = recording.documents("hosts")
    return {
        "operations": recording.documents("operations", *DRAWN),
        "jobs": recording.documents("jobs", *DRAWN, *COUNTED),
        "reservations": {
            host_id: {
                "used": host["slots_used"],
                "held": {(one["job_id"], one["generation"]) for one in host["reservations"]},
            }
            for host_id, host in hosts.items()
        },
    }


NO_WORKERS_STATES = set(OperationState) - REPORTED_STATES
LIES: list[dict[str, object]] = [{"state": state} for state in sorted(NO_WORKERS_STATES)]
LIES += [{"job_state": JobState.NONE}, {"job_state": JobState.LOST}]
BY_OWN_CLOCK = ("accepted_at", "rank", "dispatched_at", "started_at", "finished_at")
DRAWN = ("token", "current", "not_before", *BY_OWN_CLOCK)
"""Made by chance: names of passes, how long an attempt that failed rests, and what the dispatcher's
own clock says, which goes on within a step."""
COUNTED = ("version", "updated_at", "loaded_at", "told")
"""They tell of the latest write, and a report that comes again writes again what it had written."""


@pytest.mark.fault(REPORTS)
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(stories(), st.integers(0, 1 << 32))
def test_reports_shuffled_doubled_and_after_the_end_leave_what_they_leave_in_order(
    story: list[list[Ask]], seed: int
) -> None:
    in_order = asyncio.run(_recorded(story, None))
    shuffled = asyncio.run(_recorded(story, Random(seed)))
    assert _ends(shuffled) == _ends(in_order)
    assert shuffled.wrong == []
    operations = in_order.documents("operations").values()
    assert all(OperationState(one["state"]).terminal for one in operations)


@pytest.mark.fault(REPORTS)
async def test_what_was_read_of_an_attempt_is_not_written_to_the_next_one() -> None:
    recording = Recording()
    await recording.begin(MODEL, slots=1)
    again = failed(ErrorCode.ENGINE_UNAVAILABLE, JobState.FAILED)
    ask = Ask("0190c2f0-0000-7000-8000-000000000000", "j", Verb.DEPLOY_CREATE, ((2, again),))
    (first,) = await recording.step([(ask.operation_id, ask.request)])
    *_, running, end = (_message(n, one) for n, one in enumerate(ask.reports(first), start=1))
    await recording.freeze([running], calls=READ)
    await recording.told([end])
    (second,) = await recording.step([])
    assert (second.epoch, second.seq) == (2, 0)
    await recording.thaw()
    (now,) = recording.documents("operations").values()
    assert (now["state"], now["epoch"], now["seq"]) == ("DISPATCHED", 2, 0)


@pytest.mark.fault(REPORTS)
async def test_what_an_inference_says_of_its_container_again_says_nothing_of_the_next_one() -> None:
    recording = Recording()
    await recording.begin(MODEL, slots=1)
    down = failed(ErrorCode.EXITED, JobState.FAILED)
    ways = (
        (Verb.DEPLOY_CREATE, done(JobState.CREATED)),
        (Verb.DEPLOY_LOAD, done(JobState.LOADED)),
        (Verb.INFER, down),
        (Verb.DEPLOY_CREATE, done(JobState.CREATED)),
    )
    said: dict[End, WorkerReports] = {}
    for n, (verb, end) in enumerate(ways):
        ask = Ask(f"0190c2f0-0000-7000-8000-{n:012d}", "j", verb, ((0, end),))
        (given,) = await recording.step([(ask.operation_id, ask.request)])
        *_, last = ask.reports(given)
        said[end] = _message(n, last)
        await recording.told([said[end]])
    before = _ends(recording)
    await recording.told([said[down]])
    assert _ends(recording) == before
    assert before["jobs"]["j"]["state"] == "CREATED"
    assert before["reservations"][HOST]["held"] == {("j", 2)}
