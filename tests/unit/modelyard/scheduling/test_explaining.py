"""What is said of an operation that has not started: the rule that holds it, with its numbers."""

from datetime import timedelta
from typing import Any

import pytest

from modelyard.contract.capacity.footprints import Learned
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import JobState, Liveness, OperationState, Verb
from modelyard.scheduling.explaining import explain, explain_in_line, waits_in_line
from modelyard.scheduling.fitting import KEPT_FOR_OTHERS
from modelyard.scheduling.prospects import Facts
from modelyard.store.jobs import LINE_HEAD, HeadOfLine, OperationInLine
from modelyard.store.records import JobLine, OperationRecord, RestorationRecord
from tests.support.scheduling import GIB, NOW, A, catalog, facts, host, job, operation, spec


def test_what_has_started_or_ended_says_where() -> None:
    sent = operation(state="DISPATCHED", host_id="h")
    runs = operation(state="RUNNING", host_id="h", phase="inferring")
    said = [explain(one).reasons for one in (sent, runs, operation(state="FAILED"))]
    assert said == [
        ("It was sent to host h, whose worker has not begun it yet.",),
        ("It runs on host h: inferring.",),
        ("It has ended: FAILED.",),
    ]


def test_what_was_not_taken_in_yet() -> None:
    assert "not taken it in yet" in explain(operation(line=None)).reasons[0]


def line_of(
    *verbs: Verb, runs: int = 1, most: int = 1, reason: str | None = None, **more: Any
) -> HeadOfLine:
    """Return a line of operations `o1`, `o2` and so on, the first ones of which run."""
    states = [OperationState.RUNNING] * runs + [OperationState.QUEUED] * len(verbs)
    operations = tuple(
        OperationInLine(f"o{number}", number, verb, state, reason)
        for number, (verb, state) in enumerate(zip(verbs, states, strict=False), 1)
    )
    return HeadOfLine(operations, most, **more)


FIRST = "INFER o1 (RUNNING), the first of its job's line"
INFER, UNLOAD = Verb.INFER, Verb.DEPLOY_UNLOAD


@pytest.mark.parametrize(
    ("one", "head", "said"),
    [
        (operation(Verb.TERMINATE), line_of(INFER), FIRST),
        (
            operation(),
            line_of(INFER, INFER, runs=2, most=2),
            f"{FIRST}; its model takes 2 at the same time (max_concurrency)",
        ),
        (operation(), line_of(INFER, most=4), FIRST),
        (
            operation(),
            line_of(INFER, UNLOAD, INFER, most=4),
            "DEPLOY_UNLOAD o2 (QUEUED), before it in its job's line",
        ),
        (
            operation(line=2),
            line_of(INFER, INFER, UNLOAD),
            f"{FIRST}; its model takes 1 at the same time (max_concurrency)",
        ),
        (
            operation(line=LINE_HEAD),
            line_of(*[INFER] * LINE_HEAD),
            f"{FIRST}; its model takes 1 at the same time (max_concurrency)",
        ),
        (operation(line=LINE_HEAD + 1), line_of(*[INFER] * LINE_HEAD, whole=False), FIRST),
        (
            operation(),
            line_of(Verb.DEPLOY_LOAD, INFER, reason="on_demand"),
            "DEPLOY_LOAD o1 (RUNNING, for on_demand), the first of its job's line",
        ),
        (operation(UNLOAD, -1), line_of(INFER), "INFER o1 (RUNNING), which ends before it"),
        (
            operation(Verb.TERMINATE, -1),
            line_of(Verb.DEPLOY_LOAD),
            "DEPLOY_LOAD o1 (RUNNING), which ends before it",
        ),
        (operation(UNLOAD, -1), line_of(INFER, runs=0), None),
        (operation(), line_of(INFER, restoring=True), "its job, which is being restored"),
        (operation(), None, None),
        (operation(line=1), line_of(INFER, runs=0), None),
    ],
)
def test_what_holds_an_operation_in_its_line_is_named(
    one: OperationRecord, head: HeadOfLine | None, said: str | None
) -> None:
    assert waits_in_line(one, head) == (() if said is None else (said,))


def test_an_unload_that_was_put_first_waits_for_what_runs() -> None:
    runs = operation(line=3, state="RUNNING")
    unload = operation(Verb.DEPLOY_UNLOAD, line=-1, reason="idle")
    line = JobLine(job=job(), operations=(unload, runs))
    said = explain_in_line(Facts(unload, line, NOW, hosts=(host(),)))
    assert said.reasons == ("What runs on job j ends before it.",)


def test_room_that_only_the_dispatcher_knows_to_be_kept_is_explained_by_its_reason() -> None:
    one = operation(Verb.DEPLOY_LOAD, waiting_for=(f"host h {KEPT_FOR_OTHERS}",))
    mine = job(JobState.CREATED, spec=spec(resources={"gpus": 1, "gpu_memory": "2g"}))
    bound = Allocation(job_id="j", generation=1, devices=(A,))
    assert explain_in_line(facts(one, of=mine, hosts=[host(bound)])).reasons == (
        f"Host h has room for it, but {KEPT_FOR_OTHERS}.",
    )


def test_a_step_of_a_move_is_in_no_line() -> None:
    one = operation(Verb.DEPLOY_CREATE, line=None, aside=True)
    assert explain(one).reasons == ("It belongs to the move of job j.",)


def test_room_that_is_kept_for_a_more_urgent_operation_is_called_that() -> None:
    one = operation(Verb.TEMP, rank=2)
    new = job(JobState.NONE, host_id=None, generation=0)
    large = operation(Verb.TEMP, 1, job_id="large", model="large", rank=1)
    waits = JobLine(job=new.model_copy(update={"job_id": "large"}), operations=(large,))
    runs = Allocation(job_id="runs", generation=1, millicpus=6_000, temporary=True)
    found = explain_in_line(
        facts(
            one,
            of=new,
            catalog=catalog(spec(), spec(name="large", resources={"cpus": 4.0})),
            hosts=(host(runs),),
            urgent=(waits,),
        )
    )
    assert found.reasons == (
        "Host h has room for it, but keeps what is free for a more urgent operation.",
        f"1 host {KEPT_FOR_OTHERS}",
    )


def test_room_that_a_more_urgent_operation_is_about_to_take_is_not_promised() -> None:
    one = operation(Verb.TEMP, rank=2)
    new = job(JobState.NONE, host_id=None, generation=0)
    urgent = operation(Verb.TEMP, 1, job_id="urgent", rank=1)
    waits = JobLine(job=new.model_copy(update={"job_id": "urgent"}), operations=(urgent,))
    known, there = catalog(spec(resources={"cpus": 5.0})), (host(),)
    found = explain_in_line(facts(one, of=new, catalog=known, hosts=there, urgent=(waits,)))
    assert found.reasons[0] == "Host h has room for it, which goes to more urgent operations."
    later = one.model_copy(update={"rank": 0})
    found = explain_in_line(facts(later, of=new, catalog=known, hosts=there, urgent=(waits,)))
    assert found.reasons[0] == "The dispatcher is about to send it to host h."


@pytest.mark.parametrize("recorded", [(), ("500 hosts: each has no free slot",)])
def test_of_many_hosts_the_reasons_are_those_that_the_dispatcher_has_recorded(
    recorded: tuple[str, ...],
) -> None:
    one = operation(Verb.TEMP, waiting_for=recorded)
    new = job(JobState.NONE, host_id=None, generation=0)
    found = explain_in_line(
        facts(one, of=new, catalog=catalog(spec()), hosts=(host(),), more_hosts=True, more_urgent=7)
    )
    before = "No host had room for it a moment ago."
    not_yet = "The dispatcher has not looked for a host for it yet."
    assert found.reasons == ((before, *recorded) if recorded else (not_yet,))
    assert [(one.host_id, one.fits) for one in found.hosts] == [("h", True)]
    assert found.ahead_in_waiting_room == 7


def test_a_pause_after_a_failure_names_it_and_its_end() -> None:
    error = ErrorInfo.of(ErrorCode.IMAGE_PULL_FAILED)
    one = operation(resting=True, not_before=NOW + timedelta(seconds=30), error=error)
    assert explain_in_line(facts(one, of=job())).reasons == (
        (
            "Its last attempt failed (image_pull_failed); "
            "the next begins at 2026-01-01T00:00:30+00:00."
        ),
    )


def test_what_goes_before_in_line_is_named_and_counted() -> None:
    before = operation(Verb.DEPLOY_LOAD, 1, "RUNNING", reason="on_demand:op-9")
    found = explain_in_line(facts(operation(), before, operation(line=2), of=job(JobState.CREATED)))
    assert found.reasons == (
        (
            "2 operations of job j go before it; the first is DEPLOY_LOAD op-1 (RUNNING, for "
            "on_demand:op-9)."
        ),
    )
    assert (found.ahead_in_line, found.next_in_line) == (2, "op-1")


def test_inferences_beyond_what_the_model_runs_at_once() -> None:
    running = operation(line=1, state="RUNNING", started_at=NOW - timedelta(seconds=1))
    waiting = operation(line=2)
    took_s = {Verb.INFER: 4.0}
    found = explain_in_line(facts(operation(), running, waiting, of=job(), took_s=took_s))
    assert "2 inferences of job j are before it, and its model runs 1" in found.reasons[0]
    assert found.estimated_start_s == 7.0


@pytest.mark.parametrize(
    ("ahead", "of"),
    [
        ({"waiting_for": ("host h has less than 6 GiB free",)}, {}),
        ({"resting": True, "not_before": NOW + timedelta(seconds=9)}, {}),
        ({}, {"spec": spec(resources={"gpus": 1, "gpu_memory": "6g"})}),
    ],
)
def test_no_start_is_foretold_behind_what_waits_for_more_than_its_turn(
    ahead: dict[str, Any], of: dict[str, Any]
) -> None:
    full = ResidentAllocation(devices={A: 8 * GIB})
    held = (
        Allocation(job_id="o", generation=1, devices=(A,), resident=full),
        Allocation(job_id="j", generation=1, devices=(A,)),
    )
    load = operation(Verb.DEPLOY_LOAD, 1, **ahead)
    mine = job(JobState.CREATED, devices=(A,), **of)
    took_s = {Verb.DEPLOY_LOAD: 7.0}
    found = explain_in_line(facts(operation(), load, of=mine, hosts=[host(*held)], took_s=took_s))
    assert (found.ahead_in_line, found.estimated_start_s) == (1, None)


def test_no_start_is_foretold_on_a_silent_host_or_before_a_restoration() -> None:
    runs = operation(Verb.DEPLOY_LOAD, 1, "RUNNING", started_at=NOW)
    took_s = {Verb.DEPLOY_LOAD: 7.0}
    down = job(JobState.FAILED, recovery=RestorationRecord(to=JobState.LOADED, key=1))
    for of, liveness, said in (
        (job(JobState.CREATED), Liveness.ONLINE, 7.0),
        (job(JobState.CREATED), Liveness.SUSPECT, None),
        (down, Liveness.ONLINE, None),
    ):
        there = [host(liveness=liveness)]
        found = explain_in_line(facts(operation(), runs, of=of, hosts=there, took_s=took_s))
        assert found.estimated_start_s == said


def test_a_restoration_goes_first() -> None:
    down = job(JobState.FAILED, recovery=RestorationRecord(to=JobState.LOADED, key=1))
    found = explain_in_line(facts(operation(), of=down))
    assert found.reasons == ("Job j is being restored first.",)


def test_what_is_to_be_cancelled_says_so() -> None:
    found = explain_in_line(facts(operation(cancel_requested=True), of=job()))
    assert found.reasons == ("Its cancel was requested, and the dispatcher is about to end it.",)


def test_a_silent_host_is_named() -> None:
    there = host(liveness=Liveness.SUSPECT)
    assert explain_in_line(facts(operation(), of=job(), hosts=[there])).reasons == (
        "Its job is on host h, which is SUSPECT.",
    )


@pytest.mark.parametrize(
    ("resources", "held", "refusal"),
    [
        (
            {"cpus": 4.0},
            Allocation(job_id="o", generation=1, millicpus=5_500),
            "it needs 4 CPUs, and 2.5 are free now",
        ),
        ({"cpus": 64.0}, None, "it needs 64 CPUs, and 8 are free even when empty"),
        (
            {"memory": "2g"},
            Allocation(job_id="o", generation=1, memory=31 * GIB),
            "it needs 2 GiB of memory, and 1 GiB are free now",
        ),
        (
            {"gpus": 1, "gpu_memory": "3g"},
            Allocation(
                job_id="o",
                generation=1,
                devices=(A,),
                resident=ResidentAllocation(devices={A: 6 * GIB}),
            ),
            "it needs 3 GiB on 1 device; GPU-a has 2 GiB of 8 GiB free now",
        ),
        (
            {"gpus": 2},
            None,
            "it needs 2 devices for itself; GPU-a has 8 GiB of 8 GiB free even when empty",
        ),
    ],
)
def test_each_host_says_what_it_lacks_with_numbers(
    resources: dict[str, Any], held: Allocation | None, refusal: str
) -> None:
    one = operation(Verb.TEMP)
    there = host(*([held] if held else []))
    found = explain_in_line(
        facts(
            one,
            of=job(JobState.NONE, host_id=None),
            catalog=catalog(spec(resources=resources)),
            hosts=[there],
            more_urgent=3,
        )
    )
    assert [(it.host_id, it.fits, it.refusal) for it in found.hosts] == [("h", False, refusal)]
    ever = "could never hold it" if "even" in refusal else "does not take it now"
    assert found.reasons[0] == f"The only host, h, {ever}."
    assert found.ahead_in_waiting_room == 3


def test_who_holds_the_memory_and_whether_it_makes_room() -> None:
    def held(job_id: str) -> Allocation:
        resident = ResidentAllocation(devices={A: 4 * GIB})
        return Allocation(job_id=job_id, generation=1, devices=(A,), resident=resident)

    def line(job_id: str, *operations: OperationRecord, **residency: Any) -> JobLine:
        loaded = job(
            job_id=job_id,
            spec=spec(residency=residency),
            loaded_at=NOW - timedelta(seconds=60),
        )
        return JobLine(job=loaded, operations=operations)

    one = operation(Verb.DEPLOY_LOAD)
    bound = Allocation(job_id="j", generation=1, devices=(A,))
    mine = job(JobState.CREATED, spec=spec(resources={"gpus": 1, "gpu_memory": "6g"}))
    found = explain_in_line(
        facts(
            one,
            of=mine,
            hosts=[host(bound, held("idle"), held("by-hand"))],
            holding={
                "idle": line("idle", on_demand=True),
                "by-hand": line("by-hand"),
            },
        )
    )
    assert found.reasons == (
        (
            "Its model has no room on host h: it needs 6 GiB on 1 device; "
            "GPU-a has 0 bytes of 8 GiB free."
        ),
    )
    (there,) = found.hosts
    assert [(it.job_id, it.frees, it.stays is None) for it in there.holders] == [
        ("by-hand", {A: 4 * GIB}, False), ("idle", {A: 4 * GIB}, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "begins"),
    [
        (frozenset({"docker.io/x/y:latest"}), "Its job"),
        (frozenset[str](), "Unless what makes room here is enough, its job"),
    ],
)
def test_a_job_that_goes_elsewhere_says_whether_an_idle_model_may_leave_first(
    images: frozenset[str], begins: str
) -> None:
    resident = ResidentAllocation(devices={A: 8 * GIB})
    idle = Allocation(job_id="idle", generation=1, devices=(A,), resident=resident)
    bound = Allocation(job_id="j", generation=1, devices=(A,))
    mine = spec(resources={"gpus": 1, "gpu_memory": "6g"})
    loaded = job(job_id="idle", spec=spec(residency={"on_demand": True, "min_resident_s": 0.0}))
    found = explain_in_line(
        facts(
            operation(Verb.DEPLOY_LOAD),
            of=job(JobState.CREATED, spec=mine, devices=(A,)),
            hosts=[host(bound, idle), host(host_id="g", images=images)],
            holding={"idle": JobLine(job=loaded, operations=())},
        )
    )
    assert found.reasons[1] == f"{begins} is created anew on host g, on {A}, which has room."


def test_a_need_that_was_measured_is_explained_with_both_numbers() -> None:
    one = operation(Verb.DEPLOY_LOAD)
    mine = job(JobState.CREATED, spec=spec(resources={"gpus": 1, "gpu_memory": "2g"}))
    bound = Allocation(job_id="j", generation=1, devices=(A,))
    learned = Learned(devices=(("", 9 * GIB),))
    found = explain_in_line(facts(one, of=mine, hosts=[host(bound)], learned=lambda _: learned))
    assert found.reasons == (
        (
            "Its model has no room on host h: it needs 9 GiB (measured; 2 GiB declared) on 1 "
            "device; GPU-a has 8 GiB of 8 GiB free."
        ),
    )
    assert explain_in_line(facts(one, of=mine, hosts=[host(bound)])).reasons == (
        "The dispatcher is about to send it to host h.",
    )


@pytest.mark.parametrize(
    ("residency", "operations", "stays"),
    [
        ({"pinned": True}, (), "its model is pinned"),
        ({"min_resident_s": 90.0}, (), "it was loaded a moment ago (min_resident_s)"),
        ({}, (operation(line=1),), "inferences run on it or wait for it"),
        ({}, (operation(Verb.DEPLOY_UNLOAD, 1),), "an operation is changing it"),
        ({}, (), None),
    ],
)
def test_why_a_model_stays(
    residency: dict[str, Any], operations: tuple[OperationRecord, ...], stays: str | None
) -> None:
    loaded = job(
        job_id="other",
        spec=spec(residency={"on_demand": True, **residency}),
        loaded_at=NOW - timedelta(seconds=60),
    )
    resident = ResidentAllocation(devices={A: 8 * GIB})
    other = Allocation(job_id="other", generation=1, devices=(A,), resident=resident)
    found = explain_in_line(
        facts(
            operation(Verb.TEMP),
            of=job(JobState.NONE, host_id=None),
            catalog=catalog(spec(resources={"gpus": 1})),
            hosts=[host(other)],
            holding={"other": JobLine(job=loaded, operations=operations)},
        )
    )
    assert [it.stays for it in found.hosts[0].holders] == [stays]


def test_what_can_start_says_that_too() -> None:
    found = explain_in_line(
        facts(
            operation(Verb.TEMP),
            of=job(JobState.NONE, host_id=None),
            catalog=catalog(spec()),
            hosts=[host()],
        )
    )
    assert found.reasons[0] == "The dispatcher is about to send it to host h."
    assert OperationState.QUEUED is found.state
