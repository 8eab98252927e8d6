"""The two doors: what is good and what is bad, by HTTP and by AMQP, on the whole fleet."""

import asyncio
import json
import time
import uuid
from datetime import datetime
from typing import Any

import pytest
from pymongo import MongoClient

from modelyard.contract.ids import operation_id_for_key
from tests.e2e.fleet import Json, User
from tests.support.waiting import eventually

BAD_JSON = [
    "not json",
    '{"job_id": NaN}',
    '{"job_id": "a", "job_id": "b", "operation_type": "TERMINATE"}',
    "[" * 10_000,
]
BAD_REQUESTS: list[tuple[Json, str]] = [
    ({"job_id": "j", "operation_type": "EXPLODE"}, "/operation_type"),
    ({"job_id": "../images/prune", "operation_type": "TERMINATE"}, "/job_id"),
    ({"job_id": "a?force=1", "operation_type": "TERMINATE"}, "/job_id"),
    ({"job_id": {"$ne": ""}, "operation_type": "TERMINATE"}, "/job_id"),
    ({"job_id": "j", "operation_type": "TERMINATE", "extra": 1}, "/extra"),
    ({"job_id": "j", "operation_type": "DEPLOY_LOAD", "container_id": 5}, "/container_id"),
    (
        {"job_id": "j", "operation_type": "INFER", "input": 1, "container_id": "a" * 129},
        "/container_id",
    ),
]


@pytest.mark.parametrize("body", BAD_JSON)
async def test_what_is_not_json_is_refused_by_both_doors(user: User, body: str) -> None:
    answer = await user.http.post(
        "/v1/jobs", content=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    key = f"bad-{uuid.uuid4().hex}"
    await user.publish(None, raw=body.encode(), key=key)
    with MongoClient[dict[str, Any]](user.fleet.mongo_url) as client:
        letters = client.get_default_database()["dead_letters"]

        async def recorded() -> Json | None:
            return await asyncio.to_thread(letters.find_one, {"payload": body.encode()})

        letter = await eventually(recorded)
    assert letter["reason"] == "invalid_json"


@pytest.mark.parametrize(("body", "pointer"), BAD_REQUESTS)
async def test_what_breaks_the_schema_is_refused_by_both_doors(
    user: User, body: Json, pointer: str
) -> None:
    answer = await user.http.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["pointer"] == pointer
    view = await user.ended(await user.publish(body, key=f"bad-{uuid.uuid4().hex}"))
    assert (view["state"], view["error"]["code"]) == ("REJECTED", "invalid_request")
    assert view["error"]["detail"]["errors"][0]["pointer"] == pointer


async def test_an_unknown_model_is_refused_by_both_doors(user: User) -> None:
    body = {"job_id": user.job_id(), "operation_type": "DEPLOY_CREATE", "model": "m-999"}
    answer = await user.http.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_model")
    view = await user.ended(await user.publish(body, key=f"bad-{uuid.uuid4().hex}"))
    assert (view["state"], view["error"]["code"]) == ("REJECTED", "unknown_model")


async def test_a_body_that_is_too_big_is_refused(user: User) -> None:
    body = {"job_id": "j", "operation_type": "INFER", "input": "x" * (1 << 20)}
    answer = await user.http.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("model", ["probe-open-inference", "probe-http", "probe-process"])
async def test_each_verb_works_by_amqp_in_each_profile(user: User, model: str) -> None:
    job_id = user.job_id()
    for verb, state in [
        ("DEPLOY_CREATE", "CREATED"),
        ("DEPLOY_LOAD", "LOADED"),
        ("INFER", "LOADED"),
        ("DEPLOY_UNLOAD", "CREATED"),
        ("TERMINATE", "TERMINATED"),
        ("TEMP", "TERMINATED"),
    ]:
        body: Json = {"job_id": job_id, "operation_type": verb, "model": model}
        if verb in ("INFER", "TEMP"):
            body["input"] = {"tag": "by-amqp"}
        view = await user.ended(await user.publish(body, key=f"{job_id}-{verb}"))
        assert (view["state"], view["source"]) == ("SUCCEEDED", "amqp"), view
        assert (await user.job(job_id))["state"] == state
        if verb in ("INFER", "TEMP"):
            assert "by-amqp" in json.dumps(await user.result(view["operation_id"]))


async def test_a_batch_program_works_by_amqp(user: User) -> None:
    body = {"job_id": user.job_id(), "operation_type": "TEMP", "model": "probe-batch"}
    view = await user.ended(await user.publish(body, key=f"batch-{uuid.uuid4().hex}"))
    assert view["state"] == "SUCCEEDED", view
    assert await user.result(view["operation_id"])


async def test_amqp_publish_of_a_temp_ends_in_a_stored_result(user: User) -> None:
    body = {
        "job_id": user.job_id(),
        "model": "m-131",
        "dataset": "ds-550",
        "operation_type": "TEMP",
    }
    view = await user.ended(await user.publish(body, key=f"temp-{uuid.uuid4().hex}"))
    assert view["state"] == "SUCCEEDED", view
    answer = await user.result(view["operation_id"])
    assert answer["parameters"]["accuracy"] > 0.95


async def test_a_list_in_one_message_is_many_operations(user: User) -> None:
    key = f"list-{uuid.uuid4().hex}"
    job_id = user.job_id()
    body = [
        {"job_id": job_id, "operation_type": "DEPLOY_CREATE", "model": "probe-http"},
        {"job_id": job_id, "operation_type": "EXPLODE"},
        {"job_id": job_id, "operation_type": "TERMINATE"},
    ]
    await user.publish(body, key=key)
    views = [await user.ended(operation_id_for_key(f"{key}/{n}")) for n in range(3)]
    assert [view["state"] for view in views] == ["SUCCEEDED", "REJECTED", "SUCCEEDED"]


async def test_the_same_key_is_one_operation_through_either_door(user: User) -> None:
    key = f"once-{uuid.uuid4().hex}"
    body = {"job_id": user.job_id(), "operation_type": "TEMP", "model": "probe-batch"}
    answers = [
        await user.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
        for _ in range(3)
    ]
    published = await user.publish(body, key=key)
    assert {answer.json()["operation_id"] for answer in answers} == {published}
    assert (await user.ended(published))["state"] == "SUCCEEDED"
    other = await user.http.post(
        "/v1/jobs", json=body | {"priority": 3}, headers={"Idempotency-Key": key}
    )
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    page = await user.http.get("/v1/operations", params={"job_id": body["job_id"]})
    assert len(page.json()["operations"]) == 1


async def test_a_waiting_poll_wakes_when_the_operation_ends(user: User) -> None:
    job_id = user.job_id()
    await user.done("DEPLOY_CREATE", job_id, model="probe-http")
    await user.done("DEPLOY_LOAD", job_id)
    lags = []
    for _ in range(5):
        operation_id = await user.submit("INFER", job_id, input={"sleep": 0.4})
        view = await user.ended(operation_id)
        woken = time.time()
        lags.append(woken - _seconds(view["finished_at"]))
    # One machine, one clock: from MongoDB's $$NOW at the end to the answer in hand.
    assert min(lags) < 0.1, lags
    await user.done("TERMINATE", job_id)


async def test_prefer_wait_answers_with_the_end(user: User) -> None:
    body = {"job_id": user.job_id(), "operation_type": "TEMP", "model": "probe-batch"}
    answer = await user.http.post("/v1/jobs", json=body, headers={"Prefer": "wait=20"})
    assert (answer.status_code, answer.json()["state"]) == (200, "SUCCEEDED")


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
