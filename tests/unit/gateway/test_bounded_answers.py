"""Whatever a client sends, what it is told is small."""

import json

import pytest

from gateway.middleware.query_bounds import MAX_PARAMETERS
from gateway.problems import FaultyRequestError, problem_of
from gateway.submission.acceptor import PendingRequest
from gateway.submission.request_transfer import pack_asked, pack_error, pack_refused, unpack
from gateway.submission.requests import RefusedRequest, read_batch, read_one, validated
from gateway.submission.retries import request_again
from modelyard.contract.answers import Fault
from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import MAX_BATCH_BYTES, MAX_REQUEST_BYTES, JobRequest
from modelyard.contract.states import OperationState
from tests.unit.gateway.submission.test_bodies import (
    ONE_LOOP,
    client,  # noqa: F401 - a fixture
    post,
)

LARGEST = 16 << 10
REQUEST = {"job_id": "j-1", "operation_type": "INFER", "input": [1]}

WIDE = "\U0001f600"


@ONE_LOOP
@pytest.mark.parametrize(
    "change",
    [
        {f"{WIDE * 200}{number}": 1 for number in range(60)},
        {f"{WIDE * 40}{number}": 1 for number in range(1_000)},
        {"metadata": {f"{WIDE * 200}{number}": number for number in range(32)}},
        {"metadata": {str(number): number for number in range(50_000)}},
        {"job_id": WIDE * 20_000},
    ],
    ids=["names", "many names", "metadata", "much metadata", "a value"],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/batch"])
async def test_a_problem_is_small_whatever_was_wrong(
    client: object,  # noqa: F811
    path: str,
    change: dict[str, object],
) -> None:
    request = REQUEST | change
    body = json.dumps(request if path == "/v1/jobs" else [request]).encode()
    answer = await post(client, path, body)  # type: ignore[arg-type]
    assert answer.status_code == (422 if path == "/v1/jobs" else 200)
    assert len(answer.content) <= LARGEST


@ONE_LOOP
async def test_the_answer_to_a_batch_of_wrong_requests_is_bounded(
    client: object,  # noqa: F811
) -> None:
    wrong = REQUEST | {f"{WIDE * 20}{number}": 1 for number in range(20)}
    body = json.dumps([wrong] * 1_000, ensure_ascii=False).encode()
    answer = await post(client, "/v1/jobs/batch", body)  # type: ignore[arg-type]
    items = answer.json()["results"]
    assert {item["status"] for item in items} == {422}
    assert items[0]["problem"]["errors"]
    assert len(answer.content) < 1 << 20 < len(body)


@ONE_LOOP
async def test_a_catalog_entry_of_many_names_is_refused_at_once(
    client: object,  # noqa: F811
) -> None:
    body = json.dumps({"env": {f"a{number}": number for number in range(3_000)}}).encode()
    answer = await post(client, "/v1/models/m-1", body)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_json"


@ONE_LOOP
@pytest.mark.parametrize("query", ["a&" * MAX_PARAMETERS, "a=" + "x" * 9_000])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/models", "/v1/operations/x", "/nowhere"])
async def test_a_query_without_end_is_not_taken_apart(
    client: object,  # noqa: F811
    path: str,
    query: str,
) -> None:
    answer = await client.get(f"{path}?{query}")  # type: ignore[attr-defined]
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_request"
    assert len(answer.content) <= LARGEST


def test_pydantic_is_not_given_what_it_would_make_an_error_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def given(*_: object, **__: object) -> None:
        pytest.fail("It was validated.")

    monkeypatch.setattr(JobRequest, "model_validate", given)
    for value in ({str(n): 1 for n in range(65)}, {"metadata": {str(n): 1 for n in range(33)}}):
        with pytest.raises(FaultyRequestError):
            validated(JobRequest, value)


def test_a_list_of_faults_ends_where_the_room_does() -> None:
    faults = [Fault(pointer="/" + WIDE * 200, message=WIDE * 400) for _ in range(20)]
    problem = problem_of(FaultyRequestError(faults))
    assert 0 < len(problem.errors) < 20
    assert len(problem.model_dump_json().encode()) < LARGEST


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST,
        {"job_id": "j", "operation_type": "TERMINATE"},
        {
            "job_id": "j",
            "operation_type": "TEMP",
            "model": "m",
            "dataset": "",
            "container_id": "0123456789ab",
            "input": {"b": "é\x7f", "a": [1e15, -0.0]},
            "priority": 1,
            "timeout_s": 2.5,
            "queue_timeout_s": 3,
            "metadata": {"k": "v"},
        },
        {"job_id": "j", "operation_type": "INFER", "input_id": new_operation_id()},
    ],
)
@pytest.mark.parametrize("key", [None, "k"])
def test_a_request_is_the_same_wherever_it_was_read(
    request_: dict[str, object], key: str | None
) -> None:
    asked = read_one(
        json.dumps(request_).encode(), key=key, tenant="t", max_bytes=MAX_REQUEST_BYTES
    )
    other = unpack(pack_asked(asked))
    assert isinstance(other, PendingRequest)
    assert other.operation == asked.operation
    assert (other.under, other.keyed) == (asked.under, asked.keyed)
    names = {"input"}
    assert other.request.model_dump(exclude=names) == asked.request.model_dump(exclude=names)


@pytest.mark.parametrize("left_out", ["input", "input_id"])
def test_no_field_of_a_request_is_lost_in_the_body_process_or_in_its_record(left_out: str) -> None:
    fields: dict[str, object] = {
        "job_id": "j",
        "operation_type": "INFER",
        "model": "m",
        "dataset": "d",
        "container_id": "0123456789ab",
        "input": [1],
        "input_id": new_operation_id(),
        "priority": 1,
        "timeout_s": 2.5,
        "queue_timeout_s": 3.0,
        "metadata": {"k": "v"},
    }
    assert fields.keys() == JobRequest.model_fields.keys(), "each field is to be among them"
    del fields[left_out]
    body = json.dumps(fields).encode()
    asked = read_one(body, key="k", tenant="t", max_bytes=MAX_REQUEST_BYTES)
    other = unpack(pack_asked(asked))
    assert isinstance(other, PendingRequest)
    rest = {name: value for name, value in fields.items() if name != "input"}
    assert other.request.model_dump(exclude_defaults=True, exclude={"input"}) == rest
    ended = other.operation.queued().model_copy(update={"state": OperationState.FAILED})
    assert request_again(ended) == asked.request


def test_an_error_is_the_same_wherever_it_was_found() -> None:
    body = json.dumps([REQUEST | {"priority": 101}, 5]).encode()
    for one in read_batch(
        body,
        key=None,
        tenant="t",
        max_bytes=MAX_BATCH_BYTES,
        max_request_bytes=MAX_REQUEST_BYTES,
    ):
        assert isinstance(one, RefusedRequest)
        other = unpack(pack_refused(one))
        assert isinstance(other, RefusedRequest)
        assert problem_of(other.error) == problem_of(one.error)
        assert other.job_id == one.job_id
    whole = InvalidRequestError(ErrorCode.BODY_TOO_LARGE, "too large")
    with pytest.raises(InvalidRequestError, match="too large") as caught:
        unpack(pack_error(whole))
    assert caught.value.code is ErrorCode.BODY_TOO_LARGE
