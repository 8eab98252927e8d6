"""What operators see of a gateway that serves: its metrics, its access log, their own changes."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.http.connections import ConnectionLimits
from modelyard.contract.access.scopes import Scope
from modelyard.contract.messages import EngineFacts, HostOnline
from modelyard.contract.topology import JOBS_QUEUE
from modelyard.store.records import DeadLetter
from tests.support.gateway import (
    ServedGateway,
    bearing,
    make_key,
    serving,
    serving_a_fleet,
)
from tests.support.metrics import value
from tests.support.waiting import eventually
from tests.support.wire import wire

Line = Mapping[str, Any]


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    """Serve a gateway that asks for no key, with a model and a host."""
    async with serving_a_fleet(mongo_url, amqp_url) as one:
        yield one


@pytest.fixture
async def guarded(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    """Serve a gateway that asks for keys."""
    async with serving(mongo_url, amqp_url, with_keys=True) as one:
        yield one


def lines(logs: list[Any], event: str) -> list[Line]:
    return [one for one in logs if one["event"] == event]


# --- counters ---


async def test_accepted_requests_are_counted_once_by_verb(served: ServedGateway) -> None:
    key = {"Idempotency-Key": "k-1"}
    for _ in range(2):  # the second one is the first one again
        answer = await served.submit({"job_id": "j-1", "operation_type": "TERMINATE"}, **key)
        assert answer.status_code == 202
    batch = [{"job_id": f"b-{n}", "operation_type": "DEPLOY_UNLOAD"} for n in range(3)]
    assert (await served.client.post("/v1/jobs/batch", json=batch)).status_code == 200
    counter = "modelyard_requests_accepted_total"
    assert value(served.registry, counter, verb="TERMINATE") == 1
    assert value(served.registry, counter, verb="DEPLOY_UNLOAD") == 3
    assert value(served.registry, counter, verb="INFER") == 0


async def test_rejected_requests_are_counted_by_verb_and_code(served: ServedGateway) -> None:
    unknown = {"job_id": "j-1", "operation_type": "DEPLOY_CREATE", "model": "nobody"}
    assert (await served.submit(unknown)).status_code == 422
    assert (await served.submit({"job_id": "j-1"})).status_code == 422
    asked = await served.client.post("/v1/models/nobody/infer", json={"input": 1})
    assert asked.status_code == 404
    batch = [unknown, {"job_id": "j-1"}]
    assert (await served.client.post("/v1/jobs/batch", json=batch)).status_code == 200
    dry = await served.client.post("/v1/jobs", params={"dry_run": "true"}, json=unknown)
    assert dry.status_code == 422

    def rejected(verb: str, code: str) -> float:
        return value(served.registry, "modelyard_requests_rejected_total", verb=verb, code=code)

    assert rejected("DEPLOY_CREATE", "unknown_model") == 2
    assert rejected("unknown", "invalid_request") == 2
    assert rejected("INFER", "not_found") == 1


async def test_http_requests_are_counted_by_the_template_of_their_route(
    served: ServedGateway,
) -> None:
    for path in ("/v1/jobs/j-1", "/v1/jobs/j-2", "/v1/nothing", "/nothing/else"):
        assert (await served.client.get(path)).status_code == 404
    assert (await served.client.request("BREW", "/v1/hosts")).status_code == 405
    counter = "modelyard_http_requests_total"

    def counted(method: str, route: str, status: str) -> float:
        return value(served.registry, counter, method=method, route=route, status=status)

    assert counted("GET", "/v1/jobs/{job_id}", "404") == 2
    assert counted("GET", "none", "404") == 2
    assert counted("other", "/v1/hosts", "405") == 1
    seconds = "modelyard_http_request_seconds_count"
    assert value(served.registry, seconds, route="/v1/jobs/{job_id}") == 2


async def test_what_the_connection_refuses_is_counted_and_logged(served: ServedGateway) -> None:
    with capture_logs() as logs:
        async with wire(served.url) as connection:
            await connection.send(b"NOT HTTP\r\n\r\n")
            assert (await connection.rest()).startswith(b"HTTP/1.1 400 ")
    assert value(served.registry, "modelyard_http_refused_total", status="400") == 1
    (line,) = lines(logs, "request.refused")
    assert (line["status"], line["client"]) == (400, "127.0.0.1")


async def test_a_flood_of_connections_is_counted_and_does_not_fill_the_log(
    mongo_url: str, amqp_url: str
) -> None:
    limits = ConnectionLimits(max_open=0)
    async with serving(mongo_url, amqp_url, limits=limits) as served:

        async def gone() -> bool:
            return not served.server.connections.of()

        with capture_logs() as logs:
            for _ in range(3):
                async with wire(served.url) as connection:
                    assert (await connection.rest()).startswith(b"HTTP/1.1 503 ")
                await eventually(gone, what="the refused connection is closed")
    assert value(served.registry, "modelyard_http_refused_total", status="503") == 3
    assert lines(logs, "request.refused") == []


async def test_commits_connections_and_dependencies_are_measured(served: ServedGateway) -> None:
    await served.accepted()
    for target in ("mongodb", "rabbitmq"):
        assert value(served.registry, "modelyard_group_commit_size_count", target=target) == 1
        assert value(served.registry, "modelyard_group_commit_seconds_sum", target=target) > 0
        assert value(served.registry, "modelyard_dependency_up", dependency=target) == 1


async def test_a_lost_broker_shows_as_a_dependency_that_is_down(served: ServedGateway) -> None:
    served.gateway._broker_up.failed("the test says so")
    assert value(served.registry, "modelyard_dependency_up", dependency="rabbitmq") == 0

    async def up_again() -> bool:
        return value(served.registry, "modelyard_dependency_up", dependency="rabbitmq") == 1

    await eventually(up_again, what="the probe")


# --- the access log ---


async def test_each_request_is_one_line_with_its_key_and_no_secret(guarded: ServedGateway) -> None:
    key = await make_key(guarded.store, Scope.JOBS_READ, tenant="shop")
    with capture_logs() as logs:
        answer = await guarded.client.get("/v1/jobs/j-1", headers=bearing(key))
        nobody = await guarded.client.get("/v1/jobs/j-1")
    assert (answer.status_code, nobody.status_code) == (404, 401)
    named, unnamed = lines(logs, "request.answered")
    assert named["method"] == "GET"
    assert named["route"] == "/v1/jobs/{job_id}"
    assert (named["status"], named["code"]) == (404, "not_found")
    assert named["bytes"] == len(answer.content)
    assert named["ms"] > 0
    assert (named["tenant"], named["key_id"]) == ("shop", key.key_id)
    assert (unnamed["status"], unnamed["key_id"]) == (401, None)
    assert key.text not in str(logs)
    assert value(guarded.registry, "modelyard_authentication_failures_total") == 1


async def test_a_query_is_not_logged(served: ServedGateway) -> None:
    with capture_logs() as logs:
        await served.client.get("/v1/jobs", params={"model": "a-name"})
    assert len(lines(logs, "request.answered")) == 1
    assert "a-name" not in str(logs)


# --- changes by operators ---

ADMINISTRATIVE = {
    Scope.CATALOG_WRITE,
    Scope.HOSTS_ADMIN,
    Scope.DEAD_LETTERS,
    Scope.KEYS_ADMIN,
}


async def test_every_change_by_an_operator_is_logged_with_the_key(
    guarded: ServedGateway,
) -> None:
    key = await make_key(guarded.store, *Scope)
    admin = bearing(key)
    hosts = guarded.store.hosts
    online = HostOnline(slots=2, engine=EngineFacts(version="29", api_version="1.44"))
    await hosts.come_online("h-2", "i-2", online)
    assert await hosts.suspect_silent(after_s=-1.0) == ["h-2"]
    assert await hosts.lose_silent(after_s=-1.0) == ["h-2"]
    await hosts.come_online("h-1", "i-1", online)
    await guarded.store.dead_letters.add([_letter("d-1")])
    created = await guarded.client.post(
        "/v1/keys", headers=admin, json={"name": "other", "role": "viewer"}
    )
    assert created.status_code == 201, created.text
    other = created.json()["key"]["key_id"]
    calls = [
        ("POST", "/v1/hosts/h-1/cordon", None, "host.cordon"),
        ("POST", "/v1/hosts/h-1/uncordon", None, "host.uncordon"),
        ("POST", "/v1/hosts/h-1/drain?move=true", None, "host.drain"),
        ("PUT", "/v1/models/m-1", {"image": "a/b:1", "profile": "batch"}, "model.put"),
        ("DELETE", "/v1/models/m-1", None, "model.delete"),
        ("PUT", "/v1/datasets/ds-1", {"path": "/srv/ds-1"}, "dataset.put"),
        ("DELETE", "/v1/datasets/ds-1", None, "dataset.delete"),
        ("POST", "/v1/keys", {"name": "third", "role": "viewer"}, "key.create"),
        ("DELETE", f"/v1/keys/{other}", None, "key.revoke"),
        ("POST", "/v1/dead-letters/d-1/replay", None, "dead_letter.replay"),
        ("DELETE", "/v1/dead-letters/d-1", None, "dead_letter.delete"),
        ("DELETE", "/v1/hosts/h-2", None, "host.delete"),
    ]
    seen: set[str] = set()
    for method, path, body, action in calls:
        with capture_logs() as logs:
            answer = await guarded.client.request(method, path, headers=admin, json=body)
        assert answer.is_success, answer.text
        (line,) = lines(logs, "operator.change")
        assert (line["action"], line["key_id"]) == (action, key.key_id)
        seen.add(lines(logs, "request.answered")[0]["route"] + method)
    assert seen == _administrative_routes(guarded)


async def test_a_change_that_failed_is_not_logged_as_one(served: ServedGateway) -> None:
    with capture_logs() as logs:
        assert (await served.client.post("/v1/hosts/nobody/cordon")).status_code == 404
        assert (await served.client.delete("/v1/models/nobody")).status_code == 404
    assert lines(logs, "operator.change") == []


async def test_a_cancel_is_logged_as_a_change(served: ServedGateway) -> None:
    operation_id = await served.accepted()
    with capture_logs() as logs:
        assert (
            await served.client.post(f"/v1/operations/{operation_id}/cancel")
        ).status_code == 202
    (line,) = lines(logs, "operator.change")
    assert (line["action"], line["operation_id"]) == ("operation.cancel", operation_id)


def _administrative_routes(served: ServedGateway) -> set[str]:
    """Return the routes that change something and need an operator's scope."""
    document = served.server.config.app.openapi()  # type: ignore[union-attr]
    return {
        path + method.upper()
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method != "get"
        for security in operation.get("security", ())
        if ADMINISTRATIVE & set(security.get("apiKey", ()))
    }


def _letter(dead_letter_id: str) -> DeadLetter:
    request = {"job_id": "j-1", "operation_type": "TERMINATE"}
    payload = json.dumps(request).encode()
    return DeadLetter(
        dead_letter_id=dead_letter_id,
        reason="delivery_limit",
        queue=JOBS_QUEUE.name,
        payload=payload,
        payload_bytes=len(payload),
    )
