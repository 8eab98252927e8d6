"""One HTTP exchange with a model server over a connection of its own, bounded in work.

A model server is not trusted. Time is bounded by the callers; here is bounded what an exchange
costs the event loop, which is shared with the heartbeats and with all other containers:

- what is read is read in pieces of `READ_BYTES`, and everybody else has a turn between two;
- what does not bring the answer nearer is counted by `AnswerReader`;
- a server that sends few bytes at a time is read less often: all such exchanges share
  `TRICKLE_READS_PER_S`, however many there are.

The request is sent while the answer is read: a server may answer before it has read everything.
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
"""Reads of an exchange that may bring less than `SMALL_READ_BYTES` before it is slowed down."""
TRICKLE_READS_PER_S = 200.0
"""Reads a second that all exchanges share which trickle."""
TRICKLE_PAUSE_S = 0.02
"""Seconds between two reads of an exchange that trickles, at the least."""
_WANTED = frozenset({b"content-type", b"content-encoding"})
"""Headers of an answer that anybody looks at. Parsing 250 cookies for nothing takes 60 ms."""


_ADDRESS = "modelyard_address"


class RefusedError(httpx2.ConnectError):
    """Nothing listens at the address."""


class Pace:
    """How often exchanges are read that bring little at a time."""

    def __init__(self) -> None:
        self.trickling = 0
        """Exchanges under way that trickle."""

    @property
    def pause_s(self) -> float:
        """Seconds between two reads of one of them."""
        return max(TRICKLE_PAUSE_S, self.trickling / TRICKLE_READS_PER_S)


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Sends each request over a new connection, which is closed with its response.

    On loopback a connection costs a fraction of a millisecond, and a server that closes an idle
    one just as it is used again would look like one that died.
    """

    def __init__(self) -> None:
        """Have all exchanges of this transport share their pace."""
        self.pace = Pace()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the final answer, its body still unread; raises `httpx2.TransportError`."""
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
        """Return the final head and what of the body came with it."""
        while True:
            body = await self.more()
            if self._reader.head is not None:
                return self._reader.head, body

    async def more(self) -> bytes:
        """Read once; return what of it is body."""
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
            await asyncio.sleep(0)  # what lies there already is read without a turn for others
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
    """Sends a message as fast as the server takes it, beside the reading.

    A server that takes no more has perhaps answered already, so this is no error by itself.
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
    """Return the extensions of a request that say where it is to be sent.

    What is connected to never comes out of a text that was parsed: a URL holds what others wrote.
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
    """Return the request as it is sent; raises `LocalProtocolError` for one that would lie."""
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
