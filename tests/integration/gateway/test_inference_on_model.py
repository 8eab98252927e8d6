"""Inferences on a model at the gateway's door: which job gets them, and what clients are told."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx2
import pytest

from deploy.local.mongodb import MongoDB
from gateway.inference import job_choice
from gateway.inference.job_choice import FRESH_S
from gateway.submission.acceptor import PendingRequest
from modelyard.contract.access.scopes import Scope
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.messages import MAX_REQUEST_BYTES
from modelyard.contract.states import JobState, Verb
from modelyard.process.body_process import LARGE_BODY_BYTES
from modelyard.store.queries.serving_jobs import Copies
from modelyard.store.records import OperationRecord
from tests.support.gateway import (
    Json,
    ServedGateway,
    bearing,
    fill_catalog,
    frozen,
    make_key,
    problem,
    serving,
)
from tests.support.placed import host_online, in_line, placed, spec_of
from tests.support.waiting import eventually

INPUT = {"input": {"inputs": [1, 2]}}
LARGE = {"input": {"text": "x" * LARGE_BODY_BYTES}}
PATH = "/v1/models/m/infer"


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving(mongo_url, amqp_url) as served:
        await fill_catalog(served.store)
        await served.store.models.put(spec_of())
        await host_online(served.store)
        yield served


async def infer(
    served: ServedGateway,
    body: Json | None = None,
    path: str = PATH,
    headers: Mapping[str, str] | None = None,
) -> httpx2.Response:
    return await served.client.post(path, json=body or INPUT, headers=headers)


async def accepted(
    served: ServedGateway,
    body: Json | None = None,
    path: str = PATH,
    headers: Mapping[str, str] | None = None,
) -> Json:
    answer = await infer(served, body, path, headers)
    assert answer.status_code == 202, answer.text
    view: Json = answer.json()
    return view


async def read_anew(served: ServedGateway) -> None:
    """Have the next inference read the jobs."""
    served.gateway.job_choice._readings.clear()


async def test_it_becomes_an_ordinary_infer_on_a_job_of_the_model(served: ServedGateway) -> None:
    await placed(served.store, "j-1")
    body = INPUT | {"priority": 7, "timeout_s": 5.0, "queue_timeout_s": 9.0, "metadata": {"a": "b"}}
    answer = await infer(served, body)
    assert answer.status_code == 202
    view = answer.json()
    assert (view["job_id"], view["state"]) == ("j-1", "QUEUED")
    assert answer.headers["Location"] == f"/v1/operations/{view['operation_id']}"
    [submission] = await served.published(1)
    [sent] = submission.requests
    assert sent.operation_id == view["operation_id"]
    assert sent.request.model_dump(exclude_defaults=True) == {
        "job_id": "j-1",
        "operation_type": Verb.INFER,
        "model": "m",
        **body,
    }


async def test_prefer_wait_holds_the_answer_until_the_end(served: ServedGateway) -> None:
    await placed(served.store, "j-1")
    asking = asyncio.create_task(infer(served, headers={"Prefer": "wait=30"}))
    [submission] = await served.published(1)
    await served.finish(submission.requests[0].operation_id, result_json="[3]")
    answer = await asking
    assert (answer.status_code, answer.json()["state"]) == (200, "SUCCEEDED")
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert (await served.client.get(answer.json()["links"]["result"])).json() == [3]


async def test_a_thousand_spread_over_the_copies_and_cost_few_reads(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        await placed(served.store, name)
    reads = 0
    resident = served.gateway.store.serving_jobs.resident

    async def counted(*given: Any, **options: Any) -> object:
        nonlocal reads
        reads += 1
        return await resident(*given, **options)

    monkeypatch.setattr(served.gateway.store.serving_jobs, "resident", counted)
    began = asyncio.get_running_loop().time()
    jobs = Counter[str]()
    for _ in range(10):
        answers = await asyncio.gather(*(accepted(served) for _ in range(100)))
        jobs.update(one["job_id"] for one in answers)
    took_s = asyncio.get_running_loop().time() - began
    assert set(jobs) == set("abcd")
    assert max(jobs.values()) - min(jobs.values()) <= 40
    assert reads <= took_s / FRESH_S + 1


async def test_only_jobs_with_the_dataset_that_is_given_are_asked(served: ServedGateway) -> None:
    await placed(served.store, "a", dataset="ds-550")
    await placed(served.store, "b", dataset="other")
    jobs = [await accepted(served, path=f"{PATH}?dataset=ds-550") for _ in range(4)]
    assert {one["job_id"] for one in jobs} == {"a"}
    [submission, *_] = await served.published(4)
    assert submission.requests[0].request.dataset == "ds-550"


async def test_while_none_is_loaded_one_that_loads_on_demand_is_asked(
    served: ServedGateway,
) -> None:
    spec = spec_of(on_demand=True)
    await placed(served.store, "cold", JobState.CREATED, spec)
    await placed(served.store, "by-hand", JobState.CREATED)
    assert (await accepted(served))["job_id"] == "cold"
    await placed(served.store, "hot", spec=spec)
    await read_anew(served)
    assert (await accepted(served))["job_id"] == "hot"


# --- keys ---


@pytest.mark.parametrize("body", [INPUT, LARGE], ids=["small", "large"])
async def test_the_same_key_is_the_same_operation_though_another_job_would_be_chosen_now(
    served: ServedGateway, body: Json
) -> None:
    await placed(served.store, "a")
    key = {"Idempotency-Key": "k"}
    first = await accepted(served, body, headers=key)
    await placed(served.store, "b")
    await in_line(served.store, "a", [Verb.INFER] * 3)
    await read_anew(served)
    assert (await accepted(served, body))["job_id"] == "b"
    again = await accepted(served, body, headers=key)
    assert (again["operation_id"], again["job_id"]) == (first["operation_id"], "a")
    other = await infer(served, {"input": 2}, headers=key)
    assert (other.status_code, problem(other)["code"]) == (422, "idempotency_key_reused")


async def test_the_same_key_is_the_same_operation_when_no_job_is_left(
    served: ServedGateway,
) -> None:
    job = await placed(served.store, "a")
    key = {"Idempotency-Key": "k"}
    first = await accepted(served, headers=key)
    assert await served.store.jobs.observe(job, JobState.FAILED, None)
    await read_anew(served)
    assert (await infer(served)).status_code == 409
    assert (await accepted(served, headers=key)) == first
    await served.finish(first["operation_id"], result_json="1")
    done = await infer(served, headers=key | {"Prefer": "wait=5"})
    assert (done.status_code, done.json()["state"]) == (200, "SUCCEEDED")
    assert (await infer(served, headers={"Idempotency-Key": "another"})).status_code == 409


@pytest.mark.parametrize("body", [INPUT, LARGE], ids=["small", "large"])
async def test_repeats_at_the_same_time_become_one_operation_on_one_job(
    served: ServedGateway, mongo_url: str, amqp_url: str, body: Json
) -> None:
    for name in "abcd":
        await placed(served.store, name)
    async with serving(mongo_url, amqp_url) as other:
        for _ in range(5):
            key = {"Idempotency-Key": uuid.uuid4().hex}
            answers = await asyncio.gather(
                *(accepted(one, body, headers=key) for one in (served, other) * 4)
            )
            [(operation_id, job_id)] = {(one["operation_id"], one["job_id"]) for one in answers}
            assert operation_id == operation_id_for_key(key["Idempotency-Key"])
            recorded = await served.store.operation_queries.get(operation_id)
            assert recorded is not None
            assert recorded.job_id == job_id


async def test_of_different_inputs_under_one_key_at_the_same_time_one_is_accepted(
    served: ServedGateway,
) -> None:
    for name in "abcd":
        await placed(served.store, name)
    key = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(infer(served, {"input": n}, headers=key) for n in range(1, 9)))
    assert sorted(one.status_code for one in answers) == [202, *([422] * 7)]


async def test_a_key_of_another_request_is_refused(served: ServedGateway) -> None:
    await placed(served.store, "j-1")
    request = {"job_id": "j-1", "operation_type": "INFER", **INPUT}
    assert (await served.submit(request, **{"Idempotency-Key": "k"})).status_code == 202
    refused = await infer(served, headers={"Idempotency-Key": "k"})
    assert (refused.status_code, problem(refused)["code"]) == (422, "idempotency_key_reused")


# --- what changes meanwhile ---


async def test_nothing_goes_to_a_job_from_the_moment_in_which_it_is_to_be_terminated(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_choice, "FRESH_S", 3_600.0)
    for name in "ab":
        await placed(served.store, name)
    assert {(await accepted(served))["job_id"] for _ in range(2)} == {"a", "b"}
    end = {"job_id": "a", "operation_type": "TERMINATE"}
    await served.client.post("/v1/jobs/batch", json=[end])
    assert {(await accepted(served))["job_id"] for _ in range(6)} == {"b"}


async def test_an_inference_that_a_terminate_overtakes_goes_to_another_job(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks its key up after its job was chosen; the TERMINATE is accepted meanwhile."""
    await placed(served.store, "a")
    choose, look_up = served.gateway.job_choice.job_for, served.gateway.acceptor._existing
    chosen: list[str] = []

    async def choosing(copies: Copies) -> str:
        chosen.append(await choose(copies))
        return chosen[-1]

    async def slow_look_up(pending: Sequence[PendingRequest]) -> dict[str, OperationRecord]:
        monkeypatch.undo()
        monkeypatch.setattr(served.gateway.job_choice, "job_for", choosing)
        await placed(served.store, "b")
        await read_anew(served)
        await served.submit({"job_id": "a", "operation_type": "TERMINATE"})
        return await look_up(pending)

    monkeypatch.setattr(served.gateway.job_choice, "job_for", choosing)
    monkeypatch.setattr(served.gateway.acceptor, "_existing", slow_look_up)
    key = {"Idempotency-Key": "k", "Prefer": "wait=1"}
    assert (await accepted(served, headers=key))["job_id"] == "b"
    assert chosen == ["a", "b"]


async def test_the_only_job_gets_an_inference_though_it_is_leaving(served: ServedGateway) -> None:
    """Its line may load it again; if not, the operation is REJECTED with the reason."""
    await placed(served.store, "a", spec=spec_of(on_demand=True))
    await served.submit({"job_id": "a", "operation_type": "DEPLOY_UNLOAD"})
    assert (await accepted(served))["job_id"] == "a"


async def test_a_copy_that_another_gateway_terminates_is_left_out_soon(
    served: ServedGateway, mongo_url: str, amqp_url: str
) -> None:
    for name in "ab":
        await placed(served.store, name)
    await accepted(served)
    async with serving(mongo_url, amqp_url) as other:
        await other.submit({"job_id": "a", "operation_type": "TERMINATE"})

    async def left_out() -> bool:
        return {(await accepted(served))["job_id"] for _ in range(4)} == {"b"}

    await eventually(left_out, what="a reading without it")


async def test_while_mongodb_does_not_answer_inferences_go_where_they_went(
    served: ServedGateway, mongodb: MongoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_choice, "FRESH_S", 0.0)
    await placed(served.store, "j-1")
    await accepted(served)
    with frozen(mongodb):
        assert (await accepted(served))["job_id"] == "j-1"
        unknown = await infer(served, path="/v1/models/other/infer")
        assert (unknown.status_code, problem(unknown)["code"]) == (503, "unavailable")
        assert unknown.headers["Retry-After"]


# --- refusals ---


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/models/unknown/infer", 404, "not_found"),
        ("/v1/models/-/infer", 404, "not_found"),
        ("/v1/models/m-131/infer", 422, "unsupported_verb"),
        (PATH, 409, "no_serving_job"),
        (f"{PATH}?dataset=ds-550", 409, "no_serving_job"),
        (f"{PATH}?dataset=", 422, "invalid_request"),
        (f"{PATH}?dataset=a&dataset=b", 422, "invalid_request"),
        (f"{PATH}?wait=3", 422, "invalid_request"),
    ],
)
async def test_what_no_job_can_answer_is_refused(
    served: ServedGateway, path: str, status: int, code: str
) -> None:
    refused = await infer(served, path=path)
    assert (refused.status_code, problem(refused)["code"]) == (status, code)


async def test_a_model_that_was_deleted_is_unknown_though_a_job_runs_it(
    served: ServedGateway,
) -> None:
    await placed(served.store, "j-1")
    assert (await served.client.delete("/v1/models/m")).status_code == 204
    refused = await infer(served)
    assert (refused.status_code, problem(refused)["code"]) == (404, "not_found")
    request = {"job_id": "j-1", "operation_type": "INFER", **INPUT}
    assert (await served.submit(request)).status_code == 202


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ("[", 400, "invalid_json", None),
        ("[]", 422, "invalid_request", ""),
        # It may have an input or the id of an uploaded one, so neither is at fault.
        ("{}", 422, "invalid_request", ""),
        ('{"input": null}', 422, "invalid_request", ""),
        ('{"input": 1, "job_id": "j-1"}', 422, "invalid_request", "/job_id"),
        ('{"input": 1, "priority": 101}', 422, "invalid_request", "/priority"),
        (f'{{"input": "{"x" * MAX_REQUEST_BYTES}"}}', 413, "body_too_large", None),
        (f'{{"input": "{"x" * LARGE_BODY_BYTES}", "a": 1}}', 422, "invalid_request", "/a"),
    ],
    ids=range(8),
)
async def test_a_body_that_is_no_inference_is_refused(
    served: ServedGateway, body: str, status: int, code: str, pointer: str | None
) -> None:
    await placed(served.store, "j-1")
    headers = {"Content-Type": "application/json"}
    refused = await served.client.post(PATH, content=body, headers=headers)
    assert (refused.status_code, problem(refused)["code"]) == (status, code)
    if pointer is not None:
        assert problem(refused)["errors"][0]["pointer"] == pointer
    text = await served.client.post(PATH, content="1", headers={"Content-Type": "text/plain"})
    assert text.status_code == 415


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"input": 1, "job_id": "j-1"}'])
@pytest.mark.parametrize("path", [PATH, "/v1/models/unknown/infer"])
async def test_a_fault_in_the_body_is_told_before_there_is_no_job_for_it(
    served: ServedGateway, path: str, body: bytes
) -> None:
    answer = await served.client.post(
        path, content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 422)
    assert problem(answer)["code"] in ("invalid_json", "invalid_request")


async def test_other_methods_are_refused_with_the_one_that_there_is(
    served: ServedGateway,
) -> None:
    refused = await served.client.get(PATH)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "OPTIONS, POST")


async def test_the_scope_to_infer_is_enough_and_one_to_read_is_not(
    mongo_url: str, amqp_url: str
) -> None:
    async with serving(mongo_url, amqp_url, with_keys=True) as served:
        await served.store.models.put(spec_of())
        await host_online(served.store)
        await placed(served.store, "j-1")
        for scope, status in (
            (Scope.JOBS_INFER, 202),
            (Scope.JOBS_SUBMIT, 202),
            (Scope.JOBS_READ, 403),
        ):
            key = await make_key(served.store, scope)
            assert (await infer(served, headers=bearing(key))).status_code == status, scope
        assert (await infer(served)).status_code == 401
        assert (await infer(served, path="/v1/models/unknown/infer")).status_code == 401
