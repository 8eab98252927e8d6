"""The app as it describes itself, its error boundary, its settings and its small parts."""

import json
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request

from gateway.__main__ import main
from gateway.app import create_app
from gateway.http.server import listen
from gateway.problems import STATUS_OF
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from gateway.submission.bodies import preferred_wait
from gateway.submission.catalog_cache import MAX_NAMES, REMEMBERED_S, NameCache
from gateway.submission.uploads import BEHIND_S, LEAST_BYTES_PER_S
from modelyard.broker import Broker
from modelyard.contract.errors import ErrorCode
from modelyard.store import Store
from tests.support.gateway import problem


@pytest.fixture
async def app() -> AsyncIterator[FastAPI]:
    store = Store("mongodb://127.0.0.1:1/x", name="test", timeout_s=0.1)
    gateway = Gateway(store, Broker("amqp://127.0.0.1:1", name="test"))
    yield create_app(gateway)
    await gateway.close()


async def get(app: FastAPI, path: str, **headers: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.get(path, headers=headers)


# --- OpenAPI ---


def _references(node: object) -> Iterable[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == "$ref":
                yield str(value)
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


async def test_the_openapi_document_is_whole(app: FastAPI) -> None:
    document = (await get(app, "/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for reference in _references(document):
        assert reference.rpartition("/")[2] in schemas, reference
    assert "HTTPValidationError" not in schemas
    assert set(document["paths"]) == {
        "/inference_router/",
        "/v1/jobs",
        "/v1/jobs/batch",
        "/v1/jobs/{job_id}",
        "/v1/inputs",
        "/v1/inputs/{input_id}",
        "/v1/operations",
        "/v1/operations/{operation_id}",
        "/v1/operations/{operation_id}/explain",
        "/v1/operations/{operation_id}/result",
        "/v1/operations/{operation_id}/cancel",
        "/v1/operations/{operation_id}/retry",
        "/v1/hosts",
        "/v1/hosts/{host_id}",
        "/v1/hosts/{host_id}/cordon",
        "/v1/hosts/{host_id}/uncordon",
        "/v1/hosts/{host_id}/drain",
        "/v1/dead-letters",
        "/v1/dead-letters/{dead_letter_id}",
        "/v1/dead-letters/{dead_letter_id}/replay",
        "/v1/keys",
        "/v1/keys/{key_id}",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/models/{name}/footprints",
        "/v1/models/{name}/infer",
        "/v1/datasets",
        "/v1/datasets/{name}",
        "/livez",
        "/readyz",
    }


async def test_every_body_is_described_with_an_example(app: FastAPI) -> None:
    document: dict[str, Any] = (await get(app, "/openapi.json")).json()
    without_body = {
        "/v1/operations/{operation_id}/cancel",
        "/v1/operations/{operation_id}/retry",
        "/v1/hosts/{host_id}/cordon",
        "/v1/hosts/{host_id}/uncordon",
        "/v1/hosts/{host_id}/drain",
        "/v1/dead-letters/{dead_letter_id}/replay",
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("post", "put") and path not in without_body:
                content = operation["requestBody"]["content"]
                if path == "/v1/inputs":  # of any type
                    assert content["application/octet-stream"]["schema"]
                    continue
                assert content["application/json"]["schema"]
                assert content["application/json"]["examples"]
            assert operation["summary"]
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert "application/problem+json" in response["content"], (operation, status)
    everywhere = {"408", "421", "431", "500", "503"}
    submit = document["paths"]["/v1/jobs"]["post"]
    assert {one["name"] for one in submit["parameters"]} == {
        "dry_run",
        "Idempotency-Key",
        "Prefer",
    }
    assert set(submit["responses"]) == {
        "200", "202", "400", "401", "403", "413", "415", "422", "429", *everywhere,
    }  # fmt: skip
    infer = document["paths"]["/v1/models/{name}/infer"]["post"]
    named = {one["name"] for one in infer["parameters"]}
    assert named == {"name", "dataset", "Idempotency-Key", "Prefer"}
    assert set(infer["responses"]) == {*submit["responses"], "404", "409"}
    retry = document["paths"]["/v1/operations/{operation_id}/retry"]["post"]
    names = {one["name"] for one in retry["parameters"]}
    assert names == {"operation_id", "Idempotency-Key", "Prefer"}
    with_scope = {"401", "403", "429"}
    expected = {"200", "202", "404", "409", "422"} | everywhere | with_scope
    assert set(retry["responses"]) == expected
    drain = document["paths"]["/v1/hosts/{host_id}/drain"]["post"]
    assert {one["name"] for one in drain["parameters"]} == {"host_id", "move", "deadline_s"}
    cancel = document["paths"]["/v1/operations/{operation_id}/cancel"]["post"]
    assert {one["name"] for one in cancel["parameters"]} == {"operation_id", "wait"}
    assert set(cancel["responses"]) == expected


async def test_an_upload_says_how_slow_it_may_be_and_when_it_is_asked_to_come_again(
    app: FastAPI,
) -> None:
    document = (await get(app, "/openapi.json")).json()
    responses = document["paths"]["/v1/inputs"]["post"]["responses"]
    slow = f"{BEHIND_S:g} s behind {LEAST_BYTES_PER_S >> 10} KiB a second"
    assert slow in responses["408"]["description"]
    assert "as many uploads" in responses["503"]["description"]


def test_every_code_that_is_answered_over_http_has_a_status() -> None:
    first, last = list(ErrorCode).index(ErrorCode.INVALID_JSON), ErrorCode.INTERNAL
    http = list(ErrorCode)[first : list(ErrorCode).index(last) + 1]
    assert set(http) <= set(STATUS_OF)


# --- the error boundary ---


async def test_a_defect_is_a_problem_without_its_details(
    app: FastAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the secret cause")

    answer = await get(app, "/broken", **{"X-Request-Id": "r-1"})
    assert answer.status_code == 500
    document = problem(answer)
    assert document["code"] == "internal"
    assert document["request_id"] == "r-1"
    assert "secret" not in answer.text
    assert "the secret cause" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "instance"), [("/nowhere", "/nowhere"), ("/v1/hosts/a%3Fb", "/v1/hosts/a%3Fb")]
)
async def test_no_host_header_and_no_path_confuses_a_problem(
    app: FastAPI, path: str, instance: str
) -> None:
    for host in ("[", "a b", ""):
        answer = await get(app, path, Host=host)
        assert answer.status_code == 421
        assert problem(answer)["instance"] == instance


@pytest.mark.parametrize(
    "query", ["&".join(f"n{n}" for n in range(8_000)), "a&" * 30_000], ids=["many", "one"]
)
async def test_a_query_of_thousands_is_refused_without_holding_up_the_others(
    app: FastAPI, query: str
) -> None:
    began = time.monotonic()
    answer = await get(app, f"/v1/operations?{query}")
    assert time.monotonic() - began < 1
    assert answer.status_code == 422
    assert len(problem(answer)["errors"]) <= 20


# --- small parts ---


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=5", 5),
        ("respond-async, wait=5", 5),
        ("Wait = 5; x=y", 5),
        ('wait="5"', 5),
        ("wait=3600", 60),
        ("wait=0", 0),
        ("wait=-1", None),
        ("wait", None),
        ("wait=soon", None),
        ("return=minimal", None),
        ("", None),
    ],
)
def test_a_preference_is_read_or_ignored(header: str, seconds: float | None) -> None:
    scope = {"type": "http", "headers": [(b"prefer", header.encode())]}
    assert preferred_wait(Request(scope)) == seconds


async def test_a_known_name_is_remembered_for_a_while_and_an_unknown_one_never() -> None:
    now = 0.0
    asked: list[set[str]] = []

    async def lookup(names: Iterable[str]) -> dict[str, object]:
        asked.append(set(names))
        return {"a": 1} if "a" in asked[-1] else {}

    names = NameCache(lookup, clock=lambda: now)
    assert await names.missing({"a", "b"}) == {"b"}
    assert await names.missing({"a", "b"}) == {"b"}
    assert await names.missing({"a"}) == set()
    now = REMEMBERED_S
    assert await names.missing({"a"}) == set()
    names.forget("a")
    assert await names.missing({"a"}) == set()
    assert asked == [{"a", "b"}, {"b"}, {"a"}, {"a"}]


async def test_names_are_remembered_in_bounded_memory() -> None:
    async def lookup(names: Iterable[str]) -> dict[str, object]:
        return dict.fromkeys(names)

    names = NameCache(lookup)
    for number in range(MAX_NAMES + 5):
        await names.missing({str(number)})
    assert not names.has("4")
    assert names.has("5")
    assert names.has(str(MAX_NAMES + 4))


def test_answers_are_not_held_back_by_nagles_algorithm() -> None:
    with listen("127.0.0.1", 0) as listener:
        # asyncio looks for it before it sets TCP_NODELAY on what is accepted.
        assert listener.proto == socket.IPPROTO_TCP


# --- settings ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELYARD_GATEWAY_PORT", "eighty"),
        ("MODELYARD_GATEWAY_PORT", "70000"),
        ("MODELYARD_AMQP_URL", "http://x"),
        ("MODELYARD_AMQP_URL", ""),
        ("MODELYARD_AMQP_URL", "amqp://host:port/"),
        ("MODELYARD_MONGO_URL", "mongodb:canary"),
        ("MODELYARD_LOG_LEVEL", "loud"),
        ("MODELYARD_MAX_REQUEST_BYTES", "1"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"modelyard-gateway: {name} is wrong: expected ")
    assert len(told.splitlines()) == 1
    assert "canary" not in told


def test_a_secret_in_a_url_is_not_shown() -> None:
    settings = GatewaySettings.model_validate({"mongo_url": "mongodb://u:canary@h/x"})
    assert "canary" not in repr(settings)
    assert "canary" not in json.dumps(settings.model_dump(mode="json"))
