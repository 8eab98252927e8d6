"""Cancels and discards: what ends, what is reported of it, and what is left behind."""

import asyncio
from typing import Any

import pytest

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import CancelOperation, CancelReason, HostCommand, OperationReport
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from tests.fakes.programs import FakeBatch, FakeServer
from tests.support.waiting import eventually
from tests.support.worker.broker import delivery_of
from tests.support.worker.harness import VerbHarness, model
from tests.support.worker.host import Host, running_host
from worker.attempts.registry import MAX_CANCELS, AttemptRegistry, CommandDecision
from worker.containers.planning import PlanRules, plan_container
from worker.engine.protocol import EngineUnavailableError

CREATE, LOAD, INFER, UNLOAD, TERMINATE, TEMP = (
    Verb.DEPLOY_CREATE,
    Verb.DEPLOY_LOAD,
    Verb.INFER,
    Verb.DEPLOY_UNLOAD,
    Verb.TERMINATE,
    Verb.TEMP,
)
CANCELLED, TIMED_OUT = OperationState.CANCELLED, OperationState.TIMED_OUT
SOON_S = 1.5
"""A cancelled operation is reported within about a second."""


def what(end: OperationReport) -> tuple[OperationState, JobState | None, ErrorCode | None]:
    return end.state, end.job_state, end.error.code if end.error else None


async def cancelled(
    host: Host, command: HostCommand, reason: CancelReason = "cancelled"
) -> tuple[OperationState, JobState | None, ErrorCode | None]:
    await host.cancel(command, reason)
    return what(await host.ended(command, within_s=SOON_S))


async def gone(host: Host) -> None:
    async def nothing() -> bool:
        return not host.harness.runtime.containers

    await eventually(nothing, what="an engine without containers")


def pulling_harness() -> VerbHarness:
    harness = VerbHarness()
    harness.runtime.registry, harness.runtime.images = harness.runtime.images, {}
    harness.runtime.pull_may_end.clear()
    return harness


ENDS = [
    ("cancelled", (CANCELLED, JobState.TERMINATED, ErrorCode.CANCELLED)),
    ("timed_out", (TIMED_OUT, JobState.FAILED, ErrorCode.TIMED_OUT)),
]


@pytest.mark.parametrize("verb", [CREATE, TEMP])
@pytest.mark.parametrize(("reason", "end"), ENDS)
async def test_what_is_cancelled_during_its_pull_ends_the_pull(
    verb: Verb, reason: CancelReason, end: object
) -> None:
    async with running_host(pulling_harness()) as host:
        command = host.harness.command(verb, input=1)
        await host.send(command)
        await host.in_phase(command, Phase.PULLING)
        assert await cancelled(host, command, reason) == end
        assert host.harness.runtime.pulls_now == 0
        assert host.harness.runtime.containers == {}


@pytest.mark.parametrize("verb", [CREATE, TEMP])
@pytest.mark.parametrize(("reason", "end"), ENDS)
async def test_what_is_cancelled_while_it_starts_leaves_no_container(
    verb: Verb, reason: CancelReason, end: object
) -> None:
    async with running_host(VerbHarness(program=FakeServer(alive=False))) as host:
        command = host.harness.command(verb, input=1)
        await host.send(command)
        await host.in_phase(command, Phase.STARTING)
        assert await cancelled(host, command, reason) == end
        await gone(host)


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.INFERRING])
async def test_a_temp_is_cancelled_in_every_phase(phase: Phase) -> None:
    async with running_host() as host:
        (
            host.harness.server.may_load
            if phase is Phase.LOADING
            else host.harness.server.may_infer
        ).clear()
        command = host.harness.command(TEMP, input=1)
        await host.send(command)
        await host.in_phase(command, phase)
        assert await cancelled(host, command) == ENDS[0][1]
        await gone(host)


async def test_a_batch_is_cancelled_while_it_runs() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(exit_code=None))
    async with running_host(harness) as host:
        command = host.harness.command(TEMP)
        await host.send(command)
        await host.in_phase(command, Phase.INFERRING)
        assert await cancelled(host, command) == ENDS[0][1]
        await gone(host)


async def test_a_create_of_what_was_there_already_is_cancelled_without_harm() -> None:
    async with running_host() as host:
        await host.done(CREATE)
        host.harness.server.alive = False
        command = host.harness.command(CREATE)
        probes = host.harness.server.requests.count("GET /v2/health/live")
        await host.send(command)

        async def probing() -> bool:
            return host.harness.server.requests.count("GET /v2/health/live") > probes

        await eventually(probing)
        assert await cancelled(host, command) == (CANCELLED, None, ErrorCode.CANCELLED)
        assert host.harness.container.running


@pytest.mark.parametrize(
    ("profile", "phase"), [(Profile.HTTP, Phase.LOADING), (Profile.PROCESS, Phase.LOADING)]
)
async def test_a_load_that_is_cancelled_leaves_nothing_in_memory(
    profile: Profile, phase: Phase
) -> None:
    async with running_host(VerbHarness(model(profile), FakeServer(becomes_ready=False))) as host:
        await host.done(CREATE)
        command = host.harness.command(LOAD)
        await host.send(command)
        await host.in_phase(command, phase)
        assert await cancelled(host, command) == (
            CANCELLED,
            JobState.CREATED,
            ErrorCode.CANCELLED,
        )
        assert not host.harness.container.running
        host.harness.server.becomes_ready = True
        assert (await host.done(LOAD)).job_state is JobState.LOADED
        assert (await host.done(INFER, input=1)).result_json is not None


async def test_a_load_that_timed_out_leaves_no_container() -> None:
    async with running_host(VerbHarness(program=FakeServer(becomes_ready=False))) as host:
        await host.done(CREATE)
        command = host.harness.command(LOAD)
        await host.send(command)
        await host.in_phase(command, Phase.LOADING)
        assert await cancelled(host, command, "timed_out") == ENDS[1][1]
        await gone(host)


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("cancelled", (CANCELLED, None, ErrorCode.CANCELLED)),
        ("timed_out", (TIMED_OUT, None, ErrorCode.TIMED_OUT)),
    ],
)
async def test_an_inference_is_cancelled_whatever_the_engine_does(
    reason: CancelReason, end: object
) -> None:
    async with running_host() as host:
        await host.done(CREATE)
        await host.done(LOAD)
        host.harness.server.may_infer.clear()
        command = host.harness.command(INFER, input=1)
        await host.send(command)
        await host.in_phase(command, Phase.INFERRING)
        host.harness.runtime.inspect = hangs  # type: ignore[method-assign]
        assert await cancelled(host, command, reason) == end
        assert host.harness.container.running

        async def dropped() -> bool:
            return host.harness.server.infers_now == 0

        await eventually(dropped)


async def hangs(*_: object, **__: object) -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("verb", "phase", "held_by", "end"),
    [
        (CREATE, Phase.STARTING, "remove", JobState.TERMINATED),
        (TEMP, Phase.STARTING, "remove", JobState.TERMINATED),
        (LOAD, Phase.LOADING, "stop", JobState.CREATED),
    ],
)
async def test_what_is_cancelled_has_not_ended_while_its_container_holds_anything(
    verb: Verb, phase: Phase, held_by: str, end: JobState
) -> None:
    async with running_host(VerbHarness(program=FakeServer(becomes_ready=False))) as host:
        if verb is LOAD:
            await host.done(CREATE)
        else:
            host.harness.server.alive = False
        asked, may_go = asyncio.Event(), asyncio.Event()
        really = getattr(host.harness.runtime, held_by)

        async def slowly(*given: Any) -> None:
            asked.set()
            await may_go.wait()
            await really(*given)

        setattr(host.harness.runtime, held_by, slowly)
        command = host.harness.command(verb, input=1)
        await host.send(command)
        await host.in_phase(command, phase)
        await host.cancel(command)
        await asyncio.wait_for(asked.wait(), 10)
        with pytest.raises(AssertionError, match="did not happen"):
            await host.ended(command, within_s=SOON_S)
        may_go.set()
        assert what(await host.ended(command)) == (CANCELLED, end, ErrorCode.CANCELLED)
        there = [one.running for one in host.harness.runtime.containers.values()]
        assert there == ([False] if verb is LOAD else [])


async def test_a_cancelled_load_whose_container_can_not_be_stopped_does_not_say_it_is_out() -> None:
    async with running_host(VerbHarness(program=FakeServer(becomes_ready=False))) as host:
        await host.done(CREATE)

        async def refuses(container_id: str, grace_s: float) -> None:
            raise EngineUnavailableError(f"{container_id} not stopped after {grace_s} s")

        host.harness.runtime.stop = refuses  # type: ignore[method-assign]
        command = host.harness.command(LOAD)
        await host.send(command)
        await host.in_phase(command, Phase.LOADING)
        assert await cancelled(host, command) == (CANCELLED, None, ErrorCode.CANCELLED)


async def test_what_is_cancelled_in_its_aftermath_ends_with_its_container() -> None:
    async with running_host(VerbHarness(program=FakeServer(start_exit=1))) as host:
        remove, asked = host.harness.runtime.remove, asyncio.Event()

        async def hanging(container_id: str) -> None:
            asked.set()
            await hangs(container_id)

        host.harness.runtime.remove = hanging  # type: ignore[method-assign]
        command = host.harness.command(CREATE)
        await host.send(command)
        await asyncio.wait_for(asked.wait(), 10)
        host.harness.runtime.remove = remove  # type: ignore[method-assign]
        assert await cancelled(host, command) == ENDS[0][1]
        assert not host.harness.runtime.containers


async def test_a_temp_that_has_its_answer_keeps_it_when_it_is_cancelled_at_its_removal() -> None:
    async with running_host() as host:
        remove = host.harness.runtime.remove
        host.harness.runtime.remove = hangs  # type: ignore[method-assign]
        command = host.harness.command(TEMP, input=1)
        await host.send(command)
        await host.in_phase(command, Phase.REMOVING)
        host.harness.runtime.remove = remove  # type: ignore[method-assign]
        assert await cancelled(host, command) == (
            OperationState.SUCCEEDED,
            JobState.TERMINATED,
            None,
        )
        await gone(host)


@pytest.mark.parametrize("verb", [UNLOAD, TERMINATE])
async def test_what_takes_away_is_not_stopped_once_it_has_begun(verb: Verb) -> None:
    async with running_host(VerbHarness(model(Profile.PROCESS))) as host:
        await host.done(CREATE)
        await host.done(LOAD)
        may_go, really = asyncio.Event(), host.harness.runtime.stop

        async def stop(container_id: str, grace_s: float) -> None:
            await may_go.wait()
            await really(container_id, grace_s)

        host.harness.runtime.stop = stop  # type: ignore[method-assign]
        command = host.harness.command(verb)
        await host.send(command)
        await host.in_phase(command, Phase.UNLOADING if verb is UNLOAD else Phase.REMOVING)
        await host.cancel(command)
        await host.done(TERMINATE, job="job-9")  # the word was read meanwhile
        may_go.set()
        assert (await host.ended(command)).state is OperationState.SUCCEEDED


@pytest.mark.parametrize("verb", list(Verb))
async def test_what_waits_for_its_turn_is_cancelled_at_once(verb: Verb) -> None:
    async with running_host() as host:
        await host.done(CREATE)
        await host.done(LOAD)
        host.harness.server.may_infer.clear()
        first = host.harness.command(INFER, input=1)
        waiting = host.harness.command(verb, input=1)
        await host.send(first, waiting)
        await host.in_phase(first, Phase.INFERRING)
        assert await cancelled(host, waiting) == (CANCELLED, None, ErrorCode.CANCELLED)
        assert host.harness.container.running
        host.harness.server.may_infer.set()
        assert (await host.ended(first)).state is OperationState.SUCCEEDED
        # The job's turn goes on to whoever comes next.
        assert (await host.done(INFER, input=1)).result_json is not None


@pytest.mark.parametrize(
    ("verb", "state"),
    [(CREATE, JobState.TERMINATED), (TEMP, JobState.TERMINATED), (INFER, None), (LOAD, None)],
)
async def test_a_cancel_that_comes_before_its_command_is_remembered(
    verb: Verb, state: JobState | None
) -> None:
    async with running_host() as host:
        command = host.harness.command(verb, input=1)
        await host.cancel(command)
        await host.done(TERMINATE, job="job-9")  # the word was read meanwhile
        await host.send(command)
        assert what(await host.ended(command, within_s=SOON_S)) == (
            CANCELLED,
            state,
            ErrorCode.CANCELLED,
        )
        assert host.harness.runtime.created == []
        assert [it.state for it in host.reports_of(command)] == [CANCELLED]


async def test_what_an_earlier_boot_half_made_is_removed_by_a_cancel_before_the_command() -> None:
    async with running_host() as host:
        command = host.harness.command(CREATE, epoch=2)
        await host.harness.runtime.create(plan_container(command, None, PlanRules("host-1")))
        await host.cancel(command)
        await host.done(TERMINATE, job="job-9")
        await host.send(command)
        assert what(await host.ended(command, epoch=2))[1] is JobState.TERMINATED
        await gone(host)


async def test_a_repeated_cancel_has_the_end_reported_again() -> None:
    async with running_host() as host:
        end = await host.done(CREATE)
        command = host.harness.command(CREATE, operation_id=end.operation_id)
        await host.cancel(command)

        async def again() -> bool:
            return len(host.ends_of(command)) == 2

        await eventually(again)
        assert host.ends_of(command)[1] == end


async def test_cancels_that_come_twice_end_once() -> None:
    async with running_host(pulling_harness()) as host:
        command = host.harness.command(CREATE)
        await host.send(command)
        await host.in_phase(command, Phase.PULLING)
        cancel = CancelOperation(operation_id=command.operation_id, epoch=1)
        await host.control(cancels=(cancel, cancel))
        await host.ended(command)
        assert {it.seq for it in host.ends_of(command)} == {host.ends_of(command)[0].seq}


async def test_a_cancel_of_an_older_epoch_or_of_another_boot_is_nothing() -> None:
    async with running_host() as host:
        await host.done(CREATE)
        await host.done(LOAD)
        host.harness.server.may_infer.clear()
        command = host.harness.command(INFER, input=1, epoch=3)
        await host.send(command)
        await host.in_phase(command, Phase.INFERRING)
        await host.cancel(command, epoch=2)
        cancel = CancelOperation(operation_id=command.operation_id, epoch=3)
        await host.control(cancels=(cancel,), incarnation="another")
        await host.done(TERMINATE, job="job-9")
        host.harness.server.may_infer.set()
        assert (await host.ended(command, epoch=3)).state is OperationState.SUCCEEDED


async def test_what_is_stale_is_not_heard_of_again_and_leaves_nothing() -> None:
    async with running_host(VerbHarness(program=FakeServer(alive=False))) as host:
        command = host.harness.command(CREATE)
        await host.send(command)
        await host.in_phase(command, Phase.STARTING)
        before = len(host.reports_of(command))
        await host.cancel(command, "stale")
        await gone(host)
        await host.send(command)  # redelivered: it is refused
        await host.done(TERMINATE, job="job-9")
        assert len(host.reports_of(command)) == before
        assert len(host.harness.runtime.created) == 1


async def test_a_later_epoch_runs_after_the_earlier_one_was_stale() -> None:
    async with running_host(VerbHarness(program=FakeServer(alive=False))) as host:
        command = host.harness.command(CREATE)
        await host.send(command)
        await host.in_phase(command, Phase.STARTING)
        await host.cancel(command, "stale")
        host.harness.server.alive = True
        await host.send(command.model_copy(update={"epoch": 2, "generation": 2}))
        assert (await host.ended(command, epoch=2)).state is OperationState.SUCCEEDED
        names = [it.name for it in host.harness.runtime.containers.values()]
        assert names == ["modelyard-job-1-2"]


def test_an_open_attempt_that_is_stale_is_refused_when_its_command_comes_again() -> None:
    sent: list[OperationReport] = []
    registry, command = AttemptRegistry(sent.append), VerbHarness().command(CREATE)
    attempt = registry.take(command).attempt
    assert attempt is not None
    stale = CancelOperation(operation_id=command.operation_id, epoch=1, reason="stale")
    assert registry.cancel(stale) is None
    assert registry.take(command).decision is CommandDecision.STALE_EPOCH
    attempt.report(Phase.REMOVING)
    assert sent == []


def test_remembered_cancels_are_bounded() -> None:
    registry, harness = AttemptRegistry(lambda _: None), VerbHarness()
    commands = [harness.command(CREATE) for _ in range(MAX_CANCELS + 1)]
    for command in commands:
        cancel = CancelOperation(operation_id=command.operation_id, epoch=1, reason="stale")
        assert registry.cancel(cancel) is None
    assert registry.take(commands[-1]).decision is CommandDecision.STALE_EPOCH
    assert registry.take(commands[0]).decision is CommandDecision.NEW


def test_a_cancel_of_a_newer_epoch_does_not_touch_the_running_one() -> None:
    registry, command = AttemptRegistry(lambda _: None), VerbHarness().command(INFER, input=1)
    running = registry.take(command).attempt
    assert running is not None
    assert registry.cancel(CancelOperation(operation_id=command.operation_id, epoch=2)) is None
    assert running.cancellation.reason is None
    later = registry.take(command.model_copy(update={"epoch": 2})).attempt
    assert later is not None
    assert later.cancellation.reason == "cancelled"


async def test_a_container_that_nobody_owns_is_discarded() -> None:
    async with running_host() as host:
        end = await host.done(CREATE)
        assert end.container_id is not None
        await host.discard(end.container_id)
        await gone(host)
        await host.discard(end.container_id)  # again: it is gone already
        assert (await host.done(CREATE, generation=2)).job_state is JobState.CREATED


@pytest.mark.parametrize("wrong", ["generation", "job", "foreign"])
async def test_only_what_the_word_names_is_discarded(wrong: str) -> None:
    async with running_host() as host:
        end = await host.done(CREATE)
        other = await host.done(CREATE, job="job-2")
        foreign = host.harness.runtime.add_foreign("somebody-elses")
        assert end.container_id
        assert other.container_id
        if wrong == "generation":
            await host.discard(end.container_id, generation=2)
        elif wrong == "job":
            await host.discard(end.container_id, job="job-3")
        else:
            await host.discard(foreign.id)
        await host.discard(other.container_id, job="job-2")

        async def the_other_is_gone() -> bool:
            return other.container_id not in host.harness.runtime.containers

        await eventually(the_other_is_gone)
        assert len(host.harness.runtime.containers) == 2


async def test_a_discard_waits_for_what_runs_in_the_container_and_spares_what_is_worked_on() -> (
    None
):
    async with running_host() as host:
        end = await host.done(CREATE)
        await host.done(LOAD)
        host.harness.server.may_infer.clear()
        infer = host.harness.command(INFER, input=1)
        await host.send(infer)
        await host.in_phase(infer, Phase.INFERRING)
        assert end.container_id
        await host.discard(end.container_id)
        await host.discard(end.container_id)
        # Behind the discard, and of the same generation: the container is wanted after all.
        load = host.harness.command(LOAD)
        await host.send(load)
        await host.done(TERMINATE, job="job-9")
        host.harness.server.may_infer.set()
        assert (await host.ended(infer)).state is OperationState.SUCCEEDED
        assert (await host.ended(load)).state is OperationState.SUCCEEDED
        assert host.harness.container.running


async def test_a_word_that_can_not_be_read_is_dropped() -> None:
    async with running_host(pulling_harness()) as host:
        command = host.harness.command(CREATE)
        await host.send(command)
        await host.in_phase(command, Phase.PULLING)
        assert host.broker.control is not None
        host.broker.control.give(delivery_of(b"not json"))
        assert await cancelled(host, command) == ENDS[0][1]
