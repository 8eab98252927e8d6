"""What the containers of a host mean for what the record expects of it."""

import itertools
from typing import Any

import pytest

from dispatcher.maintenance.orphans import Orphans
from dispatcher.maintenance.reconciler import InventoryPlan, InventoryReport, plan_inventory_repairs
from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import Inventory, InventoryItem
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store.records import JobRecord, LastReport, OperationRecord

SPEC = ModelSpec(name="m", image="x/y", profile=Profile.OPEN_INFERENCE, port=8080)
RESTARTED = SPEC.model_copy(update={"restart": "on_failure", "max_restarts": 2})


def job(state: JobState, generation: int = 1, **more: Any) -> JobRecord:
    fields = {"host_id": "h", "spec": SPEC, **more}
    return JobRecord(job_id="j", state=state, generation=generation, **fields)


def container(**more: Any) -> InventoryItem:
    fields = {"generation": 1, "running": True, "job_id": "j", **more}
    return InventoryItem(container_id="ab" * 32, operation_id="o", **fields)


def given(verb: Verb) -> OperationRecord:
    return OperationRecord(
        operation_id="o", job_id="j", verb=verb, state=OperationState.RUNNING, host_id="h"
    )


def look(
    record: JobRecord,
    *found: InventoryItem,
    busy: tuple[str, ...] = (),
    operations: tuple[OperationRecord, ...] = (),
    booted: bool = False,
    number: int = 0,
) -> InventoryPlan:
    looked = InventoryReport("h", "i", Inventory(items=found, busy=busy), number)
    return plan_inventory_repairs(looked, {record.job_id: record}, operations, booted=booted)


def found_state(record: JobRecord, *found: InventoryItem, booted: bool = False) -> JobState:
    plan = look(record, *found, booted=booted)
    return plan.findings[0].state if plan.findings else record.state


@pytest.mark.parametrize("booted", [True, False])
def test_a_job_whose_container_is_there_stays_as_it_is(booted: bool) -> None:  # noqa: FBT001
    assert found_state(job(JobState.CREATED), container(), booted=booted) is JobState.CREATED
    there = container(loaded=True)
    assert found_state(job(JobState.LOADED), there, booted=booted) is JobState.LOADED


def test_a_model_that_left_memory_while_nobody_looked_makes_its_job_created() -> None:
    assert found_state(job(JobState.LOADED), container(), booted=True) is JobState.CREATED


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("yes", JobState.LOADED),
        ("no", JobState.CREATED),
        ("silent", JobState.LOADED),
        ("not_asked", JobState.LOADED),
        (None, JobState.CREATED),
    ],
)
def test_only_a_server_that_says_no_at_a_boot_has_lost_its_model(
    answer: str | None, state: JobState
) -> None:
    there = container(loaded=answer == "yes", answer=answer)
    assert found_state(job(JobState.LOADED), there, booted=True) is state


def test_an_inventory_of_an_earlier_version_is_understood_and_understands_ours() -> None:
    ours = container(loaded=True, answer="yes").model_dump()
    earlier = {name: value for name, value in ours.items() if name not in {"answer", "error"}}
    assert InventoryItem.model_validate(earlier).answer is None
    assert InventoryItem.model_validate(earlier).loaded
    assert InventoryItem.model_validate(earlier).error is None
    assert InventoryItem.model_validate({**earlier, "of_a_later_version": {}}).loaded


def test_one_unanswered_question_is_no_finding_but_several_are() -> None:
    assert found_state(job(JobState.LOADED), container(loaded=False)) is JobState.LOADED
    plan = look(job(JobState.LOADED), container(unhealthy=True))
    assert [(one.state, one.error and one.error.code) for one in plan.findings] == [
        (JobState.FAILED, ErrorCode.UNHEALTHY)
    ]


@pytest.mark.parametrize("booted", [True, False])
def test_a_container_that_is_gone_or_of_another_generation_fails_the_job(
    booted: bool,  # noqa: FBT001
) -> None:
    assert found_state(job(JobState.CREATED), booted=booted) is JobState.FAILED
    plan = look(job(JobState.LOADED), container(generation=2), booted=booted)
    error = plan.findings[0].error
    assert error is not None
    assert error.code is ErrorCode.CONTAINER_MISSING


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"exit_code": 3}, ErrorCode.EXITED),
        ({"exit_code": 137}, ErrorCode.EXITED),
        ({"exit_code": 137, "oom_killed": True}, ErrorCode.OOM_KILLED),
        ({"exit_code": 3, "oom_killed": True}, ErrorCode.EXITED),
        ({"exit_code": 0, "oom_killed": True}, ErrorCode.EXITED),
    ],
)
def test_a_loaded_model_that_died_fails_its_job_with_the_cause(
    facts: dict[str, Any], code: ErrorCode
) -> None:
    (finding,) = look(job(JobState.LOADED), container(running=False, **facts)).findings
    assert finding.state is JobState.FAILED
    assert finding.error is not None
    assert finding.error.code is code
    assert finding.error.detail == facts
    assert finding.recovery is None


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"unhealthy": True}, ErrorCode.UNHEALTHY),
        ({"running": False, "exit_code": 3}, ErrorCode.EXITED),
        ({"running": False, "exit_code": 137}, ErrorCode.DISK_QUOTA_EXCEEDED),
    ],
)
def test_what_the_worker_knows_of_a_death_is_the_error_of_the_job(
    facts: dict[str, Any], code: ErrorCode
) -> None:
    error = ErrorInfo(code=code, message="What happened.", detail={"log_tail": "last words"})
    (finding,) = look(job(JobState.LOADED), container(error=error, **facts)).findings
    assert (finding.state, finding.error) == (JobState.FAILED, error)


def test_a_container_that_was_out_of_memory_says_its_limit_and_what_its_worker_knows() -> None:
    error = ErrorInfo.of(ErrorCode.OOM_KILLED).model_copy(update={"detail": {"log_tail": "last"}})
    dead = container(running=False, exit_code=137, oom_killed=True, error=error)
    (finding,) = look(job(JobState.LOADED), dead).findings
    assert finding.error is not None
    assert finding.error.detail == {"log_tail": "last"}
    assert f"its limit of {size_text(SPEC.resources.memory)}" in finding.error.message


def test_a_model_that_filled_the_disk_is_not_brought_back() -> None:
    spec = SPEC.model_copy(update={"restart": "on_failure"})
    loaded = job(JobState.LOADED).model_copy(update={"spec": spec})
    dead = container(running=False, exit_code=137)
    assert look(loaded, dead).findings[0].recovery is not None
    full = dead.model_copy(update={"disk_exceeded": True})
    (finding,) = look(loaded, full).findings
    assert finding.error is not None
    assert finding.error.code is ErrorCode.DISK_QUOTA_EXCEEDED
    assert (finding.state, finding.recovery) == (JobState.FAILED, None)


def test_a_container_that_is_only_created_need_not_run() -> None:
    assert look(job(JobState.CREATED), container(running=False)).findings == []


def test_a_model_that_wants_it_is_brought_back_in_its_container() -> None:
    loaded = job(JobState.LOADED, spec=RESTARTED, version=7)
    (finding,) = look(loaded, container(running=False, exit_code=1)).findings
    assert finding.state is JobState.CREATED
    assert finding.recovery is not None
    assert (finding.recovery.to, finding.recovery.key) == (JobState.LOADED, 7)
    assert 0 < finding.recovery.rest_s <= 1


def test_a_model_whose_container_is_gone_is_created_and_loaded_again() -> None:
    (finding,) = look(job(JobState.LOADED, spec=RESTARTED)).findings
    assert finding.state is JobState.FAILED
    assert finding.recovery is not None


def test_restarts_in_a_row_are_bounded_until_the_model_was_steady() -> None:
    dead = container(running=False, exit_code=1)
    worn = job(JobState.LOADED, spec=RESTARTED, restarts=2)
    (finding,) = look(worn, dead).findings
    assert (finding.state, finding.recovery) == (JobState.FAILED, None)
    steady = worn.model_copy(update={"steady": True})
    assert look(steady, dead).findings[0].recovery is not None


def test_jobs_that_are_not_live_are_left_alone() -> None:
    assert look(job(JobState.TERMINATED, host_id=None)).findings == []


def test_nothing_is_concluded_of_jobs_that_are_worked_on() -> None:
    record = job(JobState.LOADED)
    assert look(record, busy=("j",)).findings == []
    assert look(record, operations=(given(Verb.TERMINATE),)).findings == []
    assert look(record, container(generation=9), busy=("j",)).orphans == []
    assert len(look(record, operations=(given(Verb.INFER),)).findings) == 1
    assert len(look(record, operations=(given(Verb.TERMINATE),), booted=True).findings) == 1


def test_containers_that_the_record_has_moved_on_from_are_discarded() -> None:
    old = container(generation=1)
    assert look(job(JobState.LOADED, generation=2), old).discards == [old]
    assert look(job(JobState.LOST, host_id=None), old).discards == [old]
    assert look(job(JobState.LOADED, host_id="other"), old).discards == [old]


def test_the_container_of_a_job_that_is_being_placed_is_kept() -> None:
    plan = look(job(JobState.NONE), container())
    assert (plan.discards, plan.orphans) == ([], [])


def test_containers_that_the_record_does_not_know_are_orphans() -> None:
    ahead = container(generation=3)
    unknown = container(job_id="nobody")
    assert look(job(JobState.LOADED, generation=2), ahead, unknown).orphans == [ahead, unknown]


def test_orphans_are_left_alone_until_their_grace_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("dispatcher.maintenance.orphans.time.monotonic", lambda: float(next(clock)))
    orphans = Orphans(grace_s=2)
    assert orphans.due("h", [container()]) == []
    assert orphans.due("h", [container()]) == []
    assert orphans.due("other", []) == []
    assert orphans.due("h", [container()]) == [container()]
    assert orphans.due("h", []) == []
    assert orphans.due("h", [container()]) == []
    orphans.forget(["h"])
    assert orphans.count(["h"]) == 0


def test_what_was_told_after_a_look_counts_though_the_look_is_judged_again() -> None:
    loaded = job(JobState.LOADED).model_copy(update={"told": LastReport(incarnation="i", number=5)})
    idle = container(running=False)
    assert not look(loaded, idle, number=4).findings
    assert not look(loaded, booted=True, number=0).findings
    assert look(loaded, idle, number=6).findings
    another_boot = loaded.model_copy(update={"told": LastReport(incarnation="former", number=5)})
    assert look(another_boot, idle, number=4).findings
