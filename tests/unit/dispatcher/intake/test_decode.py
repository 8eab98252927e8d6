"""Reading messages of the jobs queue."""

import json
from datetime import UTC, datetime

import pytest

from dispatcher.intake.decode import UnreadableMessage, decode, idempotency_key
from modelyard.contract.errors import ErrorCode
from modelyard.contract.ids import new_operation_id, operation_id_for_key
from modelyard.contract.message_types import SUBMISSION_TYPE
from modelyard.contract.messages import JobRequest, Submission, SubmittedRequest
from modelyard.contract.states import Verb
from modelyard.store.records import NewOperation
from tests.support.dispatcher.submitted import submitted_request

REQUEST = {"job_id": "j", "operation_type": "TEMP", "model": "m", "input": [1.5]}


def read(
    value: object,
    *,
    key: str = "k",
    kind: str | None = None,
    replay: str | None = None,
    priority: int = 0,
) -> list[NewOperation]:
    body = json.dumps(value).encode()
    decoded = decode(body, message_type=kind, key=key, replay=replay, priority=priority)
    assert isinstance(decoded, list)
    return decoded


def test_one_request_is_one_operation_named_by_its_key() -> None:
    (operation,) = read(REQUEST, key="k")
    assert operation.operation_id == operation_id_for_key("k")
    assert (operation.job_id, operation.verb, operation.source) == ("j", Verb.TEMP, "amqp")
    assert operation.input_json == "[1.5]"


def test_an_input_that_grows_beyond_the_limit_as_text_is_rejected() -> None:
    body = b'[{"job_id":"j","operation_type":"TEMP","model":"m","input":[' + b"1e15," * 100_000
    decoded = decode(body + b"1]}]", message_type=None, key="k")
    assert isinstance(decoded, list)
    assert decoded[0].rejection is not None
    assert decoded[0].rejection.code is ErrorCode.BODY_TOO_LARGE
    assert decoded[0].input_json is None


def test_a_list_is_many_operations_named_by_their_place() -> None:
    made = read([REQUEST, REQUEST], key="k")
    assert [one.operation_id for one in made] == [
        operation_id_for_key("k/0"),
        operation_id_for_key("k/1"),
    ]


def test_one_bad_request_in_a_list_is_rejected_alone() -> None:
    good, bad, odd = read([REQUEST, REQUEST | {"operation_type": "X"}, 5], key="k")
    assert good.rejection is None
    assert bad.rejection is not None
    assert (bad.job_id, bad.verb) == ("j", None)
    assert odd.rejection is not None
    assert odd.rejection.code is ErrorCode.INVALID_REQUEST


def test_the_priority_of_a_message_is_that_of_its_requests_that_name_none() -> None:
    asked = [REQUEST, REQUEST | {"priority": 0}, REQUEST | {"priority": -3}]
    assert [one.priority for one in read(asked, priority=7)] == [7, 0, -3]
    (replayed,) = read(REQUEST, priority=7, replay="r")
    assert replayed.priority == 7


def test_a_priority_means_the_same_wherever_a_message_names_it() -> None:
    (in_the_body,) = read(REQUEST | {"priority": 7})
    (beside_it,) = read(REQUEST, priority=7)
    assert beside_it == in_the_body
    assert beside_it.payload_hash != read(REQUEST)[0].payload_hash
    assert read(REQUEST, priority=0) == read(REQUEST | {"priority": 0})


def test_a_null_is_no_priority_whatever_the_message_says() -> None:
    (operation,) = read(REQUEST | {"priority": None}, priority=7)
    assert operation.rejection is not None
    assert operation.rejection.detail["errors"][0]["pointer"] == "/priority"


def test_a_submission_of_a_gateway_has_no_priority_but_its_requests() -> None:
    one = SubmittedRequest(
        operation_id=new_operation_id(), request=JobRequest.model_validate(REQUEST)
    )
    submission = Submission(requests=(one,)).model_dump(mode="json")
    for replay in (None, "r"):
        (operation,) = read(submission, kind=SUBMISSION_TYPE, replay=replay, priority=7)
        assert operation.priority == 0
        assert operation.payload_hash == one.request.payload_hash()


def test_a_submission_of_a_gateway_keeps_its_ids() -> None:
    operation_id = new_operation_id()
    request = JobRequest.model_validate(REQUEST)
    submission = Submission(
        requests=(SubmittedRequest(operation_id=operation_id, request=request),)
    )
    (operation,) = read(submission.model_dump(mode="json"), kind=SUBMISSION_TYPE)
    assert (operation.operation_id, operation.source) == (operation_id, "http")
    assert operation.payload_hash == request.payload_hash()


def test_a_submission_of_a_gateway_says_when_it_was_accepted() -> None:
    request = JobRequest.model_validate(REQUEST)
    moment = (datetime(2026, 11, 26, 12, 30, 1, 234_000, tzinfo=UTC), 7)
    operation = NewOperation.of(new_operation_id(), request, "http")
    operation = operation.model_copy(update={"accepted": moment})
    submission = Submission(requests=(submitted_request(operation, request),))
    sent = submission.model_dump(mode="json")
    assert read(sent, kind=SUBMISSION_TYPE) == [operation]
    (again,) = read(sent, kind=SUBMISSION_TYPE, replay="r")
    assert again.accepted is None, "a replay is accepted when it is replayed"
    (of_a_client,) = read(sent["requests"], key="k")
    assert of_a_client.accepted is None


@pytest.mark.parametrize("accepted_ms", [-1, 1 << 63, 1.5, "now"])
def test_a_moment_that_can_not_be_makes_a_submission_unreadable(accepted_ms: object) -> None:
    one = {"operation_id": new_operation_id(), "request": REQUEST, "accepted_ms": accepted_ms}
    body = json.dumps({"requests": [one]}).encode()
    assert isinstance(decode(body, message_type=SUBMISSION_TYPE, key="k"), UnreadableMessage)


def test_a_forged_submission_is_unreadable() -> None:
    forged = {"requests": [{"operation_id": "../x", "request": REQUEST}]}
    decoded = decode(json.dumps(forged).encode(), message_type=SUBMISSION_TYPE, key="k")
    assert isinstance(decoded, UnreadableMessage)
    assert decoded.error.code is ErrorCode.INVALID_REQUEST


def test_the_header_is_the_key_and_the_message_id_is_where_there_is_no_header() -> None:
    assert idempotency_key({}, None) is None
    assert idempotency_key({}, "m") == "m"
    assert idempotency_key({"Idempotency-Key": "h"}, "m") == "h"
    assert idempotency_key({"idempotency-key": b"h"}, None) == "h"
    assert idempotency_key({"Idempotency-Key": ""}, "m") == "m"
