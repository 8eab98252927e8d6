"""A line about an operation: where it is, and why it is not further."""

from datetime import UTC, datetime

import pytest

from modelyard.cli.printing.output import Output, described
from modelyard.cli.session import AmbiguousJobError
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.views import Links, OperationView

QUEUED = OperationView(
    operation_id="01890000-0000-7000-8000-000000000000",
    job_id="j-1",
    operation_type=Verb.DEPLOY_CREATE,
    state=OperationState.QUEUED,
    links=Links(self="/v1/operations/01890000-0000-7000-8000-000000000000"),
)


def test_what_it_waits_for_is_a_sentence_after_a_colon() -> None:
    waiting = ("1 host does not have the label gpu=a100", "1 host is CORDONED")
    assert described(QUEUED.model_copy(update={"waiting_for": waiting})) == (
        "DEPLOY_CREATE j-1 QUEUED waiting: 1 host does not have the label gpu=a100; "
        "1 host is CORDONED"
    )


def test_a_pause_between_attempts_says_why_the_last_one_failed() -> None:
    moment = datetime.now(UTC)
    failed = ErrorInfo.of(ErrorCode.IMAGE_PULL_FAILED)
    line = described(QUEUED.model_copy(update={"not_before": moment, "error": failed}))
    assert line.endswith(" after image_pull_failed")


def test_the_operations_among_which_to_choose_are_lines() -> None:
    told = str(AmbiguousJobError("j-1", [QUEUED] * 7)).split("\n")
    assert told[0] == "Job j-1 has 7 operations that have not ended; name one:"
    assert told[1] == f"  {QUEUED.operation_id}  DEPLOY_CREATE j-1 QUEUED"
    assert told[-1] == "  and 2 more"


def test_a_list_says_why_modelyard_made_an_operation_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = QUEUED.model_copy(update={"source": "system", "reason": "idle"})
    Output(as_json=False).operations([QUEUED, own])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "reason"
    assert first.split()[-1] == "QUEUED"
    assert second.split()[-1] == "idle"
