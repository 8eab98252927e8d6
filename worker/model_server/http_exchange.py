"""One HTTP exchange with a model server, with limited work.

A model server is not trusted. The callers limit the time of an exchange. This module limits what an
exchange costs the event loop, which also serves the heartbeats and all other containers:

- an answer is read in pieces of `READ_BYTES`, a large one in larger pieces, and other tasks run
  between two pieces;
- `AnswerReader` counts the bytes that do not bring the answer nearer;
- a server that sends few bytes at a time is read less often: all such exchanges together get
  `TRICKLE_READS_PER_S`, however many there are.

The request is sent while the answer is read, because a server may answer before it has read all. A
body that comes in pieces is read no faster than the server takes it.
Connections are kept open between inferences (`ConnectionPool`); any other request has one of its
own.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from worker.engine.protocol import Address
from worker.model_server.connections import (
    BrokenConnectionError,
    Connection,
    ConnectionPool,
    NoExchangeError,
    connect,
    reason_of,
)
from worker.model_server.http_answer import AnswerReader, BadAnswerError, Head

READ_BYTES = 16 << 10
LARGE_READ_BYTES = 256 << 10
"""Bytes of each read once an answer has more than `LARGE_AFTER_BYTES`: fewer and larger reads cost
less."""
LARGE_AFTER_BYTES = 1 << 20
SMALL_READ_BYTES = 4 << 10
FREE_SMALL_READS = 64
"""Reads of less than `SMALL_READ_BYTES` after which an exchange counts as trickling."""
TRICKLE_READS_PER_S = 200.0
"""Reads a second that all trickling exchanges share."""
TRICKLE_PAUSE_S = 0.02
"""Least seconds between two reads of a trickling exchange."""
_STANDARD_HEADERS = (
    ("Accept", "application/json, */*;q=0.5"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "modelyard"),
)
"""What every request says unless its hook says something else."""
_WITH_LENGTH = frozenset({"POST", "PUT", "PATCH"})
"""Methods whose requests state the length of their body even if they have none; RFC 9110, 8.6."""


def nothing() -> None:
    """Do nothing."""


class RequestBody(Protocol):
    """A body that is sent piece by piece, once."""

    @property
    def size(self) -> int:
        """Bytes of all pieces together."""

    @property
    def pieces(self) -> AsyncIterator[bytes]:
        """The pieces; if they raise, the exchange raises the same unless its answer is complete."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a model server."""

    method: str
    target: str
    """Path and query, percent-encoded."""
    headers: tuple[tuple[str, str], ...] = ()
    """Without those that frame the message."""
    content: bytes | RequestBody | None = None
    keeps_connection: bool = False
    """True: the connection may have served an earlier request, and may serve a later one. False if
    the content comes in pieces."""
    before_sending: Callable[[], None] = nothing
    """Called once there is a connection; what it raises ends the exchange, and nothing is sent."""


class Answer(Protocol):
    """The final answer to a request; its body is not read yet."""

    @property
    def status(self) -> int:
        """The status code, 200 to 599."""

    @property
    def length(self) -> int | None:
        """Bytes of the whole body; None if the server did not say how many."""

    def header(self, name: str) -> list[str]:
        """Return the values of a header; `name` is in lower case."""

    async def read(self, most: int, into: bytearray) -> None:
        """Append the body to `into`, not decoded, until it ends or `into` has `most` bytes.

        It may be called again with a larger `most`, to go on.

        Raises `NoExchangeError` if the body breaks off; what came before is in `into` then.
        """


class Transport(Protocol):
    """Carries requests into containers. The tests have one that leads to fake containers."""

    def exchange(self, address: Address, request: Request) -> AbstractAsyncContextManager[Answer]:
        """Send a request and yield its answer; raises `NoExchangeError`."""


class Pace:
    """How often trickling exchanges are read: those that bring few bytes at a time."""

    def __init__(self) -> None:
        self.trickling = 0
        """Number of trickling exchanges at this moment."""

    @property
    def pause_s(self) -> float:
        """Seconds between two reads of one trickling exchange."""
        return max(TRICKLE_PAUSE_S, self.trickling / TRICKLE_READS_PER_S)


class BoundedTransport:
    """Sends requests to model servers; the exchanges of one worker share pace and connections."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.pool = ConnectionPool()
        self._unproven: dict[Connection, float] = {}
        """New connections that wait for their first answer, and since when; oldest first."""

    def close(self) -> None:
        """Close the idle connections."""
        self.pool.close()

    @asynccontextmanager
    async def exchange(self, address: Address, request: Request) -> AsyncIterator[Answer]:
        """Send a request and yield its answer; raises `NoExchangeError`.

        A connection that ended while it was idle is replaced by a new one if the server has
        provably not read the request.
        """
        message = _as_bytes(address, request)
        exchange = await self._begin(address, request, message)
        try:
            yield exchange
        finally:
            exchange.end()

    async def _begin(self, address: Address, request: Request, message: bytes) -> "_Exchange":
        if not request.keeps_connection:
            return await self._send(await connect(address), request, message)
        connection = await self.pool.take(address)
        try:
            return await self._send(connection, request, message)
        except UnreadRequestError:
            self.pool.distrust(address)
            return await self._send(await connect(address), request, message)

    async def _send(self, connection: Connection, request: Request, message: bytes) -> "_Exchange":
        """Send the message and return once the head of the final answer is there."""
        try:
            request.before_sending()
        except BaseException:
            connection.close()
            raise
        loop, kept = asyncio.get_running_loop(), request.keeps_connection
        exchange = _Exchange(connection, message, self.pace, self._give_back if kept else None)
        if not isinstance(request.content, bytes | None):
            exchange.send(request.content.pieces)
        if kept and not connection.reused:
            self._unproven[connection] = loop.time()
        try:
            await exchange.read_head()
        except BaseException:
            exchange.end()
            raise
        finally:
            self._unproven.pop(connection, None)
        return exchange

    def _give_back(self, connection: Connection, began: float) -> None:
        """Keep a connection for the next request, unless the server seems to serve one at a time.

        A server with one thread may serve a connection until it ends. Requests on other connections
        would then wait for as long as this one is used again and again. So it is closed if a new
        connection has waited for its first answer since before the exchange on this one began.
        """
        waiting_since = next(iter(self._unproven.values()), None)
        if waiting_since is not None and waiting_since < began:
            connection.close()
        else:
            self.pool.give_back(connection)


class UnreadRequestError(BrokenConnectionError):
    """The server closed the connection before it had received anything of the request."""


class _Exchange:
    def __init__(
        self,
        connection: Connection,
        message: bytes,
        pace: Pace,
        give_back: Callable[[Connection, float], None] | None,
    ) -> None:
        """Send `message`; with `give_back` the connection is given back if it can be used again."""
        self._connection = connection
        self._reader = AnswerReader()
        self._pace = pace
        self._give_back = give_back
        self._small_reads = 0
        self._received = 0
        self._read_anything = False
        self._first = b""
        self._began = asyncio.get_running_loop().time()
        connection.begin_request()
        self._sender = _Sender(connection.socket, message)

    def send(self, pieces: AsyncIterator[bytes]) -> None:
        """Send the body as well, while the answer is read."""
        self._sender.send(pieces)

    @property
    def _head(self) -> Head:
        if self._reader.head is None:
            raise RuntimeError("the head was not read")
        return self._reader.head

    @property
    def status(self) -> int:
        return self._head.status

    @property
    def length(self) -> int | None:
        return self._reader.length

    def header(self, name: str) -> list[str]:
        return [value.decode("latin-1") for value in self._head.values(name.encode())]

    async def read_head(self) -> None:
        """Read until the head of the final answer is there; keep what came of the body with it."""
        while self._reader.head is None:
            self._first = await self._more()

    async def read(self, most: int, into: bytearray) -> None:
        into += self._first
        self._first = b""
        while not self._reader.done and len(into) < most:
            into += await self._more()
        self._first = bytes(into[most:])
        del into[most:]

    def end(self) -> None:
        """End the exchange: give the connection back, or close it."""
        if self._connection.closed:
            return
        trickled = self._trickles
        if trickled:
            self._pace.trickling -= 1
        complete = self._sender.done and self._reader.reusable and not trickled
        self._sender.stop()
        if self._give_back is not None and complete:
            self._give_back(self._connection, self._began)
        else:
            self._connection.close()

    async def _more(self) -> bytes:
        """Read once; return the part of the body in what came."""
        try:
            data = await self._read()
            if data:
                self._read_anything = True
                return self._reader.feed(data)
            if not self._read_anything and self._connection.unread_by_peer():
                raise UnreadRequestError("The connection was closed before the request came.")
            self._reader.closed()
        except BadAnswerError as error:
            raise self._no_answer(str(error)) from error
        return b""

    def _no_answer(self, reason: str) -> NoExchangeError:
        """Return the error for an answer that is none; a server that said anything listens."""
        kind = NoExchangeError if self._read_anything else BrokenConnectionError
        return kind(reason)

    async def _read(self) -> bytes:
        if self._trickles:
            await asyncio.sleep(self._pace.pause_s)
        else:
            await asyncio.sleep(0)  # `sock_recv` does not yield if bytes are there already
        loop = asyncio.get_running_loop()
        try:
            large = self._received > LARGE_AFTER_BYTES
            most = LARGE_READ_BYTES if large else READ_BYTES
            data = await loop.sock_recv(self._connection.socket, most)
            if not data:
                self._sender.check()
        except OSError as error:
            self._sender.check()
            raise self._no_answer(f"The connection broke ({reason_of(error)}).") from error
        self._received += len(data)
        if len(data) < SMALL_READ_BYTES:
            self._small_reads += 1
            if self._small_reads == FREE_SMALL_READS:
                self._pace.trickling += 1
        return data

    @property
    def _trickles(self) -> bool:
        return self._small_reads >= FREE_SMALL_READS


class _Sender:
    """Sends a message as fast as the server accepts it, while the answer is read.

    A failure to send is not an error: the server may have answered without reading everything.
    """

    def __init__(self, connection: socket.socket, message: bytes) -> None:
        self._connection = connection
        self._left = memoryview(message)
        self._waits = False
        self._failed = False
        self._empty = asyncio.Event()
        """Set while nothing is left to send."""
        self._feeding: asyncio.Future[None] | None = None
        self._send()

    @property
    def done(self) -> bool:
        """True once the whole message was sent."""
        fed = self._feeding is None or self._feeding.done()
        return fed and not self._left and not self._failed

    def send(self, pieces: AsyncIterator[bytes]) -> None:
        """Send these too; the next one is taken once the server has been sent the one before."""
        self._feeding = asyncio.ensure_future(self._feed(pieces))
        self._feeding.add_done_callback(self._fed)

    def check(self) -> None:
        """Raise what the pieces have raised."""
        if self._feeding is not None and self._feeding.done():
            self._feeding.result()

    async def _feed(self, pieces: AsyncIterator[bytes]) -> None:
        await self._empty.wait()
        async for piece in pieces:
            if self._failed:
                return
            self._left = memoryview(piece)
            self._empty.clear()
            self._send()
            del piece
            await self._empty.wait()

    def _fed(self, feeding: asyncio.Future[None]) -> None:
        """End the connection if the rest of the body does not come, so that the reader wakes up."""
        if not feeding.cancelled() and feeding.exception() is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self) -> None:
        try:
            self._left = self._left[self._connection.send(self._left) :]
        except BlockingIOError:
            pass
        except OSError:
            self._failed = True
            self._left = self._left[:0]
        if not self._left:
            self._left = memoryview(b"")  # the old one keeps the piece in memory
            self._stop_waiting()
            self._empty.set()
        elif not self._waits:
            self._waits = True
            asyncio.get_running_loop().add_writer(self._connection, self._send)

    def stop(self) -> None:
        self._stop_waiting()
        if self._feeding is not None:
            self._feeding.cancel()

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            asyncio.get_running_loop().remove_writer(self._connection)


def _as_bytes(address: Address, request: Request) -> bytes:
    """Return the request as bytes, without a body that comes in pieces.

    Raises `NoExchangeError` if a value contains a line end.
    """
    named = {name.lower() for name, _ in request.headers}
    host = f"[{address.host}]" if ":" in address.host else address.host
    headers = [
        ("Host", f"{host}:{address.port}"),
        *(one for one in _STANDARD_HEADERS if one[0].lower() not in named),
    ]
    if not request.keeps_connection:
        headers.append(("Connection", "close"))
    headers += request.headers
    content = request.content or b""
    if request.content is not None or request.method in _WITH_LENGTH:
        size = len(content) if isinstance(content, bytes) else content.size
        headers.append(("Content-Length", str(size)))
    lines = [
        f"{request.method} {request.target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers),
    ]
    if " " in request.target or any("\r" in line or "\n" in line for line in lines):
        raise NoExchangeError("The request has a line end inside a line.")
    head = "\r\n".join([*lines, "", ""]).encode()
    return head + content if isinstance(content, bytes) else head
