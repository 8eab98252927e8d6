"""Clients that mean ill or are broken: they cost memory and time within bounds, and nobody else."""

import asyncio
import json
import socket
import struct
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.faults.harness.checked_fleet import CheckedFleet
from tests.faults.harness.raw_channel import open_raw_channel
from tests.faults.table import CLIENTS
from tests.support.large_bodies import FILLS, MIB, infer, many_names

VANISHING = 600
IDLE = 300
IN_A_BATCH = 8
MOST_MIB = 640
"""What a gateway or a dispatcher may come to, with its process that reads bodies apart."""
SERVED_WITHIN_S = 2.0
"""For nine of ten readings of a host, on a machine that has two processors for everything."""

pytestmark = [pytest.mark.faults, pytest.mark.fault(CLIENTS)]


@dataclass
class Served:
    """How long others waited for their answers meanwhile."""

    seconds: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def quantile(self, part: float) -> float:
        return sorted(self.seconds)[int(part * (len(self.seconds) - 1))]


@asynccontextmanager
async def somebody_else(fleet: CheckedFleet) -> AsyncIterator[Served]:
    """Let a well-behaved client read a host again and again."""
    served = Served()

    async def ask() -> None:
        while True:
            began = time.monotonic()
            try:
                answer = await fleet.http.get("/v1/hosts/h1", timeout=30)
                if answer.status_code != httpx2.codes.OK:
                    served.refused.append(answer.text)
            except httpx2.HTTPError as error:
                served.refused.append(repr(error))
            served.seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask())
    try:
        yield served
    finally:
        asking.cancel()
        await asyncio.wait([asking])


def vanish(fleet: CheckedFleet, operation_id: str) -> None:
    """Ask for an answer that takes a minute, or for a batch, and be gone without a word."""
    body = json.dumps({"job_id": "gone", "operation_type": "TERMINATE"}).encode()
    requests = (
        f"GET /v1/operations/{operation_id}?wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
        b"POST /v1/jobs/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 8000000\r\n\r\n" + body,
    )
    for request in requests:
        with socket.create_connection(("127.0.0.1", fleet.processes.port), timeout=10) as one:
            one.sendall(request)
            # Closing sends a reset: the other end learns nothing more.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def idle_connections(fleet: CheckedFleet) -> Iterator[None]:
    """Hold connections that say nothing, or half a header."""
    with ExitStack() as held:
        for number in range(IDLE):
            one = held.enter_context(
                socket.create_connection(("127.0.0.1", fleet.processes.port), timeout=10)
            )
            if number % 2:
                one.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
        yield


def large_bodies() -> list[tuple[str, bytes]]:
    """Return bodies at every limit; none of them holds a request that could be accepted."""
    wrong = b',"priority":999}'
    inputs = [FILLS[name](MIB - 256) for name in ("numbers", "pixels", "rows", "words", "quotes")]
    single = [infer("j", one)[:-1] + wrong for one in inputs for _ in range(2)]
    batches = [
        b"[" + b",".join([infer("j", FILLS[name](MIB - 4_096))[:-1] + wrong] * IN_A_BATCH) + b"]"
        for name in ("numbers", "floats", "pixels", "text")
    ]
    batches += [many_names(600_000), b"[" * 100_000, b"[" + b"5," * 4_000_000 + b"5]"]
    return [("/v1/jobs", one) for one in single] + [("/v1/jobs/batch", one) for one in batches]


def peak_mib(fleet: CheckedFleet, name: str) -> int:
    """Return the most memory that a process has had at once."""
    process = fleet.service(name).daemon.process
    assert process is not None
    words = (Path("/proc") / str(process.pid) / "status").read_text().partition("VmHWM:")[2]
    return int(words.split()[0]) // 1_024


async def test_clients_that_vanish_idle_and_send_too_much_cost_nobody_else_anything(
    fleet: CheckedFleet,
) -> None:
    load = await fleet.load()
    waited_for = await fleet.submit("DEPLOY_CREATE", fleet.job_id(), model="load-http")
    bodies = large_bodies()
    async with somebody_else(fleet) as served:
        working = asyncio.create_task(load.run())
        with idle_connections(fleet):
            for _ in range(VANISHING):
                await asyncio.to_thread(vanish, fleet, waited_for)
            statuses = await asyncio.gather(*(post(fleet, path, body) for path, body in bodies))
            await publish(fleet, [body for _, body in bodies])
            ids = await working
    assert set(statuses) <= {200, 400, 413, 422, 503}, statuses  # 200: each refused for itself
    assert statuses.count(503) < len(statuses) / 2
    assert served.refused == []
    assert served.quantile(0.9) < SERVED_WITHIN_S, (served.quantile(0.5), max(served.seconds))
    peaks = {name: peak_mib(fleet, name) for name in ("gateway", *fleet.processes.dispatchers)}
    assert max(peaks.values()) < MOST_MIB, peaks
    await fleet.succeeded(ids)
    assert (await fleet.ended(waited_for))["state"] == "SUCCEEDED"
    await fleet.holds()


async def post(fleet: CheckedFleet, path: str, body: bytes) -> int:
    """Send a body once; each has a connection of its own."""
    headers = {"Content-Type": "application/json"}
    async with httpx2.AsyncClient(
        base_url=fleet.processes.url, timeout=90, trust_env=False
    ) as http:
        answer = await http.post(path, content=body, headers=headers)
    assert len(answer.content) < 512 * 1_024, "an answer that is larger than what it is about"
    return answer.status_code


async def publish(fleet: CheckedFleet, bodies: list[bytes]) -> None:
    """Send the same by AMQP; what is wrong in them becomes operations that are REJECTED."""
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        for body in bodies:
            key = uuid.uuid4().hex
            for one in (key, *(f"{key}/{index}" for index in range(IN_A_BATCH))):
                fleet.doors.ledger.wonder(one)
            await raw.publish(body, message_id=key)
