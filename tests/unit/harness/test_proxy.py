"""The fault proxy: what it does to a connection that passes it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.local.ports import LOOPBACK, free_port
from tests.support.servers.proxy import Address, Fault, Proxy, through

PATIENCE_S = 5.0
QUIET_S = 0.1


class Line:
    """A client's connection to a server that answers in capitals."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, question: bytes) -> bytes:
        self.writer.write(question)
        return await self.hear()

    async def hear(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read(100)

    async def is_silent(self) -> bool:
        try:
            async with asyncio.timeout(QUIET_S):
                await self.reader.read(100)
        except TimeoutError:
            return True
        return False

    async def is_closed(self) -> bool:
        try:
            return await self.hear() == b""
        except ConnectionError:
            return True


class Server:
    def __init__(self, address: Address) -> None:
        self.address = address
        self.heard = b""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(100):
            self.heard += chunk
            writer.write(chunk.upper())
        writer.close()


@asynccontextmanager
async def listening(address: Address) -> AsyncIterator[Server]:
    server = Server(address)
    listener = (
        await asyncio.start_unix_server(server.answer, address)
        if isinstance(address, Path)
        else await asyncio.start_server(server.answer, LOOPBACK, address)
    )
    try:
        yield server
    finally:
        listener.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with listening(free_port()) as made:
        yield made


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with Proxy(server.address) as made:
        yield made


async def connect(proxy: Proxy) -> Line:
    if isinstance(proxy.address, Path):
        return Line(*await asyncio.open_unix_connection(proxy.address))
    return Line(*await asyncio.open_connection(LOOPBACK, proxy.address))


async def test_it_passes_both_ways(proxy: Proxy) -> None:
    line = await connect(proxy)
    assert await line.ask(b"hello") == b"HELLO"
    assert proxy.connections == 1


async def test_an_end_is_passed_on(proxy: Proxy) -> None:
    line = await connect(proxy)
    line.writer.write(b"last words")
    line.writer.write_eof()
    assert await line.hear() == b"LAST WORDS"
    assert await line.is_closed()


async def test_a_cut_closes_what_is_there_and_refuses_what_comes(proxy: Proxy) -> None:
    line = await connect(proxy)
    await line.ask(b"hello")
    await proxy.cut()
    assert await line.is_closed()
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    await proxy.heal()
    assert await (await connect(proxy)).ask(b"again") == b"AGAIN"


async def test_a_delay_holds_back_each_way_and_keeps_the_order(proxy: Proxy) -> None:
    line = await connect(proxy)
    clock = asyncio.get_running_loop()
    proxy.slow(0.1)
    began = clock.time()
    assert await line.ask(b"one") == b"ONE"
    assert clock.time() - began >= 0.2
    await proxy.heal()
    assert await line.ask(b"two") == b"TWO"


async def test_a_black_hole_takes_everything_and_closes_nothing(
    proxy: Proxy, server: Server
) -> None:
    old = await connect(proxy)
    await old.ask(b"before")
    await proxy.swallow(Fault.BLACKHOLE)
    new = await connect(proxy)
    old.writer.write(b"lost")
    new.writer.write(b"lost")
    assert await old.is_silent()
    assert await new.is_silent()
    assert server.heard == b"before"


async def test_a_connection_that_has_lost_bytes_ends_when_the_fault_heals(proxy: Proxy) -> None:
    unlucky = await connect(proxy)
    lucky = await connect(proxy)
    await lucky.ask(b"before")
    await proxy.swallow(Fault.BLACKHOLE)
    unlucky.writer.write(b"lost")
    assert await unlucky.is_silent()
    await proxy.heal()
    assert await unlucky.is_closed()
    assert await lucky.ask(b"after") == b"AFTER"


async def test_half_open_towards_the_server(proxy: Proxy, server: Server) -> None:
    line = await connect(proxy)
    await proxy.swallow(Fault.NO_REQUESTS)
    line.writer.write(b"lost")
    assert await line.is_silent()
    assert server.heard == b""


async def test_half_open_towards_the_client(proxy: Proxy, server: Server) -> None:
    line = await connect(proxy)
    await proxy.swallow(Fault.NO_ANSWERS)
    line.writer.write(b"heard")
    assert await line.is_silent()
    assert server.heard == b"heard"


async def test_one_connection_is_dropped_by_what_it_asked_last(proxy: Proxy) -> None:
    stream = await connect(proxy)
    other = await connect(proxy)
    await stream.ask(b"get /events")
    await other.ask(b"get /info")
    assert await proxy.drop(b"/events") == 1
    assert await stream.is_closed()
    assert await other.ask(b"still there") == b"STILL THERE"


async def test_the_answers_to_some_requests_alone_are_swallowed_until_it_is_healed(
    proxy: Proxy, server: Server
) -> None:
    stream = await connect(proxy)
    other = await connect(proxy)
    await stream.ask(b"get /events")
    assert proxy.hush(b"/events") == 1
    await other.ask(b"get /info")
    assert proxy.lossy == 0
    late = await connect(proxy)
    late.writer.write(b"get /events too")
    assert await late.is_silent()
    assert b"too" in server.heard
    assert proxy.lossy == 1
    assert await other.ask(b"still there") == b"STILL THERE"
    await proxy.heal()
    assert await late.is_closed()
    assert await other.ask(b"as before") == b"AS BEFORE"
    assert await (await connect(proxy)).ask(b"get /events") == b"GET /EVENTS"


async def test_a_target_that_is_away_closes_the_connection() -> None:
    async with Proxy(free_port()) as proxy:
        assert await (await connect(proxy)).is_closed()


@pytest.mark.parametrize("on_socket", [True, False])
async def test_unix_sockets_are_reached_by_tcp_and_by_unix_sockets(
    tmp_path: Path, *, on_socket: bool
) -> None:
    listen = tmp_path / "proxy.sock" if on_socket else None
    async with (
        listening(tmp_path / "server.sock") as server,
        Proxy(server.address, listen=listen) as proxy,
    ):
        assert await (await connect(proxy)).ask(b"hello") == b"HELLO"
        await proxy.cut()
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            await connect(proxy)
        await proxy.heal()
        assert await (await connect(proxy)).ask(b"hello") == b"HELLO"


def test_urls_lead_through_the_proxy() -> None:
    tcp = Proxy(1, listen=4_000)
    assert through("amqp://guest:guest@127.0.0.1:5672/v1", tcp) == (
        "amqp://guest:guest@127.0.0.1:4000/v1"
    )
    assert through("mongodb://127.0.0.1:1,127.0.0.1:2/db?replicaSet=rs0", tcp) == (
        "mongodb://127.0.0.1:4000/db?directConnection=true"
    )
    assert through("unix:///run/docker.sock", tcp) == "tcp://127.0.0.1:4000"
    assert through("unix:///run/docker.sock", Proxy(1, listen=Path("/run/p.sock"))) == (
        "unix:///run/p.sock"
    )
