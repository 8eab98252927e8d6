"""The gateway between a real RabbitMQ and a real MongoDB: what clients send and get back."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from deploy.local.rabbitmq import RabbitMQ
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
from tests.support.gateway import Backstage, Json, fill_catalog, problem, serving

CREATE = {
    "job_id": "j-1",
    "model": "m-131",
    "dataset": "ds-550",
    "operation_type": "DEPLOY_CREATE",
    "container_id": "",
}


@pytest.fixture
async def yard(mongo_url: str, amqp_url: str) -> AsyncIterator[Backstage]:
    async with serving(mongo_url, amqp_url) as backstage:
        await fill_catalog(backstage.store)
        yield backstage


# --- submitting ---


@pytest.mark.parametrize("path", ["/inference_router/", "/inference_router", "/v1/jobs"])
async def test_the_five_calls_of_old_clients_are_accepted(yard: Backstage, path: str) -> None:
    for verb in ("DEPLOY_CREATE", "DEPLOY_LOAD", "DEPLOY_UNLOAD", "TERMINATE", "TEMP"):
        answer = await yard.client.post(path, json=CREATE | {"operation_type": verb})
        assert answer.status_code == 202, answer.text
        body = answer.json()
        assert answer.headers["Location"] == f"/v1/operations/{body['operation_id']}"
        assert answer.headers["Retry-After"] == "1"
        assert body["job_id"] == "j-1"
        assert body["state"] == "QUEUED"
        assert body["links"]["self"] == answer.headers["Location"]
        assert body["links"]["job"] == "/v1/jobs/j-1"


async def test_old_clients_leave_fields_out_by_sending_empty_strings(yard: Backstage) -> None:
    empty = {"model": "", "dataset": "", "container_id": ""}
    request = {"job_id": "j-1", "operation_type": "TERMINATE", **empty}
    answer = await yard.client.post("/inference_router/", json=request)
    assert answer.status_code == 202


async def test_what_was_accepted_can_be_read_at_once(yard: Backstage) -> None:
    answer = await yard.submit(CREATE | {"priority": 3, "metadata": {"a.b": "$c"}})
    read = await yard.client.get(answer.headers["Location"])
    assert read.status_code == 200
    assert read.headers["Retry-After"] == "1"
    view = read.json()
    assert view["operation_type"] == "DEPLOY_CREATE"
    assert view["metadata"] == {"a.b": "$c"}
    assert view["priority"] == 3
    assert view["source"] == "http"
    job = await yard.client.get(view["links"]["job"])
    assert job.json()["state"] == "NONE"


async def test_what_was_accepted_is_published_with_the_same_meaning(yard: Backstage) -> None:
    odd = {"inputs": [1e22, -0.0, 10**30, "ü\u2028", {"$ne": ""}, None, 1.0]}
    request = {"job_id": "j-1", "operation_type": "INFER", "input": odd}
    operation_id = await yard.accepted(**request)
    [submission] = await yard.published(1)
    [submitted] = submission.requests
    assert submitted.operation_id == operation_id
    assert submitted.request.payload_hash() == JobRequest.model_validate(request).payload_hash()
    record = await yard.store.operations.get(operation_id)
    assert record is not None
    assert record.payload_hash == submitted.request.payload_hash()


@pytest.mark.parametrize(
    ("name", "code"), [("model", "unknown_model"), ("dataset", "unknown_dataset")]
)
async def test_a_name_that_the_catalog_lacks_is_refused(
    yard: Backstage, name: str, code: str
) -> None:
    answer = await yard.submit(CREATE | {name: "nobody"})
    assert answer.status_code == 422
    document = problem(answer)
    assert document["code"] == code
    assert document["errors"][0]["pointer"] == f"/{name}"
    assert (await yard.client.get("/v1/operations")).json()["operations"] == []


async def test_prefer_wait_holds_the_answer_until_the_end(yard: Backstage) -> None:
    request = {"job_id": "j-1", "operation_type": "TERMINATE"}
    waiting = asyncio.create_task(yard.submit(request, Prefer="respond-async, wait=30"))
    await yard.has_waiters()
    [submission] = await yard.published(1)
    await yard.finish(submission.requests[0].operation_id)
    answer = await waiting
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert answer.json()["state"] == "SUCCEEDED"


async def test_prefer_wait_answers_202_when_the_time_is_over(yard: Backstage) -> None:
    request = {"job_id": "j-1", "operation_type": "TERMINATE"}
    answer = await yard.submit(request, Prefer="wait=1")
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "wait=1"


# --- idempotency ---


async def test_the_same_key_and_body_is_the_same_operation_in_its_state_by_now(
    yard: Backstage,
) -> None:
    headers = {"Idempotency-Key": "k/1"}
    first = await yard.submit(CREATE, **headers)
    operation_id = first.json()["operation_id"]
    assert operation_id == operation_id_for_key("k/1")
    await yard.finish(operation_id)
    reordered = dict(reversed(CREATE.items())) | {"priority": 0}
    again = await yard.submit(reordered, **headers)
    assert again.status_code == 202
    assert again.json() == first.json() | {"state": "SUCCEEDED"}
    assert len((await yard.client.get("/v1/operations")).json()["operations"]) == 1


async def test_the_same_key_outlives_the_model_that_it_named(yard: Backstage) -> None:
    await yard.submit(CREATE, **{"Idempotency-Key": "k"})
    assert (await yard.client.delete("/v1/models/m-131")).status_code == 204
    assert (await yard.submit(CREATE, **{"Idempotency-Key": "k"})).status_code == 202
    assert (await yard.submit(CREATE)).status_code == 422


async def test_the_same_key_with_another_body_is_refused(yard: Backstage) -> None:
    await yard.submit(CREATE, **{"Idempotency-Key": "k"})
    answer = await yard.submit(CREATE | {"priority": 1}, **{"Idempotency-Key": "k"})
    assert answer.status_code == 422
    assert problem(answer)["code"] == "idempotency_key_reused"


async def test_concurrent_repeats_become_one_operation(yard: Backstage) -> None:
    answers = await asyncio.gather(
        *(yard.submit(CREATE, **{"Idempotency-Key": "k"}) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["operation_id"] for answer in answers}) == 1
    assert len((await yard.client.get("/v1/operations")).json()["operations"]) == 1


async def test_of_concurrent_bodies_under_one_key_exactly_one_is_accepted(yard: Backstage) -> None:
    answers = await asyncio.gather(
        *(yard.submit(CREATE | {"priority": n}, **{"Idempotency-Key": "k"}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [202] + [422] * 7
    [won] = [number for number, answer in enumerate(answers) if answer.status_code == 202]
    record = await yard.store.operations.get(operation_id_for_key("k"))
    assert record is not None
    assert record.priority == won


@pytest.mark.parametrize("key", ["", "with space", "x" * 256, "tab\there"])
async def test_a_key_that_is_none_is_refused(yard: Backstage, key: str) -> None:
    answer = await yard.submit(CREATE, **{"Idempotency-Key": key})
    assert answer.status_code == 422
    assert problem(answer)["errors"][0]["header"] == "Idempotency-Key"


# --- batches ---


async def test_each_request_of_a_batch_is_answered_on_its_own(yard: Backstage) -> None:
    requests = [
        CREATE,
        CREATE | {"model": "nobody"},
        {"job_id": "j-2"},
        "not an object",
        {"job_id": "j-3", "operation_type": "TERMINATE"},
    ]
    answer = await yard.client.post("/v1/jobs/batch", json={"requests": requests})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [one["status"] for one in results] == [202, 422, 422, 422, 202]
    assert results[1]["problem"]["code"] == "unknown_model"
    assert results[1]["problem"]["errors"][0]["pointer"] == "/requests/1/model"
    assert results[2]["problem"]["errors"][0]["pointer"] == "/requests/2/operation_type"
    assert results[2]["job_id"] == "j-2"
    for one in (results[0], results[4]):
        assert (await yard.client.get(one["links"]["self"])).status_code == 200


async def test_a_bare_list_is_a_batch_and_its_keys_are_numbered(yard: Backstage) -> None:
    for _ in range(2):
        answer = await yard.client.post(
            "/v1/jobs/batch", json=[CREATE, CREATE], headers={"Idempotency-Key": "b"}
        )
        ids = [one["operation_id"] for one in answer.json()["results"]]
        assert ids == [operation_id_for_key("b/0"), operation_id_for_key("b/1")]
    changed = await yard.client.post(
        "/v1/jobs/batch",
        json=[CREATE, CREATE | {"priority": 1}],
        headers={"Idempotency-Key": "b"},
    )
    results = changed.json()["results"]
    assert [one["status"] for one in results] == [202, 422]
    assert results[1]["problem"]["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"requests": []}, "batch_too_large"),
        ([], "batch_too_large"),
        ([{}] * 1001, "batch_too_large"),
        ({"requests": {"$ne": ""}}, "invalid_request"),
        ({"requests": [CREATE], "more": 1}, "invalid_request"),
        ("text", "invalid_request"),
        (CREATE, "invalid_request"),
    ],
)
async def test_a_body_that_is_no_batch_is_refused(yard: Backstage, body: Json, code: str) -> None:
    answer = await yard.client.post("/v1/jobs/batch", json=body)
    assert answer.status_code == 422
    assert problem(answer)["code"] == code


async def test_a_large_batch_travels_in_bounded_messages_and_keeps_its_order(
    yard: Backstage,
) -> None:
    requests = [
        {"job_id": "j-1", "operation_type": "INFER", "input": "x" * 2_000} for _ in range(999)
    ]
    huge = {"job_id": "j-1", "operation_type": "INFER", "input": "y" * 700_000}
    answer = await yard.client.post("/v1/jobs/batch", json=[*requests[:500], huge, *requests[500:]])
    ids = [one["operation_id"] for one in answer.json()["results"]]
    submissions = await yard.published(1_000)
    assert [one.operation_id for each in submissions for one in each.requests] == ids
    for submission in submissions:
        size = len(submission.model_dump_json(exclude_defaults=True))
        assert size <= MAX_MESSAGE_BYTES or len(submission.requests) == 1


async def test_one_request_of_a_batch_that_is_too_large_stops_no_other(yard: Backstage) -> None:
    huge = {"job_id": "j-1", "operation_type": "INFER", "input": "y" * (1 << 20)}
    small = {"job_id": "j-1", "operation_type": "TERMINATE"}
    answer = await yard.client.post("/v1/jobs/batch", json=[huge, small])
    assert [one["status"] for one in answer.json()["results"]] == [413, 202]


# --- status ---


async def test_a_waiting_read_wakes_within_100_ms_of_the_event(yard: Backstage) -> None:
    # The quickest of a few: a busy machine may hold one of them up, a poll would hold up all.
    assert min([await _seconds_to_wake(yard) for _ in range(5)]) < 0.1


async def _seconds_to_wake(yard: Backstage) -> float:
    operation_id = await yard.accepted()
    path = f"/v1/operations/{operation_id}?wait=30"
    waiting = asyncio.create_task(yard.client.get(path))
    await yard.has_waiters()
    await yard.finish(operation_id, publish=False)
    began = time.perf_counter()
    await yard.publish_end(operation_id, OperationState.SUCCEEDED)
    answer = await waiting
    took = time.perf_counter() - began
    assert answer.json()["state"] == "SUCCEEDED"
    assert "Retry-After" not in answer.headers
    return took


async def test_all_who_wait_for_one_operation_are_woken_and_nobody_else(yard: Backstage) -> None:
    mine, other = await yard.accepted(), await yard.accepted()
    waiting = [
        asyncio.create_task(yard.client.get(f"/v1/operations/{mine}?wait=30")) for _ in range(5)
    ]
    late = asyncio.create_task(yard.client.get(f"/v1/operations/{other}?wait=30"))
    await yard.has_waiters(6)
    await yard.finish(mine)
    assert {(await one).json()["state"] for one in waiting} == {"SUCCEEDED"}
    assert not late.done()
    await yard.finish(other, OperationState.FAILED)
    assert (await late).json()["state"] == "FAILED"


async def test_a_wait_that_is_over_answers_the_state_as_it_is(yard: Backstage) -> None:
    operation_id = await yard.accepted()
    answer = await yard.client.get(f"/v1/operations/{operation_id}?wait=0.2")
    assert answer.json()["state"] == "QUEUED"
    assert answer.headers["Retry-After"] == "1"


async def test_an_end_that_no_event_told_of_is_seen_at_the_deadline(yard: Backstage) -> None:
    operation_id = await yard.accepted()
    path = f"/v1/operations/{operation_id}?wait=1"
    waiting = asyncio.create_task(yard.client.get(path))
    await yard.has_waiters()
    await yard.finish(operation_id, publish=False)
    assert (await waiting).json()["state"] == "SUCCEEDED"


async def test_those_who_wait_look_again_when_the_events_are_back(
    yard: Backstage, rabbitmq: RabbitMQ
) -> None:
    operation_id = await yard.accepted()
    path = f"/v1/operations/{operation_id}?wait=60"
    waiting = asyncio.create_task(yard.client.get(path))
    await yard.has_waiters()
    await yard.finish(operation_id, publish=False)
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "--global", "a test")
    async with asyncio.timeout(20):
        assert (await waiting).json()["state"] == "SUCCEEDED"


async def test_a_result_is_given_back_as_the_model_said_it(yard: Backstage) -> None:
    result = '{"outputs": [1e22, "ü"],  "spaces":  "kept"}'
    operation_id = await yard.accepted()
    path = f"/v1/operations/{operation_id}/result"
    early = await yard.client.get(path)
    assert early.status_code == 409
    assert problem(early)["code"] == "result_not_ready"
    assert early.headers["Retry-After"] == "1"
    await yard.finish(operation_id, result_json=result)
    answer = await yard.client.get(path)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.text == result
    view = (await yard.client.get(f"/v1/operations/{operation_id}")).json()
    assert view["result_bytes"] == len(result.encode())
    assert view["links"]["result"] == path


async def test_a_large_result_is_streamed_whole(yard: Backstage) -> None:
    result = '"' + "r" * 900_000 + '"'
    operation_id = await yard.accepted()
    await yard.finish(operation_id, result_json=result)
    answer = await yard.client.get(f"/v1/operations/{operation_id}/result")
    assert answer.headers["Content-Length"] == str(len(result))
    assert answer.text == result


async def test_an_end_without_a_result_says_so(yard: Backstage) -> None:
    operation_id = await yard.accepted()
    error = ErrorInfo(code=ErrorCode.EXITED, message="It exited.", detail={"exit_code": 3})
    await yard.finish(operation_id, OperationState.FAILED, error=error)
    answer = await yard.client.get(f"/v1/operations/{operation_id}/result")
    assert answer.status_code == 404
    assert problem(answer)["code"] == "no_result"
    view = (await yard.client.get(f"/v1/operations/{operation_id}")).json()
    assert view["error"]["code"] == "exited"
    assert view["error"]["detail"] == {"exit_code": 3}


# --- lists ---


async def test_pages_hold_everything_once_newest_first(yard: Backstage) -> None:
    ids = [await yard.accepted(job_id="j-1") for _ in range(7)]
    seen: list[str] = []
    path: str | None = "/v1/operations?limit=3&job_id=j-1&operation_type=TERMINATE"
    pages = 0
    while path:
        answer = await yard.client.get(path)
        seen += [one["operation_id"] for one in answer.json()["operations"]]
        pages += 1
        path = answer.links["next"]["url"] if "next" in answer.links else None
        assert (path is None) == (answer.json()["next"] is None)
    assert seen == list(reversed(ids))
    assert pages == 3


async def test_filters_choose(yard: Backstage) -> None:
    done = await yard.accepted(job_id="j-1")
    await yard.finish(done)
    await yard.accepted(job_id="j-2")
    await yard.accepted(**CREATE | {"job_id": "j-3"})
    expected = {
        "state=SUCCEEDED": ["j-1"],
        "state=QUEUED": ["j-3", "j-2"],
        "host_id=h-1": ["j-1"],
        "model=m-131": ["j-3"],
        "operation_type=DEPLOY_CREATE": ["j-3"],
        "job_id=nobody": [],
    }
    for query, jobs in expected.items():
        answer = await yard.client.get(f"/v1/operations?{query}")
        assert [one["job_id"] for one in answer.json()["operations"]] == jobs, query
    jobs_page = (await yard.client.get("/v1/jobs?state=NONE&limit=2")).json()
    assert [one["job_id"] for one in jobs_page["jobs"]] == ["j-3", "j-2"]
    rest = (await yard.client.get(f"/v1/jobs?state=NONE&cursor={jobs_page['next']}")).json()
    assert [one["job_id"] for one in rest["jobs"]] == ["j-1"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "state=DONE",
        "unknown=1",
        "state=QUEUED&state=FAILED",
        "job_id=a/b",
        "job_id[$ne]=x",
        "cursor=!",
        "cursor=bnVsbA",
        "cursor=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzIzOjU5IiwgIngiXQ",
        "cursor=WyIyMDIwLTAxLTAxVDAwOjAwOjAwKzAwOjAwIiwgIlx1ZDgwMCJd",
        "cursor=" + "W1tb" * 200,
        "cursor=" + "W1tb" * 120,
    ],
)
@pytest.mark.parametrize("path", ["/v1/operations", "/v1/jobs"])
async def test_a_query_that_is_wrong_is_refused(yard: Backstage, path: str, query: str) -> None:
    answer = await yard.client.get(f"{path}?{query}")
    assert answer.status_code == 422, answer.text
    assert problem(answer)["errors"][0]["parameter"]


# --- hosts and catalog ---


async def test_a_host_is_cordoned_and_uncordoned_and_a_new_boot_changes_neither(
    yard: Backstage,
) -> None:
    online = HostOnline(slots=1, engine=EngineFacts(version="1", api_version="1"))
    await yard.store.hosts.come_online("h-1", "i-1", online)
    for action, admission in (("cordon", "CORDONED"), ("uncordon", "OPEN")):
        for _ in range(2):
            told = await yard.client.post(f"/v1/hosts/h-1/{action}")
            assert (told.status_code, told.json()["admission"]) == (200, admission)
        await yard.store.hosts.come_online("h-1", f"after {action}", online)
        host = (await yard.client.get("/v1/hosts/h-1")).json()
        assert host["admission"] == admission
    assert problem(await yard.client.post("/v1/hosts/h-2/cordon"))["code"] == "not_found"


async def test_hosts_are_listed_and_read(yard: Backstage) -> None:
    assert (await yard.client.get("/v1/hosts")).json() == {"hosts": []}
    online = HostOnline(slots=2, engine=EngineFacts(version="29", api_version="1.44"))
    await yard.store.hosts.come_online("h-1", "i-1", online)
    await yard.store.hosts.count_fenced_off({("h-1", "other_epoch"): 3})
    [host] = (await yard.client.get("/v1/hosts")).json()["hosts"]
    assert (host["slots"], host["fenced_off"]) == (2, {"other_epoch": 3})
    assert (await yard.client.get("/v1/hosts/h-1")).json() == host
    assert problem(await yard.client.get("/v1/hosts/h-2"))["code"] == "not_found"


SOMEWHERE = "/v1/operations/01890000-0000-7000-8000-000000000000"

SPECS: dict[str, Json] = {
    "models": {"image": "a/b:1", "profile": "batch", "resources": {"memory": "512m"}},
    "datasets": {"volume": "v"},
}


@pytest.mark.parametrize("shelf", ["models", "datasets"])
async def test_a_catalog_entry_is_put_read_replaced_and_deleted(
    yard: Backstage, shelf: str
) -> None:
    path = f"/v1/{shelf}/x"
    assert (await yard.client.get(path)).status_code == 404
    made = await yard.client.put(path, json=SPECS[shelf])
    assert made.status_code == 201
    assert made.headers["Location"] == path
    again = await yard.client.put(path, json=SPECS[shelf] | {"name": "x"})
    assert again.status_code == 200
    assert (await yard.client.get(path)).json() == made.json()
    names = [one["name"] for one in (await yard.client.get(f"/v1/{shelf}")).json()[shelf]]
    assert "x" in names
    assert (await yard.client.delete(path)).status_code == 204
    assert (await yard.client.delete(path)).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (SPECS["models"] | {"name": "y"}, "/name"),
        (SPECS["models"] | {"privileged": True}, "/privileged"),
        (SPECS["models"] | {"image": {"$ne": ""}}, "/image"),
        (SPECS["models"] | {"user": "0"}, "/user"),
        ({"profile": "batch"}, "/image"),
        (SPECS["models"] | {"profile": "http"}, "/port"),
        ([], ""),
    ],
)
async def test_a_wrong_model_is_refused_with_a_pointer(
    yard: Backstage, body: Json, pointer: str
) -> None:
    answer = await yard.client.put("/v1/models/x", json=body)
    assert answer.status_code == 422
    assert problem(answer)["errors"][0]["pointer"] == pointer


async def test_a_model_that_was_just_stored_can_be_used_at_once(yard: Backstage) -> None:
    request = CREATE | {"model": "new"}
    assert (await yard.submit(request)).status_code == 422
    await yard.client.put("/v1/models/new", json=SPECS["models"])
    assert (await yard.submit(request)).status_code == 202


# --- the shape of errors ---


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/v1/jobs/j-unknown", 404, "not_found"),
        ("GET", SOMEWHERE, 404, "not_found"),
        ("GET", f"{SOMEWHERE}/result", 404, "not_found"),
        ("GET", "/v1/operations/abc", 404, "not_found"),
        ("GET", "/v1/jobs/a%0A", 404, "not_found"),
        ("GET", "/v1/jobs/%2e%2e%2fimages%2fprune", 404, "not_found"),
        ("GET", "/v1/hosts/a%00", 404, "not_found"),
        ("DELETE", "/v1/models/..%5Cx", 404, "not_found"),
        ("PUT", "/v1/models/a%20b", 422, "invalid_request"),
        ("GET", f"{SOMEWHERE}?wait=61", 422, "invalid_request"),
        ("GET", f"{SOMEWHERE}?wait=nan", 422, "invalid_request"),
        ("GET", f"{SOMEWHERE}?wai=1", 422, "invalid_request"),
    ],
)
async def test_every_error_is_a_problem(
    yard: Backstage, method: str, path: str, status: int, code: str
) -> None:
    answer = await yard.client.request(method, path)
    assert answer.status_code == status
    assert problem(answer)["code"] == code


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/jobs", "GET, POST"),
        ("POST", "/v1/models/x", "DELETE, GET, PUT"),
        ("GET", "/inference_router/", "POST"),
        ("PUT", "/livez", "GET"),
    ],
)
async def test_a_method_that_is_not_taken_is_told_the_ones_that_are(
    yard: Backstage, method: str, path: str, allow: str
) -> None:
    answer = await yard.client.request(method, path)
    assert answer.status_code == 405
    assert problem(answer)["code"] == "method_not_allowed"
    assert answer.headers["Allow"] == allow


async def test_a_request_id_is_taken_over_or_made(yard: Backstage) -> None:
    given = await yard.client.get("/livez", headers={"X-Request-Id": "trace-1"})
    assert given.headers["X-Request-Id"] == "trace-1"
    forged = await yard.client.get("/livez", headers={"X-Request-Id": "a b\x1b[31m"})
    assert len(forged.headers["X-Request-Id"]) == 32


async def test_health_names_each_part(yard: Backstage) -> None:
    assert (await yard.client.get("/livez")).json()["status"] == "alive"
    ready = await yard.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "parts": {"rabbitmq": "up", "mongodb": "up"}}


async def test_stopping_answers_those_who_wait_with_the_state_as_it_is(yard: Backstage) -> None:
    operation_id = await yard.accepted()
    waiting = asyncio.create_task(yard.client.get(f"/v1/operations/{operation_id}?wait=60"))
    await yard.has_waiters()
    yard.server.stop()
    async with asyncio.timeout(5):
        answer = await waiting
    assert answer.status_code == 200
    assert answer.json()["state"] == "QUEUED"


async def test_a_submission_names_its_requests_as_the_contract_says(yard: Backstage) -> None:
    operation_id = await yard.accepted(job_id="j-1")
    [submission] = await yard.published(1)
    request = JobRequest(job_id="j-1", operation_type=Verb.TERMINATE)
    assert submission.requests == (SubmittedRequest(operation_id=operation_id, request=request),)
