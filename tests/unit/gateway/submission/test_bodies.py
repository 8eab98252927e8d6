"""What may stand in a body: everything else is refused before any store hears of it."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio

from gateway.app import create_app
from gateway.service import Gateway
from modelyard.broker import Broker
from modelyard.contract.messages import MAX_BATCH_BYTES, MAX_REQUEST_BYTES
from modelyard.store import Store
from tests.support.gateway import problem

NOWHERE = "127.0.0.1:1"
REQUEST = {
    "job_id": "j-1",
    "model": "m-131",
    "dataset": "ds-550",
    "operation_type": "INFER",
    "container_id": "0123456789ab",
    "input": 1,
    "priority": 0,
    "timeout_s": 1,
    "queue_timeout_s": 1,
    "metadata": {},
}
ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
"""For the tests of one gateway."""
pytestmark = ONE_LOOP
PATHS = ("/v1/jobs", "/inference_router/", "/v1/jobs/batch", "/v1/models/m-131")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """Give the tests a gateway whose stores do not exist: nothing of this may reach them.

    One for all of them: a gateway keeps nothing of what it refuses, and its body process takes
    longer to start than all the rest.
    """
    store = Store(f"mongodb://{NOWHERE}/x", name="test", timeout_s=0.1)
    gateway = Gateway(store, Broker(f"amqp://{NOWHERE}", name="test"))
    transport = httpx2.ASGITransport(app=create_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as made:
        yield made
    await gateway.close()


async def post(client: httpx2.AsyncClient, path: str, body: bytes) -> httpx2.Response:
    method = "PUT" if "models" in path else "POST"
    headers = {"Content-Type": "application/json"}
    return await client.request(method, path, content=body, headers=headers)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nothing",
        b"{} {}",
        b'{"job_id": NaN}',
        b'{"job_id": Infinity}',
        b'{"job_id": 1e999}',
        b'{"job_id": "a", "job_id": "b"}',
        b'{"job_id": "\\ud800"}',
        b'{"job_id": ' + b"9" * 500 + b"}",
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"job_id": "\n"}',
        b"{'job_id': 'a'}",
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_what_is_not_strict_json_is_refused(
    client: httpx2.AsyncClient, path: str, body: bytes
) -> None:
    answer = await post(client, path, body)
    assert answer.status_code == 400
    assert problem(answer)["code"] == "invalid_json"


@pytest.mark.parametrize("name", [name for name in REQUEST if name != "input"])
@pytest.mark.parametrize(
    "value", [{"$ne": ""}, {"$where": "1"}, [{"$gt": ""}], True], ids=json.dumps
)
async def test_an_operator_in_any_field_is_refused_with_a_pointer(
    client: httpx2.AsyncClient, name: str, value: object
) -> None:
    answer = await post(client, "/v1/jobs", json.dumps(REQUEST | {name: value}).encode())
    assert answer.status_code == 422
    document = problem(answer)
    assert document["code"] == "invalid_request"
    assert document["errors"][0]["pointer"].startswith(f"/{name}")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"job_id": ""}, "/job_id"),
        ({"job_id": "../images/prune"}, "/job_id"),
        ({"job_id": "abc?force=1"}, "/job_id"),
        ({"job_id": "a\n"}, "/job_id"),
        ({"job_id": "a\x00"}, "/job_id"),
        ({"job_id": "%2e%2e"}, "/job_id"),
        ({"job_id": "ä"}, "/job_id"),
        ({"job_id": "a" * 129}, "/job_id"),
        ({"job_id": None}, "/job_id"),
        ({"job_id": 7}, "/job_id"),
        ({"container_id": "a" * 129}, "/container_id"),
        ({"operation_type": "deploy_create"}, "/operation_type"),
        ({"priority": "1"}, "/priority"),
        ({"priority": -101}, "/priority"),
        ({"timeout_s": -1}, "/timeout_s"),
        ({"timeout_s": "1"}, "/timeout_s"),
        ({"metadata": {"a": 1}}, "/metadata/a"),
        ({"metadata": {"$a": "b"}}, "/metadata/$a"),
        ({"metadata": {"a/b~c": "d"}}, "/metadata/a~1b~0c"),
        ({"unknown": 1}, "/unknown"),
        ({"$ne": 1}, "/$ne"),
        ({"model": None, "operation_type": "TEMP"}, ""),
    ],
    ids=lambda value: ascii(value)[:40],
)
async def test_a_field_that_is_wrong_is_pointed_at(
    client: httpx2.AsyncClient, change: dict[str, object], pointer: str
) -> None:
    answer = await post(client, "/v1/jobs", json.dumps(REQUEST | change).encode())
    assert answer.status_code == 422
    assert problem(answer)["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("body", [b"1", b"[]", b"null", b'"x"'])
async def test_json_that_is_no_object_is_refused(client: httpx2.AsyncClient, body: bytes) -> None:
    answer = await post(client, "/v1/jobs", body)
    assert answer.status_code == 422
    assert problem(answer)["errors"][0]["pointer"] == ""


async def test_what_was_sent_is_not_repeated(client: httpx2.AsyncClient) -> None:
    answer = await post(client, "/v1/jobs", b'{"job_id": "canary/secret"}')
    assert "canary" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
@pytest.mark.parametrize("path", PATHS[:3])
async def test_another_media_type_is_refused(
    client: httpx2.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    answer = await client.post(path, content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert problem(answer)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("path", "limit"), [("/v1/jobs", MAX_REQUEST_BYTES), ("/v1/jobs/batch", MAX_BATCH_BYTES)]
)
async def test_an_announced_size_over_the_limit_is_refused(
    client: httpx2.AsyncClient, path: str, limit: int
) -> None:
    answer = await post(client, path, b" " * (limit + 1))
    assert answer.status_code == 413
    assert problem(answer)["code"] == "body_too_large"


async def test_a_body_of_unknown_size_is_read_no_further_than_the_limit(
    client: httpx2.AsyncClient,
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 64 << 10
            yield b" " * (64 << 10)

    answer = await client.post(
        "/v1/jobs", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert sent <= MAX_REQUEST_BYTES + (256 << 10)


async def test_a_media_type_may_have_parameters(client: httpx2.AsyncClient) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    answer = await client.post("/v1/jobs", content=b"{}", headers=headers)
    assert answer.status_code == 422


async def test_a_body_that_does_not_come_is_not_waited_for(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.submission.bodies.BODY_S", 0.05)

    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {"Content-Type": "application/json"}
    async with asyncio.timeout(5):
        answer = await client.post("/v1/jobs", content=stalled(), headers=headers)
    assert answer.status_code == 408
    assert problem(answer)["code"] == "invalid_request"
    assert answer.headers["Connection"] == "close"
