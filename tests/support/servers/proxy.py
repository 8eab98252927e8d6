"""A proxy for one server, which a test can make slow, deaf or absent.

It passes bytes between a listener and a target; each is a TCP port or a unix socket. It runs on
the event loop of the test, so a process that a test freezes is never the proxy.

What stands behind it may not name other addresses. RabbitMQ and Docker never do. A MongoDB client
that discovers a replica set does: it leaves the proxy for the addresses that the members call
themselves by. So a process behind a proxy gets a direct connection to one member (see `through`),
which stays a replica set member with retryable writes, and is for tests in which that member keeps
being the primary. A proxy for each member would only be used if the set was initiated with the
proxies' addresses, and then the members' own traffic would pass them as well.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from deploy.local.ports import LOOPBACK, free_port

CHUNK = 1 << 16
CONNECT_S = 5.0
Address = int | Path
"""A TCP port on loopback, or the path of a unix socket."""


class Fault(StrEnum):
    """What a proxy does to what passes it."""

    NONE = "none"
    CUT = "cut"
    """All connections are closed and new ones are refused."""
    BLACKHOLE = "blackhole"
    """Connections are taken, nothing comes through in either direction, nothing is closed."""
    NO_REQUESTS = "no_requests"
    """Half open: what clients send is swallowed."""
    NO_ANSWERS = "no_answers"
    """Half open: what the server sends is swallowed."""


class Proxy:
    """One listener; use it as an asynchronous context manager."""

    def __init__(self, target: Address, *, listen: Address | None = None) -> None:
        """Pass to `target`; `listen` is a free port if it is not given."""
        self.target = target
        """May be changed; it counts for connections made from then on."""
        self.address: Address = free_port() if listen is None else listen
        self.fault = Fault.NONE
        self.delay_s = 0.0
        """How much later each chunk comes out, in either direction."""
        self._hushed: bytes | None = None
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._refuse()
        await self.drop()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    @property
    def lossy(self) -> int:
        """How many of the open connections have lost bytes."""
        return sum(link.lossy for link in self._links)

    async def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self.fault = Fault.CUT
        await self._refuse()
        await self.drop()

    async def refuse(self) -> None:
        """Refuse new connections until `heal`; those that are open go on."""
        await self._refuse()

    async def swallow(self, fault: Fault) -> None:
        """Let bytes vanish, in connections that exist and in new ones."""
        self.fault = fault
        await self._listen()

    def hush(self, containing: bytes) -> int:
        """Swallow the answers to requests that hold these bytes until `heal`; nothing is closed.

        Return how many connections wait for such an answer now.
        """
        self._hushed = containing
        return sum(containing in link.last_request for link in self._links)

    def slow(self, seconds: float) -> None:
        """Delay everything by `seconds` each way, order kept; 0 is without delay."""
        self.delay_s = seconds

    async def heal(self) -> None:
        """Pass everything again; connections that have lost bytes are closed, others go on."""
        self.fault = Fault.NONE
        self._hushed = None
        self.delay_s = 0.0
        for link in tuple(self._links):
            if link.lossy:
                await link.close()
        await self._listen()

    async def drop(self, containing: bytes = b"") -> int:
        """Close connections, those alone whose last request holds these bytes; return how many."""
        dropped = [link for link in self._links if containing in link.last_request]
        for link in dropped:
            await link.close()
        return len(dropped)

    def swallows(self, last_request: bytes, *, from_client: bool) -> bool:
        """Tell whether bytes of this direction vanish now, in the connection of this request."""
        if not from_client and self._hushed is not None and self._hushed in last_request:
            return True
        deaf = Fault.NO_REQUESTS if from_client else Fault.NO_ANSWERS
        return self.fault in (Fault.BLACKHOLE, deaf)

    async def _listen(self) -> None:
        if self._server is not None:
            return
        if isinstance(self.address, Path):
            self.address.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, self.address)
        else:
            self._server = await asyncio.start_server(self._serve, LOOPBACK, self.address)

    async def _refuse(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            if isinstance(self.address, Path):
                self.address.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


class _Link:
    """One client's connection and the one to the target that belongs to it."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._task: asyncio.Task[None] | None = None
        self.lossy = False
        self.last_request = b""

    async def run(self) -> None:
        """Pass bytes until either side ends, or `close` is called."""
        self._task = asyncio.current_task()
        try:
            async with _open(self._proxy.target) as (reader, writer), asyncio.TaskGroup() as both:
                both.create_task(self._pass(self._reader, writer, from_client=True))
                both.create_task(self._pass(reader, self._writer, from_client=False))
        except* (OSError, TimeoutError):
            pass  # the target is away, or one side broke off: the other one learns it by the close
        except* asyncio.CancelledError:
            pass
        finally:
            self._writer.transport.abort()

    async def close(self) -> None:
        """Close both sides at once."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        """Read now and write when it is time: a delay holds nothing up but itself."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._read(reader, line, from_client=from_client))
            parts.create_task(self._write(writer, line))

    async def _read(
        self,
        reader: asyncio.StreamReader,
        line: asyncio.Queue[tuple[float, bytes]],
        *,
        from_client: bool,
    ) -> None:
        clock = asyncio.get_running_loop()
        chunk = b"first"
        while chunk:
            chunk = await reader.read(CHUNK)
            if from_client:
                self.last_request = chunk or self.last_request
            if self._proxy.swallows(self.last_request, from_client=from_client):
                self.lossy = True
                continue
            line.put_nowait((clock.time() + self._proxy.delay_s, chunk))

    async def _write(
        self, writer: asyncio.StreamWriter, line: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        clock = asyncio.get_running_loop()
        while True:
            due, chunk = await line.get()
            await asyncio.sleep(max(0.0, due - clock.time()))
            if not chunk:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()


@contextlib.asynccontextmanager
async def _open(
    target: Address,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await (
            asyncio.open_unix_connection(target)
            if isinstance(target, Path)
            else asyncio.open_connection(LOOPBACK, target)
        )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def through(url: str, proxy: Proxy) -> str:
    """Return the URL of the server at `url` as it is reached through the proxy.

    `mongodb://` becomes a direct connection; the proxy's target has to be the primary.
    """
    parts = urlsplit(url)
    if isinstance(proxy.address, Path):
        return f"unix://{proxy.address}"
    if parts.scheme == "unix":
        return f"tcp://{LOOPBACK}:{proxy.address}"
    credentials, at, _ = parts.netloc.rpartition("@")
    parts = parts._replace(netloc=f"{credentials}{at}{LOOPBACK}:{proxy.address}")
    if parts.scheme == "mongodb":
        parts = parts._replace(query="directConnection=true")
    return parts.geturl()
