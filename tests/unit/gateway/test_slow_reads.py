"""Reads that take long for what a client asks take nothing from other clients."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway import reading
from gateway.app import create_app
from gateway.service import Gateway
from modelyard.broker import Broker
from modelyard.contract.errors import SlowQueryError
from modelyard.store import Store
from tests.support.gateway import problem

ID = "00000000-0000-7000-8000-000000000001"
LISTS = {
    "/v1/operations?model=m": ("operation_queries", "page"),
    "/v1/jobs?host_id=h": ("jobs", "page"),
    "/v1/dead-letters?reason=r": ("dead_letters", "page"),
    "/v1/hosts": ("hosts", "page"),
    "/v1/models": ("models", "page"),
    "/v1/datasets": ("datasets", "page"),
}
OTHERS = {
    "/v1/keys": ("api_keys", "all"),
    f"/v1/operations/{ID}/explain": ("operation_queries", "get"),
}


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


@pytest.mark.parametrize(("path", "method"), LISTS.items())
async def test_a_list_that_mongodb_has_ended_is_refused_with_what_makes_it_faster(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str, method: tuple[str, str]
) -> None:
    async def ended(*_: object, **__: object) -> None:
        raise SlowQueryError("Give `job_id` too.")

    monkeypatch.setattr(getattr(gateway.store, method[0]), method[1], ended)
    answer = await get(gateway, path)
    found = problem(answer)
    assert (answer.status_code, found["code"]) == (422, "query_too_slow")
    assert found["detail"] == "Give `job_id` too."
    assert "Retry-After" not in answer.headers
    assert not gateway._store_up.down


@pytest.mark.parametrize(("path", "method"), (LISTS | OTHERS).items())
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
