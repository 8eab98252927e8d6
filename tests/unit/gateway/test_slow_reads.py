"""Reads that take long for what a client asks take nothing from other clients."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway import reading
from gateway.app import create_app
from gateway.explaining import explanation_of, explanation_of_request
from gateway.service import Gateway
from modelyard.broker import Broker
from modelyard.contract.errors import SlowQueryError
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import Verb
from modelyard.store import Store
from modelyard.store.records import NewOperation
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore
from tests.support.gateway import problem

ID = "00000000-0000-7000-8000-000000000001"
FILTERED = {
    "/v1/operations?model=m": ("operation_queries", "page"),
    "/v1/jobs?host_id=h": ("jobs", "page"),
    "/v1/dead-letters?reason=r": ("dead_letters", "page"),
}
UNFILTERED = {
    "/v1/operations": ("operation_queries", "page"),
    "/v1/jobs?limit=1": ("jobs", "page"),
    "/v1/dead-letters": ("dead_letters", "page"),
    "/v1/hosts": ("hosts", "page"),
    "/v1/models": ("models", "page"),
    "/v1/datasets": ("datasets", "page"),
}
OTHERS = {
    "/v1/keys": ("api_keys", "all"),
    f"/v1/operations/{ID}/explain": ("operation_queries", "get"),
}


async def ended(*_: object, **__: object) -> None:
    raise SlowQueryError("Give `job_id` too.")


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    store = Store("mongodb://127.0.0.1:1/x", name="test", timeout_s=5.0)
    made = Gateway(store, Broker("amqp://127.0.0.1:1", name="test"))
    yield made
    await made.close()


async def get(gateway: Gateway, path: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=create_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.get(path)


@pytest.mark.parametrize(("path", "method"), FILTERED.items())
async def test_a_list_that_mongodb_has_ended_is_refused_with_what_makes_it_faster(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str, method: tuple[str, str]
) -> None:
    monkeypatch.setattr(getattr(gateway.store, method[0]), method[1], ended)
    answer = await get(gateway, path)
    found = problem(answer)
    assert (answer.status_code, found["code"]) == (422, "query_too_slow")
    assert found["detail"] == "Give `job_id` too."
    assert "Retry-After" not in answer.headers
    assert not gateway._store_up.down


@pytest.mark.parametrize(("path", "method"), UNFILTERED.items())
async def test_a_list_of_which_a_client_can_ask_no_less_is_not_refused_as_too_slow(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str, method: tuple[str, str]
) -> None:
    monkeypatch.setattr(getattr(gateway.store, method[0]), method[1], ended)
    answer = await get(gateway, path)
    assert (answer.status_code, problem(answer)["code"]) == (503, "unavailable")
    assert "took too long" in problem(answer)["detail"]
    assert "Retry-After" in answer.headers
    assert not gateway._store_up.down


async def test_only_lists_with_filters_are_described_as_refused_if_they_are_slow(
    gateway: Gateway,
) -> None:
    paths = create_app(gateway).openapi()["paths"]
    refused = {
        path
        for path, methods in paths.items()
        for method in methods.values()
        if "query_too_slow" in str(method.get("responses"))
    }
    assert refused == {path.partition("?")[0] for path in FILTERED}


async def test_an_explanation_does_without_what_mongodb_does_not_find_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore(MemoryDatabase(lambda: 0.0))
    request = JobRequest(job_id="j", operation_type=Verb.INFER, input=1)
    new = NewOperation.of(ID, request, "http")
    await store.jobs.ensure(["j"])
    await store.operations.take_in([(new, 1)])
    monkeypatch.setattr(store.operation_queries, "page", ended)
    assert await explanation_of(store, ID) is not None
    assert await explanation_of_request(store, new) is not None


@pytest.mark.parametrize(("path", "method"), (FILTERED | UNFILTERED | OTHERS).items())
async def test_a_read_that_takes_long_does_not_mark_mongodb_as_down(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str, method: tuple[str, str]
) -> None:
    async def slow(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(reading, "READ_S", 0.05)
    monkeypatch.setattr(getattr(gateway.store, method[0]), method[1], slow)
    answer = await get(gateway, path)
    assert answer.status_code == 503
    assert "took too long" in problem(answer)["detail"]
    assert not gateway._store_up.down
