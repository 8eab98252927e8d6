"""Exchanges with hostile servers over real sockets: they end, and cost everybody else little."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from modelyard.contract.catalog.entries import Hook
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES, PIECE_BYTES, StoredResult
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES
from tests.support.waiting import eventually
from worker.engine.protocol import Address
from worker.model_server.client import ModelServer, NoAnswerError, Question, RefusedByServerError
from worker.model_server.http_exchange import (
    TRICKLE_PAUSE_S,
    TRICKLE_READS_PER_S,
    BoundedTransport,
    Pace,
)
from worker.model_server.results import Reply, ResultReader
from worker.model_server.templates import Placeholders

AT_ONCE = 100
PIECE = b"\x89PNG" * (64 << 10)
FLOOD_CPU_S = 0.05
LARGE_CPU_S = 0.5
"""For the 64 MiB of a result that is too large, and for the server that sends them."""
"""Seconds of processor that one hostile exchange may cost, servers in this process included."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[Address]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0, backlog=2 * AT_ONCE) as server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])


def flood(first: bytes, endless: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(first)
        while True:
            writer.write(endless)
            await writer.drain()
            await asyncio.sleep(0)

    return serve


async def ask(server: ModelServer, address: Address, input_json: str | None = None) -> bytes:
    hook = Hook(path="/infer", body="{input}" if input_json else None)
    fillings = Placeholders("m", "", input_json)
    reply = await server.ask(address, Question(hook, fillings, ErrorCode.INFERENCE_FAILED))
    return bytes(reply.body)


FLOODS = {
    "interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 1_000),
    "body": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 2_000),
    "bomb": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        gzip.compress(bytes(10 << 20)) * 4,
    ),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_ends_by_itself_and_costs_little(
    model_server: ModelServer, kind: str
) -> None:
    async with asyncio.timeout(20), served(flood(*FLOODS[kind])) as address:
        began = time.process_time()
        with pytest.raises(ModelyardError):
            await _result_of(model_server, address)
        most = LARGE_CPU_S if kind == "body" else FLOOD_CPU_S
        assert time.process_time() - began < most


async def _result_of(server: ModelServer, address: Address) -> None:
    hook, fillings = Hook(path="/infer"), Placeholders("m", "", None)
    reply = await server.ask(address, Question(hook, fillings, ErrorCode.INFERENCE_FAILED))
    await ResultReader().read_reply(reply)


async def test_a_server_that_trickles_is_read_less_often(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep
    pauses: list[float] = []

    async def noted(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr("worker.model_server.http_exchange.asyncio.sleep", noted)
    body = b"[" + b"1," * 400 + b"1]"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for at in range(len(body)):
            writer.write(body[at : at + 1])
            await writer.drain()
            await sleep(0)

    async with asyncio.timeout(20), served(serve) as address:
        assert await ask(model_server, address) == body
    assert pauses
    assert set(pauses) == {TRICKLE_PAUSE_S}


def test_the_pause_grows_with_the_exchanges_that_trickle() -> None:
    pace = Pace()
    assert pace.pause_s == TRICKLE_PAUSE_S
    pace.trickling = 1_000
    assert pace.trickling / pace.pause_s == TRICKLE_READS_PER_S


async def test_an_exchange_that_trickled_is_not_counted_when_it_is_over(
    transport: BoundedTransport, model_server: ModelServer
) -> None:
    async with served(flood(b"", b"H")) as address:
        with pytest.raises(NoAnswerError):
            await ask(model_server, address)
    async with served(flood(b"HTTP/1.1 200 OK\r\n\r\n", b"x")) as address:
        asking = asyncio.create_task(ask(model_server, address))

        async def it_trickles() -> bool:
            return transport.pace.trickling > 0

        await eventually(it_trickles)
        asking.cancel()
        await asyncio.wait((asking,))
    assert transport.pace.trickling == 0


async def test_an_answer_before_the_request_was_read_is_taken(model_server: ModelServer) -> None:
    done = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
        await writer.drain()
        await done.wait()

    async with asyncio.timeout(10), served(serve) as address:
        large = '"' + "x" * (16 << 20) + '"'
        assert await ask(model_server, address, large) == b"true"
        done.set()


async def test_a_request_larger_than_all_buffers_arrives_whole(model_server: ModelServer) -> None:
    large = '"' + "x" * (16 << 20) + '"'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(len(large))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n%d" % len(body))

    async with asyncio.timeout(20), served(serve) as address:
        assert await ask(model_server, address, large) == b"%d" % len(large)


class Uploaded:
    """A body of many pieces; counts those that were taken."""

    content_type = "image/png"

    def __init__(
        self, pieces: int, *, breaks: bool = False, after: asyncio.Event | None = None
    ) -> None:
        self.size = pieces * len(PIECE)
        self.taken = 0
        self.after = after
        """It breaks off once this is set."""
        self.pieces = self._pieces(pieces, breaks=breaks)

    async def _pieces(self, most: int, *, breaks: bool) -> AsyncIterator[bytes]:
        while self.taken < most:
            if breaks and self.taken == most // 2:
                if self.after is not None:
                    await self.after.wait()
                raise ModelyardError(ErrorCode.INPUT_GONE)
            self.taken += 1
            yield PIECE


async def upload(server: ModelServer, address: Address, uploaded: Uploaded) -> bytes:
    question = Question(
        Hook(path="/infer", body="{input}"),
        Placeholders("m", "", None),
        ErrorCode.INFERENCE_FAILED,
        uploaded,
    )
    return bytes((await server.ask(address, question, keeps_connection=True)).body)


async def test_an_uploaded_body_arrives_whole(model_server: ModelServer) -> None:
    uploaded = Uploaded(64)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % uploaded.size in head
        body = await reader.readexactly(uploaded.size)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n%d" % body.count(PIECE))

    async with asyncio.timeout(20), served(serve) as address:
        assert await upload(model_server, address, uploaded) == b"64"


async def test_no_more_of_an_uploaded_body_is_in_memory_than_the_server_takes(
    model_server: ModelServer,
) -> None:
    done = asyncio.Event()
    uploaded = Uploaded(MAX_CONTENT_BYTES // len(PIECE))

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()  # it reads what its buffers hold, and no more
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")

    async with asyncio.timeout(20), served(serve) as address:
        asking = asyncio.create_task(upload(model_server, address, uploaded))
        seen = -1

        async def no_more_is_taken() -> bool:
            nonlocal seen
            before, seen = seen, uploaded.taken
            return 0 < seen == before

        await eventually(no_more_is_taken)
        assert uploaded.taken * len(PIECE) < uploaded.size // 2
        done.set()
        assert await asking == b"true"  # an answer before all was read counts
        taken = uploaded.taken
        await asyncio.sleep(0)
        assert uploaded.taken == taken


async def test_a_body_whose_rest_does_not_come_ends_the_exchange(
    model_server: ModelServer,
) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got.set_result(await reader.read())

    async with asyncio.timeout(20), served(serve) as address:
        with pytest.raises(ModelyardError) as gone:
            await upload(model_server, address, Uploaded(4, breaks=True))
        assert await got == PIECE * 2
    assert gone.value.code is ErrorCode.INPUT_GONE


async def test_a_refusal_is_told_although_the_rest_of_the_body_does_not_come(
    model_server: ModelServer,
) -> None:
    refused, over = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 No\r\nContent-Length: 99\r\n\r\nnot a picture")
        await writer.drain()
        refused.set()
        await over.wait()

    uploaded = Uploaded(4, breaks=True, after=refused)
    async with asyncio.timeout(20), served(serve) as address:
        with pytest.raises(RefusedByServerError) as caught:
            await upload(model_server, address, uploaded)
        over.set()
    assert (caught.value.status, caught.value.body) == (400, "not a picture")


async def test_a_large_answer_is_read_as_its_pieces_are_taken(model_server: ModelServer) -> None:
    written = 0
    total = MAX_CONTENT_BYTES
    pieces: list[int] = []
    taken_first = 8  # more than was read before there were pieces
    go_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while written < total:
            writer.write(bytes(1 << 18))
            await writer.drain()
            written += 1 << 18

    async def keep(_: str, content: AsyncIterator[bytes]) -> StoredResult:
        async for piece in content:
            pieces.append(len(piece))
            if len(pieces) >= taken_first:
                await go_on.wait()
        return StoredResult(content_type="image/png", size=sum(pieces), sha256="0" * 64)

    async with asyncio.timeout(20), served(serve) as address:
        hook, fillings = Hook(path="/infer"), Placeholders("m", "", None)
        question = Question(hook, fillings, ErrorCode.INFERENCE_FAILED)
        asking = asyncio.create_task(model_server.ask(address, question, keep_large=keep))
        seen = -1

        async def no_more_is_written() -> bool:
            nonlocal seen
            before, seen = seen, written
            return len(pieces) == taken_first and seen == before

        await eventually(no_more_is_written)
        assert written < total // 2
        go_on.set()
        reply = await asking
    assert (reply.stored is not None, bytes(reply.body)) == (True, b"")
    assert set(pieces[:-1]) == {PIECE_BYTES}
    assert sum(pieces) == total


async def test_an_answer_of_unknown_size_ends_at_the_limit(model_server: ModelServer) -> None:
    size = 0

    async def keep(_: str, content: AsyncIterator[bytes]) -> StoredResult:
        nonlocal size
        async for piece in content:
            size += len(piece)
        raise AssertionError("an endless answer ended")

    async with asyncio.timeout(20), served(flood(*FLOODS["body"])) as address:
        hook, fillings = Hook(path="/infer"), Placeholders("m", "", None)
        question = Question(hook, fillings, ErrorCode.INFERENCE_FAILED)
        with pytest.raises(ModelyardError) as refused:
            await model_server.ask(address, question, keep_large=keep)
    assert refused.value.code is ErrorCode.RESULT_TOO_LARGE
    assert MAX_CONTENT_BYTES - PIECE_BYTES < size <= MAX_CONTENT_BYTES


LARGE = bytes(MAX_RESULT_BYTES + 1)
FRAMED = {
    "several equal lengths": (b"Content-Length: %d\r\n" % len(LARGE) * 2, LARGE),
    "a list of equal lengths": (b"Content-Length: %d, %d\r\n" % (len(LARGE), len(LARGE)), LARGE),
    "chunks and a length that does not count": (
        b"Content-Length: 999999999999\r\nTransfer-Encoding: chunked\r\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(LARGE), LARGE),
    ),
    "no length": (b"", LARGE),
}


async def ask_for_large(server: ModelServer, address: Address, stored: bytearray) -> Reply:
    async def keep(_: str, content: AsyncIterator[bytes]) -> StoredResult:
        async for piece in content:
            stored.extend(piece)
        return StoredResult(content_type="image/png", size=len(stored), sha256="0" * 64)

    question = Question(
        Hook(path="/infer"), Placeholders("m", "", None), ErrorCode.INFERENCE_FAILED
    )
    return await server.ask(address, question, keep_large=keep)


@pytest.mark.parametrize("kind", FRAMED)
async def test_a_large_answer_is_taken_however_it_is_framed(
    model_server: ModelServer, kind: str
) -> None:
    headers, sent = FRAMED[kind]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + sent)
        await writer.drain()

    stored = bytearray()
    async with asyncio.timeout(20), served(serve) as address:
        reply = await ask_for_large(model_server, address, stored)
    assert reply.stored is not None
    assert stored == LARGE


async def test_of_an_answer_that_says_that_it_is_too_large_nothing_is_stored(
    model_server: ModelServer,
) -> None:
    first = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_CONTENT_BYTES + 1)
    stored = bytearray()
    async with asyncio.timeout(20), served(flood(first, LARGE)) as address:
        with pytest.raises(ModelyardError) as refused:
            await ask_for_large(model_server, address, stored)
    assert (refused.value.code, bytes(stored)) == (ErrorCode.RESULT_TOO_LARGE, b"")


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
async def test_a_connection_that_is_closed_too_early_is_no_answer(
    model_server: ModelServer, first: bytes
) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)

    async with asyncio.timeout(10), served(serve) as address:
        with pytest.raises(NoAnswerError, match="POST /infer"):
            await ask(model_server, address)
