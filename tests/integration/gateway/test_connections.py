"""Connections to a gateway that serves: each wait ends, idle ones give way, HTTP is read strictly.

All of it by raw sockets, as those who mean harm use them.
"""

import asyncio
import dataclasses
import json
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from deploy.local.ports import free_port
from gateway.http import connections
from gateway.http.connections import ConnectionLimits
from tests.support.gateway import ServedGateway, serving
from tests.support.waiting import eventually

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT = ConnectionLimits(max_open=40, header_s=1.0, idle_s=1, write_s=1.0)
LONG = ConnectionLimits(max_open=40, header_s=60.0, idle_s=60, write_s=60.0)


@pytest.fixture
async def hasty(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    """Serve a gateway that waits for nobody."""
    async with serving(mongo_url, amqp_url, limits=SHORT) as served:
        yield served


@pytest.fixture
async def patient(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    """Serve a gateway that waits for long, but for few."""
    async with serving(mongo_url, amqp_url, limits=LONG) as served:
        yield served


class Wire:
    """A connection whose bytes are chosen."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self, within_s: float = 8.0) -> bytes:
        """Return all that comes until the gateway closes."""
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def answer(self) -> tuple[int, bytes]:
        """Return the status and the body of one answer; the connection stays open."""
        async with asyncio.timeout(8):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            return int(head.split()[1]), await self.reader.readexactly(length)


@asynccontextmanager
async def wire(url: str) -> AsyncIterator[Wire]:
    port = httpx2.URL(url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def problem_in(answer: bytes) -> tuple[int, str]:
    """Return status and code of a raw answer, which must be a whole problem that ends it all."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert f"X-Request-Id: {document['request_id']}".encode() in head
    assert document["status"] == int(head.split()[1])
    return document["status"], document["code"]


# --- each wait ends ---


async def test_a_connection_that_says_nothing_is_closed(hasty: ServedGateway) -> None:
    async with wire(hasty.url) as silent:
        assert await silent.rest() == b""


async def test_a_header_that_comes_byte_by_byte_is_cut_off_in_time(hasty: ServedGateway) -> None:
    async with wire(hasty.url) as slow:
        began = time.monotonic()

        async def trickle() -> None:
            for byte in GET[:-4] + b"\r\nX-Pad: " + b"x" * 10_000:
                await slow.send(bytes([byte]))
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        answer = await slow.rest()
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)
        # A byte that it sends after the end is answered by a reset, which may swallow the answer.
        assert not answer or problem_in(answer) == (408, "invalid_request")
        assert time.monotonic() - began < 5


async def test_half_a_second_request_is_cut_off_as_the_first(hasty: ServedGateway) -> None:
    async with wire(hasty.url) as slow:
        await slow.send(GET)
        assert (await slow.answer())[0] == 200
        await slow.send(GET[:20])
        assert problem_in(await slow.rest()) == (408, "invalid_request")


async def test_a_connection_that_asks_nothing_more_is_closed(hasty: ServedGateway) -> None:
    async with wire(hasty.url) as kept:
        await kept.send(GET)
        assert (await kept.answer())[0] == 200
        assert await kept.rest() == b""


async def test_the_rest_of_a_refused_body_is_not_waited_for(hasty: ServedGateway) -> None:
    async with wire(hasty.url) as slow:
        head = b"POST /v1/hosts/h/cordon HTTP/1.1\r\nHost: localhost\r\n"
        await slow.send(head + b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
        assert (await slow.answer())[0] == 404
        assert await slow.rest() == b""


async def test_a_request_that_is_waited_for_outlives_every_limit(hasty: ServedGateway) -> None:
    operation_id = await hasty.accepted()
    began = time.monotonic()
    polled = await hasty.client.get(f"/v1/operations/{operation_id}?wait=3")
    assert polled.status_code == 200
    assert time.monotonic() - began > 2.5


async def test_who_does_not_read_the_answer_is_cut_off(hasty: ServedGateway) -> None:
    operation_id = await hasty.accepted()
    await hasty.finish(operation_id, result_json=json.dumps("x" * (15 << 20)))
    async with AsyncExitStack() as stack:
        for _ in range(3):
            deaf = await stack.enter_async_context(wire(hasty.url))
            path = f"/v1/operations/{operation_id}/result".encode()
            await deaf.send(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await deaf.reader.readexactly(100)
            deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def gone() -> bool:
            return not hasty.server.server_state.tasks and not hasty.server.connections.of()

        await hasty.client.aclose()
        await eventually(gone, what="readers that were cut off", within_s=15)


async def test_who_reads_slowly_but_reads_gets_the_whole_answer(hasty: ServedGateway) -> None:
    operation_id = await hasty.accepted()
    result = json.dumps("x" * (8 << 20))
    await hasty.finish(operation_id, result_json=result)
    async with wire(hasty.url) as slow:
        path = f"/v1/operations/{operation_id}/result".encode()
        head = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await slow.send(b"GET " + path + head)
        answer = b""
        async with asyncio.timeout(30):
            while part := await slow.reader.read(1 << 18):
                answer += part
                await asyncio.sleep(0.1)
        assert answer.endswith(result.encode())


# --- clients that vanish while they wait ---

WAITING = 8
"""Of each kind."""


def _reset(one: Wire) -> None:
    """Close without a word: the other end gets a reset."""
    linger = struct.pack("ii", 1, 0)
    one.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    one.writer.transport.abort()


async def test_requests_that_wait_end_as_soon_as_their_clients_have_gone(
    patient: ServedGateway,
) -> None:
    operation_id = await patient.accepted()
    await patient.client.aclose()
    path = f"/v1/operations/{operation_id}?wait=60"
    poll = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    async with AsyncExitStack() as stack:
        clients = []
        for request in (poll, _post(SIZED, b"Prefer: wait=60")):
            for number in range(WAITING):
                one = await stack.enter_async_context(wire(patient.url))
                await one.send(request)
                clients.append((one, number % 2 == 0))
        await patient.has_waiters(2 * WAITING)
        # While a second request waits for its turn, the gateway does not read on.
        for one, sends_another in clients:
            if sends_another:
                await one.send(GET)

        async def read() -> bool:
            paused = [one for one in patient.server.connections.of() if one.flow.read_paused]
            return len(paused) == WAITING

        await eventually(read, what="connections with a second request")
        for one, _ in clients:
            _reset(one)

        async def gone() -> bool:
            return not patient.gateway.waiters.waiting and not patient.server.server_state.tasks

        await eventually(gone, what="an end of the waiting", within_s=3)


async def test_beyond_the_limit_of_waiting_requests_the_answer_comes_at_once(
    mongo_url: str, amqp_url: str
) -> None:
    async with serving(mongo_url, amqp_url, max_waiting=2) as served:
        path = f"/v1/operations/{await served.accepted()}"
        waiting = [asyncio.create_task(served.client.get(f"{path}?wait=60")) for _ in range(2)]
        await served.has_waiters(2)
        async with asyncio.timeout(10):
            polled = await served.client.get(f"{path}?wait=60")
            body = {"job_id": "j", "operation_type": "TERMINATE"}
            submitted = await served.submit(body, Prefer="wait=60")
            cancelled = await served.client.post(f"{path}/cancel?wait=60")
        assert (polled.status_code, polled.json()["state"]) == (200, "QUEUED")
        assert submitted.status_code == cancelled.status_code == 202
        assert polled.headers["Retry-After"] == submitted.headers["Retry-After"] == "1"
        assert "Preference-Applied" not in submitted.headers
        assert served.gateway.waiters.waiting == 2
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)


# --- too many ---


async def test_300_idle_and_half_open_connections_do_not_keep_a_request_out(
    patient: ServedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncExitStack() as stack:
        for n in range(300):
            idle = await stack.enter_async_context(wire(patient.url))
            await idle.send((b"", GET[:10])[n % 2])
        async with wire(patient.url) as late:
            await late.send(GET)
            assert (await late.answer())[0] == 200
        assert (await patient.client.get("/readyz")).status_code == 200
        assert len(patient.server.connections.of()) <= LONG.max_open + 1

        async def told() -> bool:
            return "connections.too_many" in capsys.readouterr().out

        await eventually(told, what="a line in the log")


async def test_requests_that_are_served_never_give_way_and_a_new_one_is_told_so(
    patient: ServedGateway,
) -> None:
    operation_id = await patient.accepted()
    await patient.client.aclose()
    poll = f"GET /v1/operations/{operation_id}?wait=20 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    async with AsyncExitStack() as stack:
        polling = [await stack.enter_async_context(wire(patient.url)) for _ in range(LONG.max_open)]
        for one in polling:
            await one.send(poll)
        await patient.has_waiters(LONG.max_open)
        async with wire(patient.url) as late:
            answer = await late.rest()
        assert problem_in(answer) == (503, "unavailable")
        assert b"Retry-After: 1" in answer
        await patient.finish(operation_id)
        for one in polling:
            assert (await one.answer())[0] == 200


async def test_clients_that_read_an_answer_never_give_way_but_those_that_stopped_do(
    mongo_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(LONG, max_open=4)
    async with serving(mongo_url, amqp_url, limits=few) as served, AsyncExitStack() as stack:
        operation_id = await served.accepted()
        result = json.dumps("x" * (8 << 20))
        await served.finish(operation_id, result_json=result)
        await served.client.aclose()
        path = f"/v1/operations/{operation_id}/result"
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        readers = [await stack.enter_async_context(wire(served.url)) for _ in range(few.max_open)]
        for one in readers:
            await one.send(head.encode())
            await one.reader.readexactly(100)

        async def written() -> bool:
            return all(one.flow.write_paused for one in served.server.connections.of())

        await eventually(written, what="answers that wait for their readers")
        async with wire(served.url) as late:
            assert problem_in(await late.rest()) == (503, "unavailable")
        reading = readers.pop()
        assert (await reading.rest(within_s=60)).endswith(result.encode())

        again = await stack.enter_async_context(wire(served.url))
        await again.send(head.encode())
        monkeypatch.setattr(connections, "STALLED_S", 0.0)
        await eventually(written, what="answers that wait for their readers")
        async with wire(served.url) as late:
            await late.send(GET)
            assert (await late.answer())[0] == 200


async def test_the_address_with_the_most_idle_connections_gives_way_first(
    patient: ServedGateway,
) -> None:
    port = httpx2.URL(patient.url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    other = Wire(reader, writer)
    await other.send(GET)
    assert (await other.answer())[0] == 200
    async with AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(wire(patient.url))
        await other.send(GET)
        assert (await other.answer())[0] == 200
    writer.close()


# --- strictness ---

REQUEST = b'{"job_id":"j","operation_type":"TERMINATE"}'


def _post(*lines: bytes, body: bytes = REQUEST, version: bytes = b"1.1") -> bytes:
    given = (b"POST /v1/jobs HTTP/" + version, b"Host: localhost")
    return b"\r\n".join([*given, b"Content-Type: application/json", *lines, b"", body])


SIZED = b"Content-Length: %d" % len(REQUEST)
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(REQUEST), REQUEST)


@pytest.mark.parametrize(
    "request_",
    [
        _post(SIZED, b"Transfer-Encoding: chunked", body=CHUNKED),
        _post(b"Transfer-Encoding: chunked", SIZED, body=CHUNKED),
        _post(b"Transfer-Encoding: chunked", b"Content-Length: 0", body=CHUNKED),
        _post(b"Transfer-Encoding: gzip, chunked", body=CHUNKED),
        _post(b"Transfer-Encoding: identity", body=CHUNKED),
        _post(b"Transfer-Encoding : chunked", body=CHUNKED),
        _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED),
        _post(b"Transfer-Encoding: chunked", body=CHUNKED, version=b"1.0"),
        _post(b"Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"),
        _post(SIZED, b"Content-Length: 3"),
        _post(SIZED, SIZED),
        _post(SIZED + b", %d" % len(REQUEST)),
        _post(b"Content-Length: +43"),
        _post(b"Content-Length: -1"),
        _post(b"Content-Length: 0x2b"),
        _post(b"Content-Length: "),
        _post(b"Content-Length:\r\n 43"),
        _post(SIZED, b"X-Folded: a\r\n b"),
        _post(SIZED, b"X-Folded: a\r\n\tb"),
        _post(SIZED, b"X-Bare: a\nX-Other: b"),
        _post(SIZED, b"X-Nul: a\0b"),
        _post(SIZED, b"No colon"),
        _post(SIZED, b"Host: evil.example"),
        _post(SIZED, version=b"2.0"),
        _post(SIZED, version=b"1.2"),
        b"POST  /v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: localhost\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_two_servers_may_read_in_two_ways_is_400_and_the_end(
    patient: ServedGateway, request_: bytes
) -> None:
    async with wire(patient.url) as other:
        await other.send(request_)
        assert problem_in(await other.rest()) == (400, "invalid_request")
    assert not (await patient.client.get("/v1/operations")).json()["operations"]


@pytest.mark.parametrize("pad", [b"X-Pad: " + b"x" * 20_000, b"\r\n".join([b"X: y"] * 5_000)])
async def test_a_header_that_is_too_large_is_431(patient: ServedGateway, pad: bytes) -> None:
    async with wire(patient.url) as other:
        await other.send(_post(SIZED, pad))
        assert problem_in(await other.rest()) == (431, "invalid_request")


async def test_an_error_in_the_middle_of_a_body_ends_only_its_own_connection(
    patient: ServedGateway,
) -> None:
    async with wire(patient.url) as other:
        await other.send(_post(b"Transfer-Encoding: chunked", body=b"5\r\n{}   \r\n"))
        await other.send(b"zz\r\n")
        assert problem_in(await other.rest()) == (400, "invalid_request")
    assert (await patient.client.get("/livez")).status_code == 200


async def test_requests_behind_one_another_are_answered_in_order(patient: ServedGateway) -> None:
    async with wire(patient.url) as other:
        second = _post(SIZED)
        third = _post(b"Transfer-Encoding: chunked", body=CHUNKED)
        pretty = b'{\n  "job_id": "j",\n\t"operation_type": "TERMINATE"\n}'
        fourth = _post(b"Content-Length: %d" % len(pretty), body=pretty)
        await other.send(GET + second + third + fourth + GET)
        statuses = [(await other.answer())[0] for _ in range(5)]
        assert statuses == [200, 202, 202, 202, 200]


async def test_what_comes_behind_a_refusal_is_not_read(patient: ServedGateway) -> None:
    async with wire(patient.url) as other:
        await other.send(_post(SIZED, SIZED) + _post(SIZED))
        assert (await other.rest()).count(b"HTTP/1.1 4") == 1
    assert not (await patient.client.get("/v1/operations")).json()["operations"]


# --- file descriptors ---


async def test_running_out_of_file_descriptors_is_told_and_outlived(
    mongo_url: str, amqp_url: str
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables = {
        "MODELYARD_AMQP_URL": amqp_url,
        "MODELYARD_MONGO_URL": mongo_url,
        "MODELYARD_GATEWAY_PORT": str(port),
        "MODELYARD_LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", env={**os.environ, **variables},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        await eventually(lambda: _ready(url), what="a gateway")
        _let_it_open(process.pid, more=4)
        async with AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(wire(url))
            async with asyncio.timeout(10):
                while b"accept.failed" not in await process.stderr.readline():
                    pass
        await eventually(lambda: _ready(url), what="a gateway that accepts again")
        async with asyncio.timeout(10):
            while b"accept.works_again" not in await process.stderr.readline():
                pass
    finally:
        process.kill()
        await process.wait()


def _let_it_open(pid: int, *, more: int) -> None:
    """Let a process open only a few files more than it has open."""
    there = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (there + more, hard))


async def _ready(url: str) -> bool:
    try:
        async with httpx2.AsyncClient(base_url=url, timeout=2.0) as client:
            return (await client.get("/livez")).status_code == 200
    except httpx2.TransportError:
        return False
