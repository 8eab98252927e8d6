"""The client of a gateway, against a server in this process."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.flood import WrongAnswer
from bench.load import BATCH, Gateway

Answer = tuple[int, dict[str, Any]]


class ScriptedGateway:
    """Answers as the test says, and keeps what it was sent."""

    def __init__(self) -> None:
        self.submitted: Callable[[], Answer] = lambda: (202, {"operation_id": "op-1"})
        self.polled: list[Answer] = []
        self.batch_status = 202
        self.received: list[dict[str, Any]] = []
        self.keys: set[str] = set()

    def app(self) -> web.Application:
        """Return the routes that the client uses."""
        app = web.Application()
        app.router.add_post("/v1/jobs", self._submit)
        app.router.add_post("/v1/jobs/batch", self._submit_batch)
        app.router.add_get("/v1/operations/op-1", self._poll)
        return app

    async def _submit(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers["Authorization"])
        self.received.append(await request.json())
        status, body = self.submitted()
        return web.json_response(body, status=status)

    async def _submit_batch(self, request: web.Request) -> web.Response:
        requests = json.loads(await request.read())
        self.received += requests
        return web.json_response({"results": [{"status": self.batch_status}] * len(requests)})

    async def _poll(self, request: web.Request) -> web.Response:
        assert request.query["wait"] == "30"
        status, body = self.polled.pop(0)
        return web.json_response(body, status=status)


@pytest.fixture
def script() -> ScriptedGateway:
    """Give the test the server's behaviour."""
    return ScriptedGateway()


@pytest.fixture
async def gateway(script: ScriptedGateway) -> AsyncIterator[Gateway]:
    """Give the test a client of it, with two jobs."""
    async with TestServer(script.app()) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with Gateway(url, "a-key", ["job-a", "job-b"]) as client:
            yield client


async def test_single_requests_go_to_the_jobs_in_turn_with_the_key(
    gateway: Gateway, script: ScriptedGateway
) -> None:
    await gateway.submit_singles(300)

    jobs = [one["job_id"] for one in script.received]
    assert (jobs.count("job-a"), jobs.count("job-b")) == (150, 150)
    assert script.keys == {"Bearer a-key"}
    assert all(one["operation_type"] == "INFER" and one["input"] for one in script.received)


async def test_batches_have_a_fixed_size(gateway: Gateway, script: ScriptedGateway) -> None:
    await gateway.submit_batches(3 * BATCH)

    assert len(script.received) == 3 * BATCH


async def test_a_request_refused_within_a_batch_ends_the_run(
    gateway: Gateway, script: ScriptedGateway
) -> None:
    script.batch_status = 422

    with pytest.raises(WrongAnswer, match="In a batch"):
        await gateway.submit_batches(BATCH)


async def test_waiting_goes_on_until_the_operation_has_ended(
    gateway: Gateway, script: ScriptedGateway
) -> None:
    script.polled = [
        (404, {"code": "not_found"}),
        (200, {"operation_id": "op-1", "state": "RUNNING"}),
        (200, {"operation_id": "op-1", "state": "SUCCEEDED"}),
    ]

    [latency] = await gateway.one_at_a_time(1)

    assert latency > 0
    assert script.polled == []


async def test_an_operation_that_fails_ends_the_run(
    gateway: Gateway, script: ScriptedGateway
) -> None:
    script.submitted = lambda: (200, {"operation_id": "op-1", "state": "FAILED"})

    with pytest.raises(WrongAnswer, match="FAILED"):
        await gateway.one_at_a_time(1)


async def test_a_constant_rate_submits_what_is_due(
    gateway: Gateway, script: ScriptedGateway
) -> None:
    script.submitted = lambda: (200, {"operation_id": "op-1", "state": "SUCCEEDED"})

    latencies = await gateway.at_rate(per_s=1_000, seconds=0.05)

    assert len(latencies) == len(script.received) == 50
