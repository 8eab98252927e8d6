"""What a boot of a host means for what the record expects of it."""

from dispatcher.reconcile import plan_boot
from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import InventoryItem
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store.records import JobRecord, OperationRecord


def job(state: JobState, generation: int = 1) -> JobRecord:
    return JobRecord(job_id="j", state=state, generation=generation, host_id="h")


def container(*, generation: int = 1, loaded: bool = False) -> InventoryItem:
    return InventoryItem(
        container_id="ab" * 32,
        job_id="j",
        generation=generation,
        operation_id="o",
        running=True,
        loaded=loaded,
    )


def operation(
    verb: Verb, state: OperationState, *, incarnation: str = "old", epoch: int = 1
) -> OperationRecord:
    return OperationRecord(
        operation_id="o", job_id="j", verb=verb, state=state, incarnation=incarnation, epoch=epoch
    )


def observed(state: JobState, *found: InventoryItem) -> JobState:
    plan = plan_boot("new", found, [job(state)], [], max_attempts=3)
    return plan.observe[0][1] if plan.observe else state


def test_a_job_whose_container_is_there_stays_as_it_is() -> None:
    assert observed(JobState.CREATED, container()) is JobState.CREATED
    assert observed(JobState.LOADED, container(loaded=True)) is JobState.LOADED


def test_a_model_that_left_memory_makes_its_job_created() -> None:
    assert observed(JobState.LOADED, container()) is JobState.CREATED


def test_a_container_that_is_gone_or_of_another_generation_fails_the_job() -> None:
    assert observed(JobState.CREATED) is JobState.FAILED
    assert observed(JobState.LOADED, container(generation=2, loaded=True)) is JobState.FAILED
    plan = plan_boot("new", [], [job(JobState.CREATED)], [], max_attempts=3)
    error = plan.observe[0][2]
    assert error is not None
    assert error.code is ErrorCode.CONTAINER_MISSING


def test_jobs_that_are_not_live_are_left_alone() -> None:
    assert plan_boot("new", [], [job(JobState.TERMINATED)], [], max_attempts=3).observe == []


def test_operations_of_this_boot_are_left_alone() -> None:
    mine = operation(Verb.INFER, OperationState.RUNNING, incarnation="new")
    plan = plan_boot("new", [], [], [mine], max_attempts=3)
    assert (plan.requeue, plan.fail) == ([], [])


def test_verbs_that_may_be_given_again_are() -> None:
    for verb in set(Verb) - {Verb.INFER}:
        started = operation(verb, OperationState.RUNNING)
        assert plan_boot("new", [], [], [started], max_attempts=3).requeue == [started]


def test_an_inference_that_had_not_started_is_given_again_and_one_that_had_fails() -> None:
    waiting = operation(Verb.INFER, OperationState.DISPATCHED)
    assert plan_boot("new", [], [], [waiting], max_attempts=3).requeue == [waiting]
    started = operation(Verb.INFER, OperationState.RUNNING)
    assert plan_boot("new", [], [], [started], max_attempts=3).fail == [started]


def test_what_brought_a_worker_down_too_often_fails() -> None:
    poison = operation(Verb.DEPLOY_CREATE, OperationState.RUNNING, epoch=3)
    assert plan_boot("new", [], [], [poison], max_attempts=3).fail == [poison]
