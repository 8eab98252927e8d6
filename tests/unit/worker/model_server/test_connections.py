"""Connections that are kept between inferences: reused, closed, replaced."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from modelyard.contract.catalog.entries import Hook, Probe
from modelyard.contract.errors import ErrorCode, ModelyardError
from tests.support.waiting import eventually
from worker.engine.protocol import Address
from worker.model_server.client import ModelServer, NoAnswerError, Question
from worker.model_server.http_exchange import BoundedTransport
from worker.model_server.templates import Placeholders

READY = Probe(path="/ready")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Server:
    """Counts its connections and requests."""

    def __init__(self, serve_on: Callable[["Server"], Serve]) -> None:
        self._serve = serve_on(self)
        self.connections = 0
        self.requests = 0
        self.address = Address("127.0.0.1", 0)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        return head


@asynccontextmanager
async def served(serve: Callable[[Server], Serve]) -> AsyncIterator[Server]:
    made = Server(serve)
    async with (
        asyncio.timeout(20),
        await asyncio.start_server(made.handle, "127.0.0.1", 0) as server,
    ):
        made.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        yield made


def answering(answer: bytes, times: int = 1_000) -> Callable[[Server], Serve]:
    """Give a server that answers so often on each connection."""

    def serve_on(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(times):
                await server.request(reader)
                writer.write(answer)

        return serve

    return serve_on


async def ask(server: ModelServer, address: Address, *, keeps: bool = True) -> bytes:
    reply = await server.ask(
        address,
        Question(Hook(path="/infer"), Placeholders("m", "", None), ErrorCode.INFERENCE_FAILED),
        keeps_connection=keeps,
    )
    return bytes(reply.body)


async def test_inferences_share_one_connection(model_server: ModelServer) -> None:
    async with served(answering(ANSWER)) as server:
        for _ in range(3):
            assert await ask(model_server, server.address) == b"1"
    assert (server.connections, server.requests) == (1, 3)


async def test_inferences_at_once_have_a_connection_each(model_server: ModelServer) -> None:
    async with served(answering(ANSWER)) as server:
        for _ in range(3):
            await asyncio.gather(*(ask(model_server, server.address) for _ in range(4)))
    assert (server.connections, server.requests) == (4, 12)


async def test_other_requests_have_a_connection_of_their_own_and_say_so(
    model_server: ModelServer,
) -> None:
    heads: list[bytes] = []

    def serve_on(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await server.request(reader))
            writer.write(ANSWER)

        return serve

    async with served(serve_on) as server:
        await ask(model_server, server.address, keeps=False)
        await model_server.probe(server.address, READY)
    assert server.connections == 2
    assert all(b"\r\nConnection: close\r\n" in head for head in heads)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\n1",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\n",
    ],
    ids=["says so", "is HTTP/1.0", "sends more than its answer"],
)
async def test_a_connection_that_has_no_future_is_closed(
    transport: BoundedTransport, model_server: ModelServer, answer: bytes
) -> None:
    async with served(answering(answer)) as server:
        for _ in range(2):
            assert await ask(model_server, server.address) == b"1"
            assert transport.pool.idle == 0
    assert server.connections == 2


async def test_a_refusal_leaves_its_connection_usable_if_it_was_read_whole(
    model_server: ModelServer,
) -> None:
    refusal = b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno"
    async with served(answering(refusal)) as server:
        for _ in range(2):
            with pytest.raises(Exception, match="500"):
                await ask(model_server, server.address)
    assert server.connections == 1


async def test_an_idle_connection_is_closed_after_a_while(
    transport: BoundedTransport, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.model_server.connections.IDLE_S", 0.05)
    async with served(answering(ANSWER)) as server:
        await ask(model_server, server.address)
        assert transport.pool.idle == 1

        async def closed() -> bool:
            return transport.pool.idle == 0

        await eventually(closed)
        await ask(model_server, server.address)
    assert server.connections == 2


async def test_a_server_that_closes_idle_connections_gets_new_ones(
    transport: BoundedTransport, model_server: ModelServer
) -> None:
    async with served(answering(ANSWER, times=1)) as server:
        await ask(model_server, server.address)

        async def ended() -> bool:
            [(_, connection)] = transport.pool._idle[server.address]
            return not connection.is_open_and_silent()

        await eventually(ended)
        await ask(model_server, server.address)
        assert transport.pool.idle == 0  # it is not trusted any more
        await ask(model_server, server.address)
    assert (server.connections, server.requests) == (3, 3)


async def test_a_request_that_met_a_closed_connection_is_sent_again(
    transport: BoundedTransport, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server closes between the look at the connection and the request.
    monkeypatch.setattr(
        "worker.model_server.connections.Connection.is_open_and_silent", lambda _: True
    )
    async with served(answering(ANSWER, times=1)) as server:
        await ask(model_server, server.address)
        [(_, connection)] = transport.pool._idle[server.address]

        async def ended() -> bool:
            try:
                return connection.socket.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                return False

        await eventually(ended)
        assert await ask(model_server, server.address) == b"1"
    assert (server.connections, server.requests) == (2, 2)


async def test_a_request_that_the_server_has_read_is_not_sent_again(
    model_server: ModelServer,
) -> None:
    def serve_on(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.request(reader)
            writer.write(ANSWER)
            await server.request(reader)  # and it dies of this one

        return serve

    async with served(serve_on) as server:
        await ask(model_server, server.address)
        with pytest.raises(NoAnswerError, match="without an answer"):
            await ask(model_server, server.address)
    assert (server.connections, server.requests) == (1, 2)


async def test_a_server_that_serves_one_connection_at_a_time_starves_nobody(
    model_server: ModelServer,
) -> None:
    one_at_a_time = asyncio.Lock()

    def serve_on(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async with one_at_a_time:
                while True:
                    await server.request(reader)
                    writer.write(ANSWER)

        return serve

    async def ask_often(times: int) -> None:
        for _ in range(times):
            await ask(model_server, server.address)

    async with served(serve_on) as server:
        busy = asyncio.create_task(ask_often(1_000))
        await ask(model_server, server.address)
        assert not busy.done()
        busy.cancel()
        await asyncio.wait((busy,))


@pytest.mark.parametrize("keeps_connection", [True, False])
async def test_nothing_is_sent_over_a_new_connection_if_the_check_before_it_fails(
    model_server: ModelServer,
    keeps_connection: bool,  # noqa: FBT001 - pytest names it
) -> None:
    def ended() -> None:
        raise ModelyardError(ErrorCode.EXITED)

    hook, fillings = Hook(path="/infer"), Placeholders("m", "", None)
    question = Question(hook, fillings, ErrorCode.INFERENCE_FAILED, before_sending=ended)
    closed = asyncio.Event()

    def serve_on(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            server.requests += len(await reader.read())
            closed.set()

        return serve

    async with served(serve_on) as server:
        with pytest.raises(ModelyardError) as caught:
            await model_server.ask(server.address, question, keeps_connection=keeps_connection)
        await closed.wait()
    assert caught.value.code is ErrorCode.EXITED
    assert (server.connections, server.requests) == (1, 0)
