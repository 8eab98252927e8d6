"""What is sent again: the request of an operation, the message of a dead letter."""

import json
from typing import Any

import pytest

from gateway.submission.replays import refuse_unless_replayable
from gateway.submission.retries import request_again
from gateway.views import dead_letter_view
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import OperationState, Verb
from modelyard.store.records import DeadLetter, NewOperation, OperationRecord

ID = "01890000-0000-7000-8000-000000000000"
WHOLE = {
    "job_id": "j-1",
    "operation_type": "INFER",
    "model": "m-131",
    "dataset": "ds-550",
    "container_id": "0123456789ab",
    "input": [1e22, -0.0, 10**30, "ü\u2028", {"$ne": ""}, None, 1.0, True],
    "priority": 3,
    "timeout_s": 0.5,
    "queue_timeout_s": 7.0,
    "metadata": {"a.b": "$c"},
}


def recorded(request: dict[str, Any], **fields: Any) -> OperationRecord:
    """Return the record that a request leaves, as it is read with its input."""
    new = NewOperation.of(ID, JobRequest.model_validate(request), "http")
    stored = json.loads(new.model_dump_json(exclude={"operation_id", "rejection"}))
    fields.setdefault("state", OperationState.FAILED)
    return OperationRecord.model_validate({"_id": ID, **stored, **fields})


@pytest.mark.parametrize(
    "request_",
    [WHOLE, *({"job_id": "j", "operation_type": verb, "model": "m", "input": 0} for verb in Verb)],
)
def test_a_request_comes_back_from_its_record_as_it_was(request_: dict[str, Any]) -> None:
    again = request_again(recorded(request_))
    assert again == JobRequest.model_validate(request_)
    assert again.payload_hash() == JobRequest.model_validate(request_).payload_hash()


@pytest.mark.parametrize("state", OperationState)
def test_only_an_end_without_success_is_retried(state: OperationState) -> None:
    record = recorded(WHOLE, state=state)
    if state.terminal and state is not OperationState.SUCCEEDED:
        assert request_again(record).job_id == "j-1"
        return
    with pytest.raises(ModelyardError) as caught:
        request_again(record)
    assert caught.value.code is ErrorCode.NOT_RETRYABLE


@pytest.mark.parametrize(
    "lost",
    [
        {"verb": None},
        {"job_id": None},
        {"input_json": None},
        {"priority": 0},
        {"metadata": {}},
        {"payload_hash": "of a message that broke the schema"},
    ],
    ids=str,
)
def test_a_request_of_which_something_was_not_kept_is_not_guessed(lost: dict[str, Any]) -> None:
    with pytest.raises(ModelyardError) as caught:
        request_again(recorded(WHOLE, **lost))
    assert caught.value.code is ErrorCode.NOT_RETRYABLE


# --- dead letters ---


def letter(**fields: Any) -> DeadLetter:
    fields.setdefault("payload", b"{}")
    fields.setdefault("payload_bytes", len(fields["payload"]))
    return DeadLetter(dead_letter_id="ab" * 20, reason="invalid_json", **fields)


@pytest.mark.parametrize("routing_key", ["job.submit", ""])
def test_a_letter_of_requests_may_be_published_again(routing_key: str) -> None:
    refuse_unless_replayable(letter(queue="modelyard.jobs.v1", routing_key=routing_key))


@pytest.mark.parametrize(
    "fields",
    [
        {"queue": ""},
        {"queue": "somebodys.own", "routing_key": "h-1"},
        {"queue": "modelyard.host.h-1.v1", "routing_key": "h-1"},
        {"queue": "modelyard.host.h-1.v1", "routing_key": "h-2"},
        {"queue": "modelyard.host.h-1.v1", "routing_key": "h-1.control"},
        {"queue": "modelyard.heartbeats.v1"},
        {"queue": "modelyard.reports.v1", "routing_key": "h-1"},
        {"queue": "modelyard.jobs.v1", "payload": b"{", "payload_bytes": 9_000_000},
    ],
    ids=str,
)
def test_a_letter_that_has_nowhere_to_go_or_is_not_whole_stays(fields: dict[str, Any]) -> None:
    with pytest.raises(ModelyardError) as caught:
        refuse_unless_replayable(letter(**fields))
    assert caught.value.code is ErrorCode.NOT_REPLAYABLE


def test_a_payload_is_text_if_it_can_be() -> None:
    text = dead_letter_view(letter(payload="ü\n{".encode()))
    assert (text.payload, text.payload_encoding) == ("ü\n{", "utf-8")
    binary = dead_letter_view(letter(payload=b"\xff\x00"))
    assert (binary.payload, binary.payload_encoding) == ("/wA=", "base64")
    assert not binary.payload_truncated


def test_a_payload_that_was_cut_says_so() -> None:
    view = dead_letter_view(letter(payload=b"{}", payload_bytes=9))
    assert (view.payload_bytes, view.payload_truncated) == (9, True)
