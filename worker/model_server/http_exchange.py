"""One HTTP exchange with a model server, over a connection of its own, with limited work.

A model server is not trusted. The callers limit the time of an exchange. This module limits what an
exchange costs the event loop, which also serves the heartbeats and all other containers:

- an answer is read in pieces of `READ_BYTES`, and other tasks run between two pieces;
- `AnswerReader` counts the bytes that do not bring the answer nearer;
- a server that sends few bytes at a time is read less often: all such exchanges together get
  `TRICKLE_READS_PER_S`, however many there are.

The request is sent while the answer is read, because a server may answer before it has read all.
"""

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx2

from worker.engine.protocol import Address
from worker.model_server.http_answer import AnswerReader, BadAnswerError, Head

READ_BYTES = 16 << 10
SMALL_READ_BYTES = 4 << 10
FREE_SMALL_READS = 64
"""Reads of less than `SMALL_READ_BYTES` after which an exchange counts as trickling."""
TRICKLE_READS_PER_S = 200.0
"""Reads a second that all trickling exchanges share."""
TRICKLE_PAUSE_S = 0.02
"""Least seconds between two reads of a trickling exchange."""
_WANTED = frozenset({b"content-type", b"content-encoding"})
"""The headers of an answer that are used; others are dropped: parsing 250 cookies takes 60 ms."""


_ADDRESS = "modelyard_address"


class RefusedError(httpx2.ConnectError):
    """Nothing listens at the address."""


class Pace:
    """How often trickling exchanges are read: those that bring few bytes at a time."""

    def __init__(self) -> None:
        self.trickling = 0
        """Number of trickling exchanges at this moment."""

    @property
    def pause_s(self) -> float:
        """Seconds between two reads of one trickling exchange."""
        return max(TRICKLE_PAUSE_S, self.trickling / TRICKLE_READS_PER_S)


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Sends each request over a new connection, and closes it with the response.

    Connections are not reused: a server that closes an idle one at the moment of its next use would
    look like a server that died. On loopback a new one costs a fraction of a millisecond.
    """

    def __init__(self) -> None:
        """All exchanges of this transport share one pace."""
        self.pace = Pace()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the final answer, its body not read yet; raises `httpx2.TransportError`."""
        message = _as_bytes(request, await request.aread())
        connection = await _connected(request)
        exchange = _Exchange(connection, message, self.pace)
        try:
            head, first = await exchange.head()
        except BaseException:
            exchange.close()
            raise
        wanted = [header for header in head.headers if header[0].lower() in _WANTED]
        stream = _Body(exchange, first)
        return httpx2.Response(head.status, headers=wanted, stream=stream, request=request)


class _Exchange:
    def __init__(self, connection: socket.socket, message: bytes, pace: Pace) -> None:
        self._connection = connection
        self._reader = AnswerReader()
        self._pace = pace
        self._small_reads = 0
        self._sender = _Sender(connection, message)

    async def head(self) -> tuple[Head, bytes]:
        """Return the final head and the part of the body that came with it."""
        while True:
            body = await self.more()
            if self._reader.head is not None:
                return self._reader.head, body

    async def more(self) -> bytes:
        """Read once; return the part of the body in what came."""
        try:
            data = await self._read()
            if data:
                return self._reader.feed(data)
            self._reader.closed()
        except BadAnswerError as error:
            raise httpx2.RemoteProtocolError(str(error)) from error
        return b""

    @property
    def done(self) -> bool:
        return self._reader.done

    async def _read(self) -> bytes:
        if self._trickles:
            await asyncio.sleep(self._pace.pause_s)
        else:
            await asyncio.sleep(0)  # `sock_recv` does not yield if bytes are there already
        try:
            data = await asyncio.get_running_loop().sock_recv(self._connection, READ_BYTES)
        except OSError as error:
            raise httpx2.ReadError(f"The connection broke ({_reason(error)}).") from error
        if len(data) < SMALL_READ_BYTES:
            self._small_reads += 1
            if self._small_reads == FREE_SMALL_READS:
                self._pace.trickling += 1
        return data

    @property
    def _trickles(self) -> bool:
        return self._small_reads >= FREE_SMALL_READS

    def close(self) -> None:
        if self._connection.fileno() < 0:
            return
        if self._trickles:
            self._pace.trickling -= 1
        self._sender.stop()
        self._connection.close()


class _Sender:
    """Sends a message as fast as the server accepts it, while the answer is read.

    A failure to send is not an error: the server may have answered without reading everything.
    """

    def __init__(self, connection: socket.socket, message: bytes) -> None:
        self._connection = connection
        self._left = memoryview(message)
        self._waits = False
        self._send()

    def _send(self) -> None:
        try:
            self._left = self._left[self._connection.send(self._left) :]
        except BlockingIOError:
            pass
        except OSError:
            self._left = self._left[:0]
        if not self._left:
            self.stop()
        elif not self._waits:
            self._waits = True
            asyncio.get_running_loop().add_writer(self._connection, self._send)

    def stop(self) -> None:
        if self._waits:
            self._waits = False
            asyncio.get_running_loop().remove_writer(self._connection)


class _Body(httpx2.AsyncByteStream):
    def __init__(self, exchange: _Exchange, first: bytes) -> None:
        self._exchange = exchange
        self._first = first

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._first:
            yield self._first
        while not self._exchange.done:
            if piece := await self._exchange.more():
                yield piece

    async def aclose(self) -> None:
        self._exchange.close()


def to_address(address: Address) -> dict[str, Address]:
    """Return the request extensions with the address to connect to.

    The address is never parsed from the URL, because a URL contains text that others wrote.
    """
    return {_ADDRESS: address}


async def _connected(request: httpx2.Request) -> socket.socket:
    address = request.extensions.get(_ADDRESS)
    if not isinstance(address, Address):
        raise httpx2.LocalProtocolError("The request does not say where to send it (to_address).")
    host, port = address.host, address.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        connection = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise httpx2.ConnectError(_reason(error)) from error
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
    except ConnectionRefusedError as error:
        connection.close()
        raise RefusedError("The connection was refused.") from error
    except OSError as error:
        connection.close()
        raise httpx2.ConnectError(f"No connection ({_reason(error)}).") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _as_bytes(request: httpx2.Request, content: bytes) -> bytes:
    """Return the request as bytes; raises `LocalProtocolError` if a value contains a line end."""
    target = request.url.raw_path
    lines = [
        b"%b %b HTTP/1.1" % (request.method.encode("ascii"), target),
        *(b"%b: %b" % header for header in request.headers.raw),
    ]
    if any(b"\r" in line or b"\n" in line for line in lines) or b" " in target:
        raise httpx2.LocalProtocolError("The request has a line end inside a line.")
    return b"\r\n".join([*lines, b"", content])


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
