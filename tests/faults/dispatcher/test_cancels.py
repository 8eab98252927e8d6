"""Cancelling at any moment, while workers freeze and die."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from modelyard.contract.ids import operation_id_for_key
from tests.faults.harness.checked_fleet import CheckedFleet, Json, lasts
from tests.faults.harness.load import Request
from tests.faults.table import CANCELS

GO_ON = {"DEPLOY_UNLOAD", "TERMINATE"}
LIVES = 3
INFERS = 3
TEMPS = 10
PULLS = 2
QUEUED = 7
OPERATIONS = LIVES * (4 + INFERS) + TEMPS + PULLS + QUEUED
FROZEN_S = 12.0
STORM_S = 10.0
LONG_S = 8.0
"""For a model's answer: a cancel that has no effect shows."""
TOO_LATE_S = 1.5
"""An operation that ends by itself so soon after it was cancelled had its end on the way."""
pytestmark = [pytest.mark.faults, pytest.mark.fault(CANCELS)]


@pytest.fixture
async def silent_registry() -> AsyncIterator[str]:
    """Serve a registry that takes connections and never answers: pulls go on and on."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@dataclass
class Storm:
    """Submits operations and cancels half of them, each at a moment of its own."""

    fleet: CheckedFleet
    choice: random.Random
    ids: list[str] = field(default_factory=list)
    asked_at: dict[str, float] = field(default_factory=dict)
    """By operation, when its cancel was answered with 202 or 200."""
    thawed_at: float = 0.0
    _cancelling: list[asyncio.Task[None]] = field(default_factory=list)

    async def submit(self, request: Request, *, cancel: bool, within_s: float = STORM_S) -> str:
        operation_id = await self.fleet.doors.submit(request)
        self.ids.append(operation_id)
        if cancel:
            delay_s = self.choice.uniform(0, within_s)
            self._cancelling.append(asyncio.create_task(self._cancel(operation_id, delay_s)))
        return operation_id

    async def over(self) -> None:
        await asyncio.gather(*self._cancelling)

    async def _cancel(self, operation_id: str, delay_s: float) -> None:
        await lasts(delay_s)
        answer = await self.fleet.http.post(f"/v1/operations/{operation_id}/cancel")
        assert answer.status_code in (200, 202, 409), answer.text
        if answer.is_success:
            self.asked_at[operation_id] = time.time()


async def test_cancels_at_any_moment_hold_while_a_worker_dies_and_another_is_frozen(
    fleet: CheckedFleet, silent_registry: str
) -> None:
    await fleet.put_probe("slow", max_concurrency=2, env={"PROBE_LOAD_SECONDS": "3"})
    await fleet.put_probe("pulled", image=f"{silent_registry}/team/model:1")
    await fleet.put_probe("on-h2", host_labels={"name": "h2"})
    storm = Storm(fleet, random.Random(40))
    requests = list(_requests())
    cancelled = {one.key for one in storm.choice.sample(requests, len(requests) // 2)}
    for request in requests:
        # Nothing else would end a pull that goes on and on.
        ends_itself = request.body.get("model") != "pulled"
        await storm.submit(request, cancel=not ends_itself or request.key in cancelled)
    await fleet.running_any()
    in_its_queue = []
    with fleet.frozen("worker-h2"):
        for number in range(QUEUED):
            request = _request("TEMP", model="on-h2", sleep=LONG_S)
            behind = await storm.submit(request, cancel=number % 2 == 0, within_s=FROZEN_S)
            in_its_queue += [behind] if number % 2 == 0 else []
        await fleet.restart("worker-h1")
        await lasts(FROZEN_S)
    storm.thawed_at = time.time()
    await storm.over()
    await fleet.holds()
    assert len(storm.ids) == OPERATIONS
    await _judge(storm)
    assert await fleet.states(in_its_queue) == {"CANCELLED": len(in_its_queue)}
    await fleet.clear()
    for host_id, engine in fleet.engines.items():
        assert not await engine.labelled(host_id)


async def _judge(storm: Storm) -> None:
    """Look that what was cancelled is CANCELLED, unless it had its end on the way."""
    wanted = {"_id": {"$in": storm.ids}}
    found = {one["_id"]: one for one in await storm.fleet.database.all("operations", wanted)}
    wrong = []
    for operation_id, asked_at in storm.asked_at.items():
        one = found[operation_id]
        # What ended while its worker was frozen was reported when it thawed.
        counts_from = max(asked_at, storm.thawed_at if one.get("host_id") == "h2" else 0)
        on_the_way = one["finished_at"].timestamp() - counts_from < TOO_LATE_S
        if one["state"] != "CANCELLED" and not (one["verb"] in GO_ON or on_the_way):
            wrong.append(one)
    assert not wrong, wrong
    not_asked = set(storm.ids) - storm.asked_at.keys()
    assert not [one for one in not_asked if found[one]["state"] == "CANCELLED"]
    ends = [found[one]["state"] for one in storm.asked_at]
    assert ends.count("CANCELLED") >= len(ends) / 2, ends


def _requests() -> Iterator[Request]:
    for _ in range(LIVES):
        job_id = f"job-{uuid.uuid4().hex[:10]}"
        yield _request("DEPLOY_CREATE", job_id, model="slow")
        yield _request("DEPLOY_LOAD", job_id)
        for _ in range(INFERS):
            yield _request("INFER", job_id, sleep=LONG_S)
        yield _request("DEPLOY_UNLOAD", job_id)
        yield _request("TERMINATE", job_id)
    for _ in range(TEMPS):
        yield _request("TEMP", model="slow", sleep=LONG_S)
    for _ in range(PULLS):
        yield _request("TEMP", model="pulled", sleep=0)


def _request(verb: str, job_id: str = "", *, sleep: float | None = None, **more: str) -> Request:
    key = uuid.uuid4().hex
    body: Json = {"job_id": job_id or f"job-{key[:10]}", "operation_type": verb, **more}
    if sleep is not None:
        body["input"] = {"sleep": sleep, "tag": operation_id_for_key(key)}
    return Request(key, body)
