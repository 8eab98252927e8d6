"""A job's line: the order of its operations and the rules of each verb."""

import itertools

import pytest

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec, Profile, Residency
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.scheduling.ordering import (
    AlreadySatisfied,
    CatalogEntries,
    Decision,
    Dispatch,
    LoadFirst,
    PlaceAndDispatch,
    Reject,
    TerminateBehind,
    next_decisions,
)
from modelyard.store.records import CurrentOperation, JobLine, JobRecord, OperationRecord

MODEL = ModelSpec(
    name="m", image="img", profile=Profile.OPEN_INFERENCE, port=8080, max_concurrency=2
)
BATCH = ModelSpec(name="b", image="img", profile=Profile.BATCH)
DATASET = DatasetSpec(name="d", path="/data/d")
CATALOG = CatalogEntries({"m": MODEL, "b": BATCH}, {"d": DATASET})
CONTAINER = "ab" * 32
LIVE = {"host_id": "h", "spec": MODEL, "dataset_spec": DATASET, "container_id": CONTAINER}
numbers = itertools.count(1)


def op(
    verb: Verb,
    state: OperationState = OperationState.QUEUED,
    *,
    model: str | None = None,
    dataset: str | None = None,
    container_id: str | None = None,
    has_input: bool = False,
) -> OperationRecord:
    line = next(numbers)
    return OperationRecord(
        operation_id=f"op-{line}",
        job_id="j",
        verb=verb,
        state=state,
        line=line,
        model=model,
        dataset=dataset,
        wanted_container_id=container_id,
        has_input=has_input,
    )


def job(state: JobState, **fields: object) -> JobRecord:
    base: dict[str, object] = {"_id": "j", "state": state}
    if state.live:
        base |= LIVE
    return JobRecord.model_validate(base | fields)


def decisions(of: JobRecord, *operations: OperationRecord) -> list[Decision]:
    return next_decisions(JobLine(job=of, operations=operations), CATALOG)


def only(of: JobRecord, operation: OperationRecord) -> Decision:
    (decision,) = decisions(of, operation)
    return decision


def refusal(of: JobRecord, operation: OperationRecord) -> ErrorCode:
    decision = only(of, operation)
    assert isinstance(decision, Reject)
    return decision.error.code


@pytest.mark.parametrize(
    "state", [JobState.NONE, JobState.TERMINATED, JobState.FAILED, JobState.LOST]
)
def test_create_places_a_job_that_is_nowhere(state: JobState) -> None:
    assert isinstance(only(job(state), op(Verb.DEPLOY_CREATE, model="m")), PlaceAndDispatch)


def test_create_again_asks_the_jobs_own_host() -> None:
    assert isinstance(only(job(JobState.CREATED), op(Verb.DEPLOY_CREATE, model="m")), Dispatch)


def test_create_of_a_loaded_job_is_refused() -> None:
    assert (
        refusal(job(JobState.LOADED), op(Verb.DEPLOY_CREATE, model="m"))
        is ErrorCode.INVALID_JOB_STATE
    )


def test_create_again_with_another_model_is_refused() -> None:
    assert (
        refusal(job(JobState.CREATED), op(Verb.DEPLOY_CREATE, model="b"))
        is ErrorCode.MODEL_MISMATCH
    )


def test_load_of_a_job_that_is_nowhere_is_refused() -> None:
    assert refusal(job(JobState.NONE), op(Verb.DEPLOY_LOAD)) is ErrorCode.INVALID_JOB_STATE


@pytest.mark.parametrize("verb", [Verb.DEPLOY_LOAD, Verb.DEPLOY_UNLOAD, Verb.TERMINATE])
@pytest.mark.parametrize("state", [JobState.CREATED, JobState.LOADED])
def test_verbs_on_a_live_job_go_to_its_host(verb: Verb, state: JobState) -> None:
    decision = only(job(state), op(verb))
    assert isinstance(decision, Dispatch)
    assert decision.host_id == "h"


def test_terminate_of_a_job_without_container_holds() -> None:
    assert isinstance(only(job(JobState.TERMINATED), op(Verb.TERMINATE)), AlreadySatisfied)


def test_terminate_again_with_the_old_container_id_holds() -> None:
    again = op(Verb.TERMINATE, container_id=CONTAINER)
    assert isinstance(only(job(JobState.TERMINATED), again), AlreadySatisfied)


@pytest.mark.parametrize("given", ["cd" * 6, "aa", "ASDF", "../x", CONTAINER[:11], CONTAINER + "a"])
def test_a_container_id_that_is_not_the_jobs_is_refused(given: str) -> None:
    wrong = op(Verb.DEPLOY_LOAD, container_id=given)
    assert refusal(job(JobState.CREATED), wrong) is ErrorCode.CONTAINER_MISMATCH


@pytest.mark.parametrize("given", ["aa", "ASDF", "../x", "ab" * 33])
def test_what_is_no_containers_id_is_refused_also_where_there_is_no_container(given: str) -> None:
    wrong = op(Verb.TERMINATE, container_id=given)
    assert refusal(job(JobState.TERMINATED), wrong) is ErrorCode.CONTAINER_MISMATCH


def test_a_shortened_container_id_is_the_jobs() -> None:
    assert isinstance(
        only(job(JobState.CREATED), op(Verb.DEPLOY_LOAD, container_id=CONTAINER[:12])), Dispatch
    )


def test_infer_needs_a_loaded_job() -> None:
    infer = op(Verb.INFER, has_input=True)
    assert refusal(job(JobState.CREATED), infer) is ErrorCode.INVALID_JOB_STATE


def test_inferences_go_together_up_to_the_models_concurrency() -> None:
    three = [op(Verb.INFER, has_input=True) for _ in range(3)]
    sent = decisions(job(JobState.LOADED), *three)
    assert [decision.operation for decision in sent] == three[:2]


@pytest.mark.parametrize("verb", [Verb.INFER, Verb.DEPLOY_UNLOAD])
def test_what_is_to_be_cancelled_does_not_start_and_nothing_behind_it(verb: Verb) -> None:
    cancelled = op(verb).model_copy(update={"cancel_requested": True})
    assert decisions(job(JobState.LOADED), cancelled, op(Verb.INFER)) == []


def test_unload_waits_for_running_inference() -> None:
    running = op(Verb.INFER, OperationState.RUNNING)
    assert decisions(job(JobState.LOADED), running, op(Verb.DEPLOY_UNLOAD)) == []


def test_unload_waits_for_inferences_that_start_before_it() -> None:
    infer, unload = op(Verb.INFER), op(Verb.DEPLOY_UNLOAD)
    (started,) = decisions(job(JobState.LOADED), infer, unload)
    assert started.operation is infer


def test_an_unload_in_front_waits_for_inferences_that_run_behind_it() -> None:
    unload, running = op(Verb.DEPLOY_UNLOAD), op(Verb.INFER, OperationState.RUNNING)
    assert decisions(job(JobState.LOADED), unload, running, op(Verb.INFER)) == []
    (started,) = decisions(job(JobState.LOADED), unload, op(Verb.INFER))
    assert started.operation is unload


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        (Verb.DEPLOY_CREATE, JobState.CREATED),
        (Verb.DEPLOY_LOAD, JobState.CREATED),
        (Verb.DEPLOY_UNLOAD, JobState.LOADED),
        (Verb.TERMINATE, JobState.LOADED),
    ],
)
@pytest.mark.parametrize("active", [OperationState.DISPATCHED, OperationState.RUNNING])
def test_what_needs_the_job_alone_waits_for_what_is_active_behind_it(
    verb: Verb, state: JobState, active: OperationState
) -> None:
    """It was put in front while the other one started."""
    first, other = op(verb), op(Verb.DEPLOY_LOAD, active)
    assert decisions(job(state), first, other) == []
    (started,) = decisions(job(state), first, op(Verb.DEPLOY_LOAD))
    assert started.operation is first


ON_DEMAND_MODEL = MODEL.model_copy(update={"residency": Residency(on_demand=True)})


def test_an_inference_on_demand_has_its_model_loaded_first() -> None:
    created = job(JobState.CREATED, spec=ON_DEMAND_MODEL)
    infer = op(Verb.INFER)
    assert decisions(created, infer, op(Verb.INFER)) == [LoadFirst(infer, created)]
    (loaded,) = decisions(job(JobState.LOADED, spec=ON_DEMAND_MODEL), infer)
    assert isinstance(loaded, Dispatch)
    refused = only(created, op(Verb.INFER, model="other"))
    assert isinstance(refused, Reject)
    assert isinstance(only(job(JobState.CREATED), infer), Reject)


@pytest.mark.parametrize(
    ("reason", "behind", "unwanted"),
    [
        (None, (), False),
        (None, (Verb.INFER, Verb.TERMINATE), False),
        (None, (Verb.TERMINATE,), True),
        (None, (Verb.DEPLOY_UNLOAD,), True),
        ("on_demand:x", (Verb.INFER,), False),
        ("on_demand:x", (Verb.INFER, Verb.DEPLOY_UNLOAD), False),
        ("on_demand:x", (), True),
    ],
)
def test_a_load_is_unwanted_if_nothing_in_line_needs_it(
    reason: str | None, behind: tuple[Verb, ...], *, unwanted: bool
) -> None:
    load = op(Verb.DEPLOY_LOAD).model_copy(update={"reason": reason})
    first = decisions(job(JobState.CREATED), load, *(op(verb) for verb in behind))[0]
    assert isinstance(first, Dispatch)
    assert first.unwanted is unwanted


def test_inference_behind_an_unload_waits_for_it() -> None:
    unload = op(Verb.DEPLOY_UNLOAD)
    sent = decisions(job(JobState.LOADED), unload, op(Verb.INFER, has_input=True))
    assert [decision.operation for decision in sent] == [unload]


def test_nothing_goes_while_an_exclusive_operation_is_under_way() -> None:
    creating = op(Verb.DEPLOY_CREATE, OperationState.DISPATCHED)
    assert decisions(job(JobState.NONE), creating, op(Verb.DEPLOY_LOAD)) == []


def test_what_is_refused_does_not_hold_up_those_behind_it() -> None:
    bad, good = op(Verb.DEPLOY_CREATE, model="nope"), op(Verb.DEPLOY_CREATE, model="m")
    first, second = decisions(job(JobState.NONE), bad, good)
    assert isinstance(first, Reject)
    assert first.error.code is ErrorCode.UNKNOWN_MODEL
    assert isinstance(second, PlaceAndDispatch)


def test_an_unknown_dataset_is_refused() -> None:
    create = op(Verb.DEPLOY_CREATE, model="m", dataset="nope")
    assert refusal(job(JobState.NONE), create) is ErrorCode.UNKNOWN_DATASET


def test_batch_models_know_only_temp() -> None:
    assert (
        refusal(job(JobState.NONE), op(Verb.DEPLOY_CREATE, model="b")) is ErrorCode.UNSUPPORTED_VERB
    )
    assert isinstance(only(job(JobState.NONE), op(Verb.TEMP, model="b")), PlaceAndDispatch)


def test_a_batch_container_has_no_way_to_get_an_input() -> None:
    temp = op(Verb.TEMP, model="b", has_input=True)
    assert refusal(job(JobState.NONE), temp) is ErrorCode.UNEXPECTED_INPUT


def test_temp_of_a_server_needs_an_input_or_a_dataset() -> None:
    assert refusal(job(JobState.NONE), op(Verb.TEMP, model="m")) is ErrorCode.MISSING_INPUT
    assert isinstance(
        only(job(JobState.NONE), op(Verb.TEMP, model="m", dataset="d")), PlaceAndDispatch
    )
    assert isinstance(
        only(job(JobState.NONE), op(Verb.TEMP, model="m", has_input=True)), PlaceAndDispatch
    )


def test_temp_on_a_live_job_is_refused() -> None:
    temp = op(Verb.TEMP, model="m", dataset="d")
    assert refusal(job(JobState.LOADED), temp) is ErrorCode.INVALID_JOB_STATE


def test_an_operation_that_was_placed_before_goes_to_the_same_host_again() -> None:
    create = op(Verb.DEPLOY_CREATE, model="m")
    current = CurrentOperation(operation_id=create.operation_id, epoch=1)
    placed = job(JobState.NONE, host_id="h", spec=MODEL, generation=1, current=current)
    assert isinstance(only(placed, create), Dispatch)


@pytest.mark.parametrize("verb", [Verb.DEPLOY_CREATE, Verb.TEMP])
def test_what_is_to_be_placed_knows_of_a_terminate_behind_it(verb: Verb) -> None:
    for behind, ended_by in (
        ([], None),
        ([Verb.DEPLOY_LOAD], None),
        ([Verb.TERMINATE], TerminateBehind.NEXT),
        ([Verb.TERMINATE, Verb.DEPLOY_CREATE], TerminateBehind.NEXT),
        ([Verb.DEPLOY_LOAD, Verb.INFER, Verb.TERMINATE], TerminateBehind.LATER),
    ):
        first = op(verb, model="m", has_input=True)
        (decision,) = decisions(job(JobState.NONE), first, *map(op, behind))
        assert isinstance(decision, PlaceAndDispatch)
        assert decision.ended_by is ended_by


def test_a_terminate_before_it_is_nothing_to_a_later_create() -> None:
    ending = op(Verb.TERMINATE, OperationState.RUNNING)
    assert decisions(job(JobState.NONE), ending, op(Verb.DEPLOY_CREATE, model="m")) == []


@pytest.mark.parametrize(
    ("verb", "state", "way"),
    [
        (Verb.INFER, JobState.NONE, " Before it: DEPLOY_CREATE and DEPLOY_LOAD."),
        (Verb.INFER, JobState.CREATED, " Before it: DEPLOY_LOAD."),
        (Verb.TEMP, JobState.LOADED, " Before it: TERMINATE."),
        (Verb.DEPLOY_UNLOAD, JobState.NONE, "job 'j' is NONE."),
    ],
)
def test_a_wrong_state_is_told_with_what_comes_before(
    verb: Verb, state: JobState, way: str
) -> None:
    (decision,) = decisions(job(state), op(verb))
    assert isinstance(decision, Reject)
    assert decision.error.message.endswith(way)
