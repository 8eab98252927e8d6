"""Load on a gateway over HTTP: batches, single requests, one at a time, a constant rate.

All connections stay open. Single requests at once are sent by `bench.flood`, the rest by aiohttp. A
client that is slower than what it measures would measure itself (httpx, for example, sends a few
hundred requests a second), so the CPU of the load generator is in every table.
"""

from __future__ import annotations

import asyncio
import json
import time
from itertools import cycle, islice, repeat
from typing import TYPE_CHECKING, Any

import aiohttp

from bench.flood import WrongAnswer, flood, prepare
from bench.jobs import BODY, INPUT
from modelyard.process.tasks import TaskGroup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType
    from typing import Self

AT_ONCE = 64
BATCH = 500
_BATCHES_AT_ONCE = 2
_WAIT_S = 30
_ACCEPTED = 202
_DONE = 200
_NOT_FOUND = 404
_OPEN = ("QUEUED", "DISPATCHED", "RUNNING")
_SUCCEEDED = "SUCCEEDED"
_PAUSE_S = 0.02
_TIMEOUT_S = 120.0
_HEADERS = {"Content-Type": "application/json"}


class Gateway:
    """A client of one gateway, or of the bare endpoint beside it."""

    def __init__(self, url: str, api_key: str | None, job_ids: Sequence[str]) -> None:
        self._job_ids = job_ids
        self._headers = _HEADERS | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._url = url
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
        )
        self._bodies = [json.dumps(_request(job_id)).encode() for job_id in job_ids]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.close()

    async def submit_batches(self, operations: int) -> float:
        """Submit so many operations in batches; return the seconds until the last was accepted.

        `operations` is a multiple of `BATCH`. Two batches are sent at once, so that the gateway
        reads one while it writes the other.
        """
        jobs = cycle(self._job_ids)
        batch = json.dumps([_request(next(jobs)) for _ in range(BATCH)]).encode()

        async def submit(_: int) -> None:
            status, answer = await self._call("POST", "/v1/jobs/batch", batch)
            if status != _DONE:
                raise WrongAnswer(f"A batch was answered with {status}: {answer}")
            if wrong := [one for one in answer["results"] if one["status"] != _ACCEPTED]:
                raise WrongAnswer(f"In a batch: {wrong[0]}")

        return await _timed(submit, operations // BATCH, _BATCHES_AT_ONCE)

    async def submit_singles(self, operations: int) -> float:
        """Submit each in a request, 64 at once; return the seconds until the last was accepted."""
        url = f"{self._url}/v1/jobs"
        prepared = cycle([prepare(url, body, self._headers) for body in self._bodies])
        requests = islice(prepared, operations)
        return await flood(url, requests, at_once=AT_ONCE, expected=_ACCEPTED)

    async def one_at_a_time(self, operations: int) -> list[float]:
        """Return the seconds that each operation takes, from its submission to its end."""
        bodies = cycle(self._bodies)
        return [await self._until_end(next(bodies)) for _ in range(operations)]

    async def at_rate(self, per_s: float, seconds: float) -> list[float]:
        """Submit operations at a constant rate; return the seconds that each takes to its end.

        The time counts from the moment at which an operation was due, even if it was sent late.
        """
        bodies = cycle(self._bodies)
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def one(due: float) -> float:
            await asyncio.sleep(max(0.0, due - loop.time()))
            sent = loop.time()
            return await self._until_end(next(bodies)) + (sent - due)

        due = (began + number / per_s for number in range(int(per_s * seconds)))
        return await asyncio.gather(*map(one, due))

    async def _until_end(self, body: bytes) -> float:
        """Submit and wait, and go on waiting by polls if the gateway stops waiting before.

        While MongoDB is slow to answer, the gateway waits for no end, and an accepted operation may
        not be readable for a moment.
        """
        began = time.perf_counter()
        status, answer = await self._call("POST", "/v1/jobs", body, Prefer=f"wait={_WAIT_S}")
        while status == _ACCEPTED or (status == _DONE and answer["state"] in _OPEN):
            path = f"/v1/operations/{answer['operation_id']}?wait={_WAIT_S}"
            status, found = await self._call("GET", path)
            if status == _NOT_FOUND:
                await asyncio.sleep(_PAUSE_S)
                status = _ACCEPTED
            else:
                answer = found
            if time.perf_counter() - began > _TIMEOUT_S:
                raise WrongAnswer(f"An operation has not ended in {_TIMEOUT_S:.0f} s: {answer}")
        if status != _DONE or answer["state"] != _SUCCEEDED:
            raise WrongAnswer(f"An operation was answered with {status}: {answer}")
        return time.perf_counter() - began

    async def _call(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        call = self._http.request(
            method, self._url + path, data=body, headers=self._headers | headers
        )
        async with call as answer:
            return answer.status, await answer.json(content_type=None)


async def model_latencies(url: str, operations: int) -> list[float]:
    """Return the seconds that a model server itself takes, one request after the other."""
    latencies = []
    async with aiohttp.ClientSession() as http:
        for _ in range(operations):
            began = time.perf_counter()
            async with http.post(url, data=BODY, headers=_HEADERS, raise_for_status=True) as answer:
                await answer.read()
            latencies.append(time.perf_counter() - began)
    return latencies


async def model_rate(urls: Sequence[str], operations: int) -> float:
    """Return the inferences per second that the model servers answer, 64 at once."""
    shares = len(urls)
    began = time.monotonic()
    async with TaskGroup() as group:
        for url in urls:
            requests = repeat(prepare(url, BODY.encode(), _HEADERS), operations // shares)
            group.create_task(flood(url, requests, at_once=AT_ONCE // shares, expected=_DONE))
    return operations / (time.monotonic() - began)


async def _timed(call: Callable[[int], Awaitable[None]], times: int, at_once: int) -> float:
    """Call so often, so many at once; return the seconds until the last has returned."""
    turns = iter(range(times))

    async def caller() -> None:
        for turn in turns:
            await call(turn)

    began = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return time.monotonic() - began


def _request(job_id: str) -> dict[str, Any]:
    return {"job_id": job_id, "operation_type": "INFER", "input": INPUT}
