"""The gateway between a real RabbitMQ and a real MongoDB: what clients send and get back."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator

import pytest

from deploy.local.rabbitmq import RabbitMQ
from modelyard.client import Modelyard, NotJsonError
from modelyard.contract.content.results import ResultContent
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.messages import (
    MAX_MESSAGE_BYTES,
    EngineFacts,
    HostOnline,
    JobRequest,
    SubmittedRequest,
)
from modelyard.contract.states import OperationState, Verb
from tests.support.gateway import Json, ServedGateway, fill_catalog, problem, serving

CREATE = {
    "job_id": "j-1",
    "model": "m-131",
    "dataset": "ds-550",
    "operation_type": "DEPLOY_CREATE",
    "container_id": "",
}


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving(mongo_url, amqp_url) as served:
        await fill_catalog(served.store)
        yield served


# --- submitting ---


@pytest.mark.parametrize("path", ["/inference_router/", "/inference_router", "/v1/jobs"])
async def test_the_five_calls_of_old_clients_are_accepted(served: ServedGateway, path: str) -> None:
    for verb in ("DEPLOY_CREATE", "DEPLOY_LOAD", "DEPLOY_UNLOAD", "TERMINATE", "TEMP"):
        answer = await served.client.post(path, json=CREATE | {"operation_type": verb})
        assert answer.status_code == 202, answer.text
        body = answer.json()
        assert answer.headers["Location"] == f"/v1/operations/{body['operation_id']}"
        assert answer.headers["Retry-After"] == "1"
        assert body["job_id"] == "j-1"
        assert body["state"] == "QUEUED"
        assert body["links"]["self"] == answer.headers["Location"]
        assert body["links"]["job"] == "/v1/jobs/j-1"


async def test_old_clients_leave_fields_out_by_sending_empty_strings(served: ServedGateway) -> None:
    empty = {"model": "", "dataset": "", "container_id": ""}
    request = {"job_id": "j-1", "operation_type": "TERMINATE", **empty}
    answer = await served.client.post("/inference_router/", json=request)
    assert answer.status_code == 202


async def test_what_was_accepted_can_be_read_at_once(served: ServedGateway) -> None:
    answer = await served.submit(CREATE | {"priority": 3, "metadata": {"a.b": "$c"}})
    read = await served.client.get(answer.headers["Location"])
    assert read.status_code == 200
    assert read.headers["Retry-After"] == "1"
    view = read.json()
    assert view["operation_type"] == "DEPLOY_CREATE"
    assert view["metadata"] == {"a.b": "$c"}
    assert view["priority"] == 3
    assert view["source"] == "http"
    job = await served.client.get(view["links"]["job"])
    assert job.json()["state"] == "NONE"


async def test_what_was_accepted_is_published_with_the_same_meaning(served: ServedGateway) -> None:
    odd = {"inputs": [1e22, -0.0, 10**30, "ü\u2028", {"$ne": ""}, None, 1.0]}
    request = {"job_id": "j-1", "operation_type": "INFER", "input": odd}
    operation_id = await served.accepted(**request)
    [submission] = await served.published(1)
    [submitted] = submission.requests
    assert submitted.operation_id == operation_id
    assert submitted.request.payload_hash() == JobRequest.model_validate(request).payload_hash()
    record = await served.store.operation_queries.get(operation_id)
    assert record is not None
    assert record.payload_hash == submitted.request.payload_hash()


@pytest.mark.parametrize(
    ("name", "code"), [("model", "unknown_model"), ("dataset", "unknown_dataset")]
)
async def test_a_name_that_the_catalog_lacks_is_refused(
    served: ServedGateway, name: str, code: str
) -> None:
    answer = await served.submit(CREATE | {name: "nobody"})
    assert answer.status_code == 422
    document = problem(answer)
    assert document["code"] == code
    assert document["errors"][0]["pointer"] == f"/{name}"
    assert (await served.client.get("/v1/operations")).json()["operations"] == []


async def test_prefer_wait_holds_the_answer_until_the_end(served: ServedGateway) -> None:
    request = {"job_id": "j-1", "operation_type": "TERMINATE"}
    waiting = asyncio.create_task(served.submit(request, Prefer="respond-async, wait=30"))
    await served.has_waiters()
    [submission] = await served.published(1)
    await served.finish(submission.requests[0].operation_id)
    answer = await waiting
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert answer.json()["state"] == "SUCCEEDED"


async def test_prefer_wait_answers_202_when_the_time_is_over(served: ServedGateway) -> None:
    request = {"job_id": "j-1", "operation_type": "TERMINATE"}
    answer = await served.submit(request, Prefer="wait=1")
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "wait=1"


# --- idempotency ---


async def test_the_same_key_and_body_is_the_same_operation_in_its_state_by_now(
    served: ServedGateway,
) -> None:
    headers = {"Idempotency-Key": "k/1"}
    first = await served.submit(CREATE, **headers)
    operation_id = first.json()["operation_id"]
    assert operation_id == operation_id_for_key("k/1")
    await served.finish(operation_id)
    reordered = dict(reversed(CREATE.items())) | {"priority": 0}
    again = await served.submit(reordered, **headers)
    assert again.status_code == 202
    assert again.json() == first.json() | {"state": "SUCCEEDED"}
    assert len((await served.client.get("/v1/operations")).json()["operations"]) == 1


async def test_the_root_says_where_the_api_begins(served: ServedGateway) -> None:
    assert "/docs" in problem(await served.client.get("/"))["detail"]


async def test_the_same_key_outlives_the_model_that_it_named(served: ServedGateway) -> None:
    await served.submit(CREATE, **{"Idempotency-Key": "k"})
    assert (await served.client.delete("/v1/models/m-131")).status_code == 204
    assert (await served.submit(CREATE, **{"Idempotency-Key": "k"})).status_code == 202
    assert (await served.submit(CREATE)).status_code == 422


async def test_the_same_key_with_another_body_is_refused(served: ServedGateway) -> None:
    await served.submit(CREATE, **{"Idempotency-Key": "k"})
    answer = await served.submit(CREATE | {"priority": 1}, **{"Idempotency-Key": "k"})
    assert answer.status_code == 422
    assert problem(answer)["code"] == "idempotency_key_reused"
    assert operation_id_for_key("k") in problem(answer)["detail"]


async def test_concurrent_repeats_become_one_operation(served: ServedGateway) -> None:
    answers = await asyncio.gather(
        *(served.submit(CREATE, **{"Idempotency-Key": "k"}) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["operation_id"] for answer in answers}) == 1
    assert len((await served.client.get("/v1/operations")).json()["operations"]) == 1


async def test_of_concurrent_bodies_under_one_key_exactly_one_is_accepted(
    served: ServedGateway,
) -> None:
    answers = await asyncio.gather(
        *(served.submit(CREATE | {"priority": n}, **{"Idempotency-Key": "k"}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [202] + [422] * 7
    [won] = [number for number, answer in enumerate(answers) if answer.status_code == 202]
    record = await served.store.operation_queries.get(operation_id_for_key("k"))
    assert record is not None
    assert record.priority == won


# --- batches ---


async def test_each_request_of_a_batch_is_answered_on_its_own(served: ServedGateway) -> None:
    requests = [
        CREATE,
        CREATE | {"model": "nobody"},
        {"job_id": "j-2"},
        "not an object",
        {"job_id": "j-3", "operation_type": "TERMINATE"},
    ]
    answer = await served.client.post("/v1/jobs/batch", json={"requests": requests})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [one["status"] for one in results] == [202, 422, 422, 422, 202]
    assert results[1]["problem"]["code"] == "unknown_model"
    assert results[1]["problem"]["errors"][0]["pointer"] == "/requests/1/model"
    assert results[2]["problem"]["errors"][0]["pointer"] == "/requests/2/operation_type"
    assert results[2]["job_id"] == "j-2"
    for one in (results[0], results[4]):
        assert (await served.client.get(one["links"]["self"])).status_code == 200


async def test_a_bare_list_is_a_batch_and_its_keys_are_numbered(served: ServedGateway) -> None:
    for _ in range(2):
        answer = await served.client.post(
            "/v1/jobs/batch", json=[CREATE, CREATE], headers={"Idempotency-Key": "b"}
        )
        ids = [one["operation_id"] for one in answer.json()["results"]]
        assert ids == [operation_id_for_key("b/0"), operation_id_for_key("b/1")]
    changed = await served.client.post(
        "/v1/jobs/batch",
        json=[CREATE, CREATE | {"priority": 1}],
        headers={"Idempotency-Key": "b"},
    )
    results = changed.json()["results"]
    assert [one["status"] for one in results] == [202, 422]
    assert results[1]["problem"]["code"] == "idempotency_key_reused"


async def test_a_large_batch_travels_in_bounded_messages_and_keeps_its_order(
    served: ServedGateway,
) -> None:
    requests = [
        {"job_id": "j-1", "operation_type": "INFER", "input": "x" * 2_000} for _ in range(999)
    ]
    huge = {"job_id": "j-1", "operation_type": "INFER", "input": "y" * 700_000}
    answer = await served.client.post(
        "/v1/jobs/batch", json=[*requests[:500], huge, *requests[500:]]
    )
    ids = [one["operation_id"] for one in answer.json()["results"]]
    submissions = await served.published(1_000)
    assert [one.operation_id for each in submissions for one in each.requests] == ids
    for submission in submissions:
        size = len(submission.model_dump_json(exclude_defaults=True))
        assert size <= MAX_MESSAGE_BYTES or len(submission.requests) == 1


async def test_one_request_of_a_batch_that_is_too_large_stops_no_other(
    served: ServedGateway,
) -> None:
    huge = {"job_id": "j-1", "operation_type": "INFER", "input": "y" * (1 << 20)}
    small = {"job_id": "j-1", "operation_type": "TERMINATE"}
    answer = await served.client.post("/v1/jobs/batch", json=[huge, small])
    assert [one["status"] for one in answer.json()["results"]] == [413, 202]


# --- status ---


async def test_a_waiting_read_wakes_within_100_ms_of_the_event(served: ServedGateway) -> None:
    # The quickest of a few: a busy machine may hold one of them up, a poll would hold up all.
    assert min([await _seconds_to_wake(served) for _ in range(5)]) < 0.1


async def _seconds_to_wake(served: ServedGateway) -> float:
    operation_id = await served.accepted()
    path = f"/v1/operations/{operation_id}?wait=30"
    waiting = asyncio.create_task(served.client.get(path))
    await served.has_waiters()
    await served.finish(operation_id, publish=False)
    began = time.perf_counter()
    await served.publish_end(operation_id, OperationState.SUCCEEDED)
    answer = await waiting
    took = time.perf_counter() - began
    assert answer.json()["state"] == "SUCCEEDED"
    assert "Retry-After" not in answer.headers
    return took


async def test_all_who_wait_for_one_operation_are_woken_and_nobody_else(
    served: ServedGateway,
) -> None:
    mine, other = await served.accepted(), await served.accepted()
    waiting = [
        asyncio.create_task(served.client.get(f"/v1/operations/{mine}?wait=30")) for _ in range(5)
    ]
    late = asyncio.create_task(served.client.get(f"/v1/operations/{other}?wait=30"))
    await served.has_waiters(6)
    await served.finish(mine)
    assert {(await one).json()["state"] for one in waiting} == {"SUCCEEDED"}
    assert not late.done()
    await served.finish(other, OperationState.FAILED)
    assert (await late).json()["state"] == "FAILED"


async def test_a_wait_that_is_over_answers_the_state_as_it_is(served: ServedGateway) -> None:
    operation_id = await served.accepted()
    answer = await served.client.get(f"/v1/operations/{operation_id}?wait=0.2")
    assert answer.json()["state"] == "QUEUED"
    assert answer.headers["Retry-After"] == "1"


async def test_an_end_that_no_event_told_of_is_seen_at_the_deadline(served: ServedGateway) -> None:
    operation_id = await served.accepted()
    path = f"/v1/operations/{operation_id}?wait=1"
    waiting = asyncio.create_task(served.client.get(path))
    await served.has_waiters()
    await served.finish(operation_id, publish=False)
    assert (await waiting).json()["state"] == "SUCCEEDED"


async def test_those_who_wait_look_again_when_the_events_are_back(
    served: ServedGateway, rabbitmq: RabbitMQ
) -> None:
    operation_id = await served.accepted()
    path = f"/v1/operations/{operation_id}?wait=60"
    waiting = asyncio.create_task(served.client.get(path))
    await served.has_waiters()
    await served.finish(operation_id, publish=False)
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "--global", "a test")
    async with asyncio.timeout(20):
        assert (await waiting).json()["state"] == "SUCCEEDED"


async def test_a_result_is_given_back_as_the_model_said_it(served: ServedGateway) -> None:
    result = '{"outputs": [1e22, "ü"],  "spaces":  "kept"}'
    operation_id = await served.accepted()
    path = f"/v1/operations/{operation_id}/result"
    early = await served.client.get(path)
    assert early.status_code == 409
    assert problem(early)["code"] == "result_not_ready"
    assert early.headers["Retry-After"] == "1"
    await served.finish(operation_id, result_json=result)
    answer = await served.client.get(path)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.text == result
    view = (await served.client.get(f"/v1/operations/{operation_id}")).json()
    assert view["result_bytes"] == len(result.encode())
    assert view["links"]["result"] == path


async def test_a_large_result_is_streamed_whole(served: ServedGateway) -> None:
    result = '"' + "r" * 900_000 + '"'
    operation_id = await served.accepted()
    await served.finish(operation_id, result_json=result)
    answer = await served.client.get(f"/v1/operations/{operation_id}/result")
    assert answer.headers["Content-Length"] == str(len(result))
    assert answer.text == result


@pytest.mark.parametrize("size", [100, 900_000])
async def test_a_result_that_is_not_json_is_given_back_with_its_type_and_never_run(
    served: ServedGateway, size: int
) -> None:
    content = b"<script>" + b"\x00" * (size - 8)
    operation_id = await served.accepted(operation_type="INFER", input=1)
    result = ResultContent(content_type="text/html; charset=utf-8", content=content)
    await served.finish(operation_id, result_json=result)
    path = f"/v1/operations/{operation_id}/result"
    answer, head = await served.client.get(path), await served.client.head(path)
    assert answer.content == content
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Length"] == str(size)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    name = f"{operation_id}.bin"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}"'
    own = {"date", "x-request-id"}
    told = [{k: v for k, v in one.headers.items() if k not in own} for one in (head, answer)]
    assert (head.content, told[0]) == (b"", told[1])
    view = (await served.client.get(f"/v1/operations/{operation_id}")).json()
    assert view["result_type"] == "text/html; charset=utf-8"
    assert view["result_bytes"] == size
    assert view["result_sha256"] == hashlib.sha256(content).hexdigest()
    with Modelyard(served.url) as yard:
        read = await asyncio.to_thread(yard.content, operation_id)
        assert (read.media_type, read.content) == ("text/html; charset=utf-8", content)
        with pytest.raises(NotJsonError, match="text/html"):
            await asyncio.to_thread(yard.result, operation_id)


async def test_an_end_without_a_result_says_so(served: ServedGateway) -> None:
    operation_id = await served.accepted()
    error = ErrorInfo(code=ErrorCode.EXITED, message="It exited.", detail={"exit_code": 3})
    await served.finish(operation_id, OperationState.FAILED, error=error)
    answer = await served.client.get(f"/v1/operations/{operation_id}/result")
    assert answer.status_code == 404
    assert problem(answer)["code"] == "no_result"
    view = (await served.client.get(f"/v1/operations/{operation_id}")).json()
    assert view["error"]["code"] == "exited"
    assert view["error"]["detail"] == {"exit_code": 3}


# --- lists ---


async def test_pages_hold_everything_once_newest_first(served: ServedGateway) -> None:
    ids = [await served.accepted(job_id="j-1") for _ in range(7)]
    seen: list[str] = []
    path: str | None = "/v1/operations?limit=3&job_id=j-1&operation_type=TERMINATE"
    pages = 0
    while path:
        answer = await served.client.get(path)
        seen += [one["operation_id"] for one in answer.json()["operations"]]
        pages += 1
        path = answer.links["next"]["url"] if "next" in answer.links else None
        assert (path is None) == (answer.json()["next"] is None)
    assert seen == list(reversed(ids))
    assert pages == 3


async def test_filters_choose(served: ServedGateway) -> None:
    done = await served.accepted(job_id="j-1")
    await served.finish(done)
    await served.accepted(job_id="j-2")
    await served.accepted(**CREATE | {"job_id": "j-3"})
    expected = {
        "state=SUCCEEDED": ["j-1"],
        "state=QUEUED": ["j-3", "j-2"],
        "host_id=h-1": ["j-1"],
        "model=m-131": ["j-3"],
        "operation_type=DEPLOY_CREATE": ["j-3"],
        "job_id=nobody": [],
    }
    for query, jobs in expected.items():
        answer = await served.client.get(f"/v1/operations?{query}")
        assert [one["job_id"] for one in answer.json()["operations"]] == jobs, query
    jobs_page = (await served.client.get("/v1/jobs?state=NONE&limit=2")).json()
    assert [one["job_id"] for one in jobs_page["jobs"]] == ["j-3", "j-2"]
    rest = (await served.client.get(f"/v1/jobs?state=NONE&cursor={jobs_page['next']}")).json()
    assert [one["job_id"] for one in rest["jobs"]] == ["j-1"]


# --- hosts and catalog ---


async def test_a_host_is_cordoned_and_uncordoned_and_a_new_boot_changes_neither(
    served: ServedGateway,
) -> None:
    online = HostOnline(slots=1, engine=EngineFacts(version="1", api_version="1"))
    await served.store.hosts.come_online("h-1", "i-1", online)
    for action, admission in (("cordon", "CORDONED"), ("uncordon", "OPEN")):
        for _ in range(2):
            told = await served.client.post(f"/v1/hosts/h-1/{action}")
            assert (told.status_code, told.json()["admission"]) == (200, admission)
        await served.store.hosts.come_online("h-1", f"after {action}", online)
        host = (await served.client.get("/v1/hosts/h-1")).json()
        assert host["admission"] == admission
    assert problem(await served.client.post("/v1/hosts/h-2/cordon"))["code"] == "not_found"


async def test_hosts_are_listed_and_read(served: ServedGateway) -> None:
    assert (await served.client.get("/v1/hosts")).json() == {"hosts": [], "next": None}
    online = HostOnline(slots=2, engine=EngineFacts(version="29", api_version="1.44"))
    await served.store.hosts.come_online("h-1", "i-1", online)
    await served.store.hosts.count_fenced_off({("h-1", "other_epoch"): 3})
    [host] = (await served.client.get("/v1/hosts")).json()["hosts"]
    assert (host["slots"], host["fenced_off"]) == (2, {"other_epoch": 3})
    assert (await served.client.get("/v1/hosts/h-1")).json() == host
    assert problem(await served.client.get("/v1/hosts/h-2"))["code"] == "not_found"


SOMEWHERE = "/v1/operations/01890000-0000-7000-8000-000000000000"

SPECS: dict[str, Json] = {
    "models": {"image": "a/b:1", "profile": "batch", "resources": {"memory": "512m"}},
    "datasets": {"volume": "v"},
}


@pytest.mark.parametrize("shelf", ["models", "datasets"])
async def test_a_catalog_entry_is_put_read_replaced_and_deleted(
    served: ServedGateway, shelf: str
) -> None:
    path = f"/v1/{shelf}/x"
    assert (await served.client.get(path)).status_code == 404
    made = await served.client.put(path, json=SPECS[shelf])
    assert made.status_code == 201
    assert made.headers["Location"] == path
    again = await served.client.put(path, json=SPECS[shelf] | {"name": "x"})
    assert again.status_code == 200
    assert (await served.client.get(path)).json() == made.json()
    names = [one["name"] for one in (await served.client.get(f"/v1/{shelf}")).json()[shelf]]
    assert "x" in names
    assert (await served.client.delete(path)).status_code == 204
    assert (await served.client.delete(path)).status_code == 404


async def test_a_model_that_was_just_stored_can_be_used_at_once(served: ServedGateway) -> None:
    request = CREATE | {"model": "new"}
    assert (await served.submit(request)).status_code == 422
    await served.client.put("/v1/models/new", json=SPECS["models"])
    assert (await served.submit(request)).status_code == 202


# --- the shape of errors ---


async def test_a_request_id_is_taken_over_or_made(served: ServedGateway) -> None:
    given = await served.client.get("/livez", headers={"X-Request-Id": "trace-1"})
    assert given.headers["X-Request-Id"] == "trace-1"
    forged = await served.client.get("/livez", headers={"X-Request-Id": "a b\x1b[31m"})
    assert len(forged.headers["X-Request-Id"]) == 32


async def test_health_names_each_part(served: ServedGateway) -> None:
    assert (await served.client.get("/livez")).json()["status"] == "alive"
    ready = await served.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "parts": {"rabbitmq": "up", "mongodb": "up"}}


async def test_stopping_answers_those_who_wait_with_the_state_as_it_is(
    served: ServedGateway,
) -> None:
    operation_id = await served.accepted()
    waiting = asyncio.create_task(served.client.get(f"/v1/operations/{operation_id}?wait=60"))
    await served.has_waiters()
    served.server.stop()
    async with asyncio.timeout(5):
        answer = await waiting
    assert answer.status_code == 200
    assert answer.json()["state"] == "QUEUED"


async def test_a_submission_names_its_requests_as_the_contract_says(served: ServedGateway) -> None:
    operation_id = await served.accepted(job_id="j-1")
    [submission] = await served.published(1)
    request = JobRequest(job_id="j-1", operation_type=Verb.TERMINATE)
    record = await served.store.operation_queries.get(operation_id)
    assert record is not None
    assert record.accepted_at is not None
    submitted = SubmittedRequest(
        operation_id=operation_id,
        request=request,
        accepted_ms=round(record.accepted_at.timestamp() * 1_000),
    )
    assert submission.requests == (submitted,)
