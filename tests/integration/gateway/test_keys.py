"""API keys at the door of a gateway that serves: who gets in, and what he may do."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx2
import pytest
from pymongo import MongoClient

import gateway.access.key_ring
from deploy.local.mongodb import MongoDB
from gateway.access import failed_authentications
from modelyard.contract.access.api_keys import ApiKey, ApiKeyView
from modelyard.contract.access.scopes import SCOPES_OF, Role, Scope
from modelyard.contract.states import OperationState
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
from tests.support.waiting import eventually

INFER = {"job_id": "j-1", "operation_type": "INFER", "input": {"x": 1}}
NOBODY = "01890000-0000-7000-8000-000000000000"
LOAD = {"job_id": "j-1", "operation_type": "DEPLOY_LOAD"}
TEMP = {"job_id": "j-1", "operation_type": "TEMP", "model": "m-131"}


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving(mongo_url, amqp_url, with_keys=True) as served:
        await fill_catalog(served.store)
        yield served


async def status(served: ServedGateway, path: str, key: ApiKey | str, method: str = "GET") -> int:
    return (await served.client.request(method, path, headers=bearing(key))).status_code


# --- who gets in ---


async def test_without_a_key_nothing_is_told_and_nothing_is_done(served: ServedGateway) -> None:
    for method, path in (
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("POST", "/inference_router/"),
        ("POST", "/inference_router"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/hosts/h/drain"),
        ("PUT", "/v1/models/m"),
    ):
        answer = await served.client.request(method, path)
        assert answer.status_code == 401, path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert problem(answer)["code"] == "unauthenticated"
    for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
        assert (await served.client.get(path)).status_code == 200


async def test_only_the_whole_and_right_key_gets_in(served: ServedGateway) -> None:
    key = await make_key(served.store, Scope.JOBS_READ)
    other = await make_key(served.store, Scope.JOBS_READ)
    assert await status(served, "/v1/jobs", key) == 200
    wrong = f"my_{key.key_id}_{other.secret}"
    for text in (wrong, key.text[:-1], key.text + "0", key.text.upper(), key.secret, "x", "my__"):
        assert await status(served, "/v1/jobs", text) == 401, text
    for header in (f"Basic {key.text}", key.text, f"Bearer {key.text} {key.text}"):
        answer = await served.client.get("/v1/jobs", headers={"Authorization": header})
        assert answer.status_code == 401, header
    twice = [("Authorization", f"Bearer {key.text}"), ("Authorization", f"Bearer {other.text}")]
    assert (await served.client.get("/v1/jobs", headers=twice)).status_code == 401


async def test_an_expired_key_is_refused(served: ServedGateway) -> None:
    key = await make_key(served.store, Scope.JOBS_READ, expires_in_s=0.5)

    async def refused() -> bool:
        return await status(served, "/v1/jobs", key) == 401

    await eventually(refused, what="a key that expires")


async def test_a_revoked_key_is_refused_at_once_here_and_soon_at_another_gateway(
    served: ServedGateway, mongo_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.access.key_ring, "FRESH_S", 1.0)
    admin = await make_key(served.store, *SCOPES_OF[Role.ADMIN])
    key = await make_key(served.store, Scope.JOBS_READ)
    async with serving(mongo_url, amqp_url, with_keys=True) as other:
        assert await status(served, "/v1/jobs", key) == await status(other, "/v1/jobs", key) == 200
        revoked = await served.client.delete(f"/v1/keys/{key.key_id}", headers=bearing(admin))
        assert revoked.json()["revoked_at"] is not None
        assert await status(served, "/v1/jobs", key) == 401

        async def refused() -> bool:
            return await status(other, "/v1/jobs", key) == 401

        await eventually(refused, what="a gateway that reads the key anew")


async def test_while_mongodb_is_away_known_keys_submit_and_unknown_ones_get_503(
    served: ServedGateway, mongodb: MongoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.access.key_ring, "FRESH_S", 0.0)
    key = await make_key(served.store, *SCOPES_OF[Role.USER])
    unknown = await make_key(served.store, *SCOPES_OF[Role.USER])
    assert await status(served, "/v1/jobs", key) == 200
    with frozen(mongodb):
        accepted = await served.submit(LOAD, **bearing(key))
        assert accepted.status_code == 202
        assert (await served.submit(LOAD, **bearing(unknown))).status_code == 503
        wrong = f"my_{key.key_id}_{unknown.secret}"
        assert (await served.submit(LOAD, **bearing(wrong))).status_code == 401
        monkeypatch.setattr(gateway.access.key_ring, "KEPT_S", -1.0)
        assert (await served.submit(LOAD, **bearing(key))).status_code == 503


async def test_the_last_use_of_a_key_is_written_but_not_with_each_request(
    served: ServedGateway,
) -> None:
    key = await make_key(served.store, Scope.JOBS_READ)
    assert await status(served, "/v1/jobs", key) == 200
    [record] = (await served.store.api_keys.get_many([key.key_id])).values()
    assert record.last_used_at is None
    await served.gateway.keys.note_uses()
    [record] = (await served.store.api_keys.get_many([key.key_id])).values()
    assert record.last_used_at is not None


# --- who fails ---


async def test_who_fails_again_and_again_is_slowed_and_a_valid_key_is_not(
    served: ServedGateway,
) -> None:
    key = await make_key(served.store, Scope.JOBS_READ)
    assert await status(served, "/v1/jobs", key) == 200
    stranger = ApiKey.new()
    for _ in range(5):
        assert await status(served, "/v1/jobs", stranger) == 401
    began = time.monotonic()
    assert await status(served, "/v1/jobs", stranger) == 401
    assert time.monotonic() - began > failed_authentications.MOST_PAUSE_S / 2
    began = time.monotonic()
    failing = [asyncio.create_task(status(served, "/v1/jobs", ApiKey.new())) for _ in range(30)]
    assert await status(served, "/v1/jobs", key) == 200
    assert time.monotonic() - began < failed_authentications.MOST_PAUSE_S / 2
    assert set(await asyncio.gather(*failing)) <= {401, 429}


async def test_an_address_at_its_limit_gets_429_and_loses_its_connection(
    served: ServedGateway,
) -> None:
    limit = failed_authentications.MAX_PAUSED_OF_ADDRESS
    for _ in range(5):
        await status(served, "/v1/jobs", ApiKey.new())
    failing = [asyncio.create_task(status(served, "/v1/jobs", ApiKey.new())) for _ in range(limit)]

    async def held_back() -> bool:
        return served.gateway.authentication._failed.at_limit("127.0.0.1")

    await eventually(held_back, what="answers that are held back")
    answer = await served.client.get("/v1/jobs", headers=bearing(ApiKey.new()))
    assert answer.status_code == 429
    assert problem(answer)["code"] == "too_many_failures"
    assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
    assert set(await asyncio.gather(*failing)) == {401}


async def test_failures_are_told_in_the_log_with_the_id_and_without_the_secret(
    served: ServedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = ApiKey.new()
    await status(served, "/v1/jobs", stranger)
    told = capsys.readouterr()
    assert "authentication.failed" in told.out
    assert stranger.key_id in told.out
    assert stranger.secret not in told.out + told.err


# --- what he may do ---


async def test_each_scope_opens_its_own_routes_only(served: ServedGateway) -> None:
    asked: dict[Scope, tuple[tuple[str, str], ...]] = {
        Scope.JOBS_READ: (("GET", "/v1/jobs"), ("GET", "/v1/operations"), ("GET", "/v1/jobs/j")),
        Scope.JOBS_SUBMIT: (("DELETE", "/v1/jobs/j"), ("DELETE", f"/v1/operations/{NOBODY}")),
        Scope.CATALOG_READ: (("GET", "/v1/models"), ("GET", "/v1/datasets/d")),
        Scope.CATALOG_WRITE: (("DELETE", "/v1/models/m"), ("DELETE", "/v1/datasets/d")),
        Scope.HOSTS_READ: (("GET", "/v1/hosts"), ("GET", "/v1/hosts/h")),
        Scope.HOSTS_ADMIN: (("POST", "/v1/hosts/h/cordon"), ("DELETE", "/v1/hosts/h")),
        Scope.DEAD_LETTERS: (("GET", "/v1/dead-letters"), ("DELETE", "/v1/dead-letters/d")),
        Scope.KEYS_ADMIN: (("GET", "/v1/keys"), ("DELETE", "/v1/keys/nobody")),
    }
    for scope in asked:
        key = await make_key(served.store, scope)
        for other, calls in asked.items():
            for method, path in calls:
                answer = await served.client.request(method, path, headers=bearing(key))
                if other is scope:
                    assert answer.status_code in (200, 404), (scope, path)
                else:
                    assert answer.status_code == 403, (scope, path)
                    document = problem(answer)
                    assert document["code"] == "forbidden"
                    assert other.value in document["detail"]


async def test_an_inference_key_submits_inferences_and_nothing_else(served: ServedGateway) -> None:
    key = bearing(await make_key(served.store, Scope.JOBS_INFER))
    for path in ("/v1/jobs", "/inference_router/", "/inference_router"):
        taken = await served.client.post(path, json=INFER, headers=key)
        assert taken.status_code == 202
        refused = await served.client.post(path, json=LOAD, headers=key)
        assert refused.status_code == 403
        assert "jobs:submit" in problem(refused)["detail"]
    batch = await served.client.post("/v1/jobs/batch", json=[INFER, LOAD, TEMP, {}], headers=key)
    results = batch.json()["results"]
    assert [item["status"] for item in results] == [202, 403, 403, 422]
    assert results[1]["problem"]["code"] == "forbidden"
    many = await served.client.post("/v1/jobs/batch", json=[LOAD] * 60, headers=key)
    assert {item["status"] for item in many.json()["results"]} == {403}
    assert len((await served.store.operation_queries.page({}, after=None, limit=200)).items) == 4


async def test_an_inference_key_retries_inferences_only_and_cancels_nothing(
    served: ServedGateway,
) -> None:
    submit = bearing(await make_key(served.store, Scope.JOBS_SUBMIT))
    infer = bearing(await make_key(served.store, Scope.JOBS_INFER))
    ended: dict[str, str] = {}
    for verb, request in (("INFER", INFER), ("DEPLOY_LOAD", LOAD)):
        operation_id = (await served.submit(request, **submit)).json()["operation_id"]
        await served.finish(operation_id, OperationState.FAILED)
        ended[verb] = f"/v1/operations/{operation_id}"
    retried = [
        (await served.client.post(f"{ended[verb]}/retry", headers=infer)).status_code
        for verb in ("INFER", "DEPLOY_LOAD")
    ]
    assert retried == [202, 403]
    cancelled = await served.client.post(f"{ended['INFER']}/cancel", headers=infer)
    assert cancelled.status_code == 403


async def test_what_a_key_submits_belongs_to_its_tenant(served: ServedGateway) -> None:
    key = bearing(await make_key(served.store, Scope.JOBS_SUBMIT, tenant="blue"))
    one = (await served.submit(LOAD, **key)).json()["operation_id"]
    record = await served.store.operation_queries.get(one)
    assert record is not None
    assert record.tenant == "blue"
    [submission] = await served.published(1)
    assert [asked.tenant for asked in submission.requests] == ["blue"]


async def test_one_idempotency_key_of_two_tenants_is_two_operations(served: ServedGateway) -> None:
    again = {"Idempotency-Key": "k"}
    ids = []
    for tenant in ("blue", "green", "blue"):
        key = bearing(await make_key(served.store, Scope.JOBS_SUBMIT, tenant=tenant))
        ids.append((await served.submit(LOAD, **key, **again)).json()["operation_id"])
    assert ids[0] == ids[2] != ids[1]


# --- making keys ---


async def test_a_made_key_is_told_once_and_kept_as_a_hash_only(
    served: ServedGateway, mongo_url: str
) -> None:
    admin = bearing(await make_key(served.store, *SCOPES_OF[Role.ADMIN]))
    body = {"name": "shop", "role": "user", "expires_in_s": 3600}
    made = await served.client.post("/v1/keys", json=body, headers=admin)
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    key = ApiKey.parse(made.json()["api_key"])
    assert key is not None
    assert made.json()["key"]["scopes"] == sorted(SCOPES_OF[Role.USER])
    assert made.json()["key"]["expires_at"] is not None
    assert await status(served, "/v1/jobs", key) == 200
    listed = await served.client.get("/v1/keys", headers=admin)
    assert key.key_id in listed.text
    assert "hash" not in listed.text
    assert key.secret not in listed.text
    with MongoClient[Json](mongo_url) as mongo:
        database = mongo.get_default_database()
        everything = str([list(database[name].find()) for name in database.list_collection_names()])
    assert key.key_id in everything
    assert key.secret not in everything


async def test_nobody_creates_a_key_with_more_scopes_than_his_own(served: ServedGateway) -> None:
    half = bearing(await make_key(served.store, Scope.KEYS_ADMIN, Scope.JOBS_READ))
    more = {"name": "x", "scopes": ["jobs:read", "catalog:write", "hosts:read"]}
    refused = await served.client.post("/v1/keys", json=more, headers=half)
    assert refused.status_code == 403
    assert problem(refused)["code"] == "grant_too_large"
    assert problem(refused)["detail"] == (
        "Your API key lacks the scopes catalog:write and hosts:read, so it can't give them to "
        "another key."
    )
    assert (
        await served.client.post("/v1/keys", json={"name": "x", "role": "admin"}, headers=half)
    ).status_code == 403
    same = {"name": "x", "scopes": ["jobs:read", "keys:admin"]}
    assert (await served.client.post("/v1/keys", json=same, headers=half)).status_code == 201


async def test_nobody_creates_a_key_that_outlives_his_own(served: ServedGateway) -> None:
    parent = await make_key(served.store, Scope.KEYS_ADMIN, expires_in_s=3600)
    [record] = (await served.store.api_keys.get_many([parent.key_id])).values()
    assert record.expires_at is not None
    asked = {"name": "x", "scopes": ["keys:admin"]}

    async def create(**more: float) -> httpx2.Response:
        return await served.client.post("/v1/keys", json=asked | more, headers=bearing(parent))

    refused = await create(expires_in_s=7200)
    assert refused.status_code == 403
    assert problem(refused)["code"] == "grant_too_large"
    assert record.expires_at.isoformat(timespec="seconds") in problem(refused)["detail"]
    for made, latest in (
        (await create(), record.expires_at),
        (await create(expires_in_s=600), record.expires_at - timedelta(seconds=2000)),
    ):
        assert made.status_code == 201
        view = ApiKeyView.model_validate(made.json()["key"])
        assert view.created_by == parent.key_id
        assert view.expires_at is not None
        assert view.expires_at <= latest
    listed = (await served.client.get("/v1/keys", headers=bearing(parent))).json()["keys"]
    assert [one["created_by"] for one in listed] == [None, parent.key_id, parent.key_id]
