"""Connections to a gateway that serves: each wait ends, and idle ones give way.

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
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from deploy.local.ports import free_port
from gateway.http import connections
from gateway.http.connections import ConnectionLimits
from gateway.waiters import until_disconnect
from tests.support.gateway import ServedGateway, serving
from tests.support.waiting import eventually
from tests.support.wire import CHUNKED, SIZED, Wire, post, problem_in, wire

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
        assert problem_in(answer) == (408, "invalid_request")
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


TOO_LARGE = b"x" * (16 << 20)
"""More than the buffers of both ends hold, so that a client which sends first waits for us."""
JSON_BODY = b"Content-Type: application/json\r\n"


@pytest.mark.parametrize("closes", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize(
    ("kind", "status"), [(JSON_BODY, 413), (b"Content-Type: text/plain\r\n", 415)]
)
@pytest.mark.parametrize(
    ("length", "body"),
    [
        (b"Content-Length: %d\r\n" % len(TOO_LARGE), TOO_LARGE),
        (b"Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(TOO_LARGE), TOO_LARGE)),
    ],
    ids=["sized", "chunked"],
)
async def test_who_sends_all_of_a_refused_body_before_it_reads_sees_why(
    patient: ServedGateway, closes: bytes, kind: bytes, status: int, length: bytes, body: bytes
) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + kind + length + closes + b"\r\n"
    async with wire(patient.url) as thorough:
        await thorough.send(head)
        for at in range(0, len(body), 1 << 20):
            await thorough.send(body[at : at + (1 << 20)])
        assert (await thorough.answer())[0] == status
        if closes:
            assert await thorough.rest() == b""
        else:
            await thorough.send(GET)
            assert (await thorough.answer())[0] == 200


@pytest.mark.parametrize("closes", [b"", b"Connection: close\r\n"])
async def test_no_more_than_the_bound_is_read_of_a_refused_body(
    patient: ServedGateway, closes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REST_BYTES", 4 << 20)
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + JSON_BODY + closes
    async with wire(patient.url) as endless:
        await endless.send(head + b"Content-Length: 999999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            await endless.send(b"x" * (200 << 20))


async def test_who_neither_sends_the_rest_of_a_refused_body_nor_closes_is_cut_off(
    hasty: ServedGateway,
) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + JSON_BODY
    async with wire(hasty.url) as silent:
        await silent.send(head + b"Content-Length: 9999999\r\n\r\nx")
        assert (await silent.answer())[0] == 413

        async def cut_off() -> bool:
            return not hasty.server.connections.of()

        await hasty.client.aclose()
        await eventually(cut_off, what="a connection that is closed on our side too")


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
        for request in (poll, post(SIZED, b"Prefer: wait=60")):
            for number in range(WAITING):
                one = await stack.enter_async_context(wire(patient.url))
                await one.send(request)
                clients.append((one, number % 2 == 0))
        await patient.has_waiters(2 * WAITING)

        async def listening() -> bool:
            coroutines = [getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks()]
            return coroutines.count(until_disconnect.__name__) == 2 * WAITING

        # A request that begins to listen for its client's end reads on, once.
        await eventually(listening, what="requests that listen for a disconnect")
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


async def test_requests_behind_one_another_are_answered_in_order(patient: ServedGateway) -> None:
    async with wire(patient.url) as other:
        second = post(SIZED)
        third = post(b"Transfer-Encoding: chunked", body=CHUNKED)
        pretty = b'{\n  "job_id": "j",\n\t"operation_type": "TERMINATE"\n}'
        fourth = post(b"Content-Length: %d" % len(pretty), body=pretty)
        await other.send(GET + second + third + fourth + GET)
        statuses = [(await other.answer())[0] for _ in range(5)]
        assert statuses == [200, 202, 202, 202, 200]


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
