"""What is said of a request that is not made: what the dispatcher would do with it now."""

from datetime import timedelta
from typing import Any

import pytest

from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import JobState, Liveness, Verb
from modelyard.contract.views import DryRun, DryRunOutcome
from modelyard.scheduling.explaining import explain_repetition, explain_request
from modelyard.scheduling.placement import PlacementPolicy
from modelyard.store.records import JobRecord, OperationRecord, RestorationRecord
from tests.support.scheduling import GIB, NOW, A, catalog, facts, host, job, operation, spec

NEW = JobRecord(job_id="j")
DEVICE = {"gpus": 1, "gpu_memory": "6g"}


def said(
    verb: Verb, *before: OperationRecord, of: JobRecord = NEW, given: Any = None, **more: Any
) -> DryRun:
    """Return what would become of a request with this verb on a job."""
    one = operation(verb, **(given or {}))
    return explain_request(verb, facts(one, *before, of=of, **more))


def holds(job_id: str, size: int = 0, **more: Any) -> Allocation:
    """Return what a job holds whose container sees the device, with so much of its memory."""
    resident = ResidentAllocation(devices={A: size}) if size else None
    return Allocation(job_id=job_id, generation=1, devices=(A,), resident=resident, **more)


@pytest.mark.parametrize(
    ("verb", "of", "models", "given", "code"),
    [
        (Verb.TEMP, NEW, [], {}, ErrorCode.UNKNOWN_MODEL),
        (Verb.TEMP, NEW, [spec()], {"dataset": "d"}, ErrorCode.UNKNOWN_DATASET),
        (Verb.TEMP, NEW, [spec()], {"has_input": False}, ErrorCode.MISSING_INPUT),
        (
            Verb.DEPLOY_CREATE,
            NEW,
            [ModelSpec.model_validate({"name": "m", "image": "x/y", "profile": "batch"})],
            {},
            ErrorCode.UNSUPPORTED_VERB,
        ),
        (Verb.DEPLOY_LOAD, NEW, [], {}, ErrorCode.INVALID_JOB_STATE),
        (Verb.INFER, job(JobState.CREATED), [], {}, ErrorCode.INVALID_JOB_STATE),
        (Verb.INFER, job(), [], {"model": "other"}, ErrorCode.MODEL_MISMATCH),
        (Verb.INFER, job(), [], {"dataset": "other"}, ErrorCode.DATASET_MISMATCH),
        (
            Verb.TERMINATE,
            job(container_id="ab" * 32),
            [],
            {"wanted_container_id": "cd" * 32},
            ErrorCode.CONTAINER_MISMATCH,
        ),
    ],
)
def test_what_would_be_rejected_says_the_error(
    verb: Verb, of: JobRecord, models: list[ModelSpec], given: dict[str, Any], code: ErrorCode
) -> None:
    found = said(verb, of=of, given=given, catalog=catalog(*models), hosts=[host()])
    assert found.outcome is DryRunOutcome.REJECTED
    assert found.error is not None
    assert found.error.code is code
    assert found.reasons == (f"It would be REJECTED ({code}): {found.error.message}",)
    assert (found.host_id, found.estimated_start_s) == (None, None)


def test_what_holds_already_would_succeed_as_it_is() -> None:
    found = said(Verb.TERMINATE)
    assert found.outcome is DryRunOutcome.SUCCEEDS
    assert found.reasons == ("It would succeed as it is: job j has no container.",)


def test_a_placement_names_the_host_and_the_devices() -> None:
    model = spec(resources={"gpus": 1, "gpu_memory": "3g"})
    found = said(Verb.DEPLOY_CREATE, catalog=catalog(model), hosts=[host()])
    assert (found.outcome, found.host_id, found.devices) == (DryRunOutcome.STARTS, "h", (A,))
    assert found.reasons[0] == f"It would start at once on host h, on {A}."
    assert found.estimated_start_s == 0.0
    assert [(one.host_id, one.fits) for one in found.hosts] == [("h", True)]


def test_of_hosts_that_fit_the_leaders_policy_takes_one() -> None:
    used = host(Allocation(job_id="o", generation=1, millicpus=4_000), host_id="used")
    there = [host(host_id="empty"), used]
    chosen = {
        policy: said(Verb.TEMP, catalog=catalog(spec()), hosts=there, policy=policy).host_id
        for policy in PlacementPolicy
    }
    assert chosen == {PlacementPolicy.BINPACK: "used", PlacementPolicy.SPREAD: "empty"}


def test_on_its_jobs_host_it_starts_with_the_devices_of_the_container() -> None:
    found = said(Verb.INFER, of=job(devices=(A,)), hosts=[host()])
    assert (found.outcome, found.host_id, found.devices) == (DryRunOutcome.STARTS, "h", (A,))


def test_a_load_waits_for_room_and_says_who_holds_it() -> None:
    mine = job(JobState.CREATED, spec=spec(resources=DEVICE))
    other = job(job_id="o", spec=spec(residency={"on_demand": True}), loaded_at=NOW)
    line = facts(operation(), of=other).line.model_copy(update={"operations": ()})
    there = host(holds("j"), holds("o", 4 * GIB))
    found = said(Verb.DEPLOY_LOAD, of=mine, hosts=[there], holding={"o": line})
    assert found.outcome is DryRunOutcome.WAITS
    assert found.reasons == (
        (
            "Its model has no room on host h: it needs 6 GiB on 1 device; GPU-a has 4 GiB of 8 GiB "
            "free."
        ),
    )
    ((holder,),) = [one.holders for one in found.hosts]
    assert (holder.job_id, holder.frees) == ("o", {A: 4 * GIB})
    free = said(Verb.DEPLOY_LOAD, of=mine, hosts=[host(holds("j"))])
    assert free.outcome is DryRunOutcome.STARTS


def test_an_inference_that_comes_to_an_unloaded_model_loads_it_first() -> None:
    model = spec(resources=DEVICE, residency={"on_demand": True})
    mine = job(JobState.CREATED, spec=model, load_s=7.5, devices=(A,))
    found = said(Verb.INFER, of=mine, hosts=[host(holds("j"))])
    assert (found.outcome, found.host_id, found.devices) == (DryRunOutcome.LOADS_FIRST, "h", (A,))
    assert found.reasons == (f"Its model would be loaded on host h, on {A} first.",)
    assert found.estimated_start_s == 7.5
    lately = said(Verb.INFER, of=mine, hosts=[host(holds("j"))], took_s={Verb.DEPLOY_LOAD: 3.0})
    assert lately.estimated_start_s == 3.0


def test_a_load_on_demand_that_has_no_room_says_that_too() -> None:
    model = spec(resources=DEVICE, residency={"on_demand": True})
    mine = job(JobState.CREATED, spec=model, load_s=7.5)
    found = said(Verb.INFER, of=mine, hosts=[host(holds("j"), holds("o", 4 * GIB))])
    assert found.outcome is DryRunOutcome.LOADS_FIRST
    assert found.reasons[0] == "Its model would be loaded on host h first."
    assert found.reasons[1].startswith("Its model has no room on host h: it needs 6 GiB")
    assert [one.host_id for one in found.hosts] == ["h"]
    assert found.estimated_start_s is None


def test_it_waits_behind_what_is_open_of_its_job() -> None:
    running = operation(Verb.DEPLOY_CREATE, 1, "RUNNING", started_at=NOW - timedelta(seconds=2))
    took_s = {Verb.DEPLOY_CREATE: 5.0, Verb.DEPLOY_LOAD: 20.0}
    found = said(Verb.INFER, running, operation(Verb.DEPLOY_LOAD, 2), took_s=took_s)
    assert found.outcome is DryRunOutcome.WAITS
    assert found.reasons == (
        "2 operations of job j go before it; the first is DEPLOY_CREATE op-1 (RUNNING).",
    )
    assert (found.ahead_in_line, found.next_in_line) == (2, "op-1")
    assert found.estimated_start_s == 23.0


def test_what_is_left_out_of_a_long_line_counts_and_has_no_estimate() -> None:
    first = operation(Verb.DEPLOY_LOAD, 1, "RUNNING")
    found = said(
        Verb.TERMINATE, first, of=job(), beyond=400, took_s={Verb.DEPLOY_LOAD: 1.0}, hosts=[host()]
    )
    assert found.outcome is DryRunOutcome.WAITS
    assert (found.ahead_in_line, found.estimated_start_s) == (401, None)
    assert "401 operations of job j go before it" in found.reasons[0]


def test_an_inference_starts_beside_others_up_to_what_the_model_runs_at_once() -> None:
    mine = job(spec=spec(max_concurrency=2))
    one, other = operation(line=1, state="RUNNING"), operation(line=2, state="RUNNING")
    assert said(Verb.INFER, one, of=mine, hosts=[host()]).outcome is DryRunOutcome.STARTS
    found = said(Verb.INFER, one, other, of=mine, hosts=[host()])
    assert (found.outcome, found.ahead_in_line) == (DryRunOutcome.WAITS, 2)
    assert "its model runs 2 at the same time" in found.reasons[0]


def test_what_will_be_rejected_itself_is_not_in_the_way() -> None:
    wrong = operation(Verb.DEPLOY_CREATE, 1, model="unknown")
    assert said(Verb.TERMINATE, wrong, hosts=[host()]).outcome is DryRunOutcome.SUCCEEDS


def test_a_terminate_says_that_what_finds_no_room_makes_way_for_it() -> None:
    waits = operation(Verb.DEPLOY_CREATE, 1)
    large = catalog(spec(resources={"cpus": 64.0}))
    found = said(Verb.TERMINATE, waits, catalog=large, hosts=[host()])
    assert found.outcome is DryRunOutcome.WAITS
    assert found.reasons[1] == (
        "DEPLOY_CREATE op-1 has no room, and is CANCELLED to make way for it."
    )


@pytest.mark.parametrize(
    ("of", "there", "reason"),
    [
        (
            job(JobState.FAILED, recovery=RestorationRecord(to=JobState.LOADED, key=1)),
            [host()],
            "Job j is being restored first.",
        ),
        (job(), [host(liveness=Liveness.SUSPECT)], "Its job is on host h, which is SUSPECT."),
        (job(), [], "Its job is on host h, which is not known."),
    ],
)
def test_what_holds_up_its_job_holds_it_up(of: JobRecord, there: list[Any], reason: str) -> None:
    found = said(Verb.INFER, of=of, hosts=there)
    assert (found.outcome, found.reasons) == (DryRunOutcome.WAITS, (reason,))


def test_without_a_host_that_fits_it_waits_with_the_reasons_of_all() -> None:
    full = host(Allocation(job_id="o", generation=1, millicpus=8_000))
    found = said(Verb.TEMP, catalog=catalog(spec()), hosts=[full], more_urgent=4)
    assert found.outcome is DryRunOutcome.WAITS
    assert found.reasons == (
        "The only host, h, does not take it now.",
        "1 host has less than 1 CPUs free",
    )
    assert found.ahead_in_waiting_room == 4
    assert [one.fits for one in found.hosts] == [False]


def test_a_job_without_a_dataset_is_told_to_have_none() -> None:
    found = said(Verb.INFER, of=job(), given={"dataset": "other"}, hosts=[host()])
    assert found.error is not None
    assert found.error.message == "Job 'j' has no dataset, not 'other'."


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ({"cpus": 4}, "None of the 2 hosts takes it now."),
        ({"cpus": 1_000}, "None of the 2 hosts could ever hold it."),
    ],
)
def test_of_several_hosts_none_takes_it(resources: Any, sentence: str) -> None:
    full = Allocation(job_id="o", generation=1, millicpus=8_000)
    hosts = [host(full), host(full).model_copy(update={"host_id": "h2"})]
    found = said(Verb.TEMP, catalog=catalog(spec(resources=resources)), hosts=hosts)
    assert found.reasons[0] == sentence


def test_a_key_that_was_used_names_its_operation() -> None:
    existing = operation(Verb.TEMP, 3, "RUNNING")
    found = explain_repetition(Verb.TEMP, existing)
    assert (found.outcome, found.operation_id) == (DryRunOutcome.REPEATS, "op-3")
    assert "op-3 (RUNNING)" in found.reasons[0]


@pytest.mark.parametrize(
    ("cpus", "more_urgent", "outcome", "have"),
    [
        (1.0, 0, DryRunOutcome.STARTS, "2 have"),
        (1.0, 3, DryRunOutcome.WAITS, "2 have"),
        (9.0, 0, DryRunOutcome.WAITS, "none has"),
    ],
)
def test_of_many_hosts_it_is_said_how_many_of_the_first_have_room(
    cpus: float, more_urgent: int, outcome: DryRunOutcome, have: str
) -> None:
    found = said(
        Verb.TEMP,
        catalog=catalog(spec(resources={"cpus": cpus})),
        hosts=(host(), host(host_id="h2")),
        more_hosts=True,
        more_urgent=more_urgent,
        asked=True,
    )
    starts = ("It would start at once.",) if outcome is DryRunOutcome.STARTS else ()
    looked_at = (
        f"Only the first 2 hosts were looked at: {have} room for it. The dispatcher looks at all "
        "of them."
    )
    assert (found.outcome, found.host_id) == (outcome, None)
    assert found.reasons == (*starts, looked_at)
    assert [one.host_id for one in found.hosts] == ["h", "h2"]
    assert found.ahead_in_waiting_room == more_urgent
