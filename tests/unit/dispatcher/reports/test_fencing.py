"""Reports against fences: which are taken, and why others are not."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.reports.fencing import CurrentReport, fence, latest
from modelyard.contract.messages import OperationReport
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store.records import OperationRecord

OPERATION = "0190c2f0-0000-7000-8000-000000000001"
FRESH = OperationRecord(
    operation_id=OPERATION,
    job_id="j",
    verb=Verb.TEMP,
    state=OperationState.DISPATCHED,
    epoch=2,
    host_id="h",
    generation=1,
)


def report(state: OperationState, *, seq: int, epoch: int = 2) -> OperationReport:
    return OperationReport(
        operation_id=OPERATION, epoch=epoch, seq=seq, job_id="j", generation=1, state=state
    )


STORY = [
    report(OperationState.RUNNING, seq=1),
    report(OperationState.RUNNING, seq=2),
    report(OperationState.RUNNING, seq=3),
    report(OperationState.SUCCEEDED, seq=4),
]
ENDED = FRESH.model_copy(update={"state": OperationState.SUCCEEDED, "seq": 4})


@given(st.lists(st.sampled_from(STORY), min_size=1))
def test_of_a_batch_only_the_newest_report_counts(reports: list[OperationReport]) -> None:
    ((_, kept),) = latest(("h", one) for one in reports)
    assert kept.seq == max(one.seq for one in reports)


def test_of_a_batch_no_report_counts_before_one_that_a_worker_can_know_of() -> None:
    forged = report(OperationState.QUEUED, seq=9)
    for batch in ([forged, STORY[-1]], [STORY[-1], forged]):
        assert latest(("h", one) for one in batch) == [("h", STORY[-1])]


def test_a_host_that_was_not_given_the_operation_is_not_heard() -> None:
    assert fence("other", STORY[0], FRESH) == "other_host"


def test_a_report_on_another_job_or_generation_than_the_operations_is_not_heard() -> None:
    for other in ({"job_id": "victim"}, {"generation": 9}):
        assert fence("h", STORY[0].model_copy(update=other), FRESH) == "other_job"


def test_an_operation_that_nobody_knows_is_not_heard_of() -> None:
    assert fence("h", STORY[0], None) == "unknown_operation"


def test_a_terminal_state_never_changes() -> None:
    for state in OperationState:
        if state is not OperationState.SUCCEEDED:
            assert not isinstance(fence("h", report(state, seq=9), ENDED), CurrentReport)


@given(
    st.sampled_from([one for one in OperationState if not one.terminal]),
    st.sampled_from(OperationState),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_a_report_leads_only_where_a_worker_can_know_of(
    was: OperationState, told: OperationState, recorded: int, seq: int
) -> None:
    """Else a worker would put its operations back into the queue, past every limit on retries."""
    operation = FRESH.model_copy(update={"state": was, "seq": recorded})
    verdict = fence("h", report(told, seq=seq), operation)
    if told in (OperationState.QUEUED, OperationState.DISPATCHED):
        assert verdict == "illegal"
    if isinstance(verdict, CurrentReport):
        assert told is OperationState.RUNNING or told.terminal
        assert told not in (OperationState.REJECTED, OperationState.EXPIRED)


def test_a_job_is_only_reported_to_be_as_its_container_is() -> None:
    ended = report(OperationState.FAILED, seq=1)
    for state in JobState:
        verdict = fence("h", ended.model_copy(update={"job_state": state}), FRESH)
        expected = state not in (JobState.NONE, JobState.LOST)
        assert isinstance(verdict, CurrentReport) is expected


def test_the_last_report_again_is_taken_to_repair_what_a_crash_left() -> None:
    again = fence("h", STORY[-1], ENDED)
    assert isinstance(again, CurrentReport)
    assert not again.new
