"""Many small HTTP requests at once, by a client that costs as little CPU as possible.

On a small machine a load generator takes CPU from what it measures. aiohttp needs about 0.15 ms
for a request, which is as much as a fast server; this needs a tenth of it. It sends what was
prepared before, and reads of an answer only the status and the length.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from deploy.local.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_TIMEOUT_S = 120.0


class WrongAnswer(StackError):  # noqa: N818 - it names what came
    """A server answered other than a benchmark expects; the message has its answer."""


def prepare(url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a whole POST request."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def flood(url: str, requests: Iterable[bytes], *, at_once: int, expected: int) -> float:
    """Send prepared requests over `at_once` connections; return the seconds until the last answer.

    Raises `WrongAnswer` if a status is not the expected one, or if a connection ends, and
    `TimeoutError` after two minutes.
    """
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"{url} has no host and port")
    loop = asyncio.get_running_loop()
    shared = iter(requests)
    status = f"HTTP/1.1 {expected} ".encode()
    ended: list[asyncio.Future[None]] = [loop.create_future() for _ in range(at_once)]
    connections = [_Connection(shared, status, one) for one in ended]
    began = time.monotonic()
    opened = [
        await loop.create_connection(partial(_same, one), parts.hostname, parts.port)
        for one in connections
    ]
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await asyncio.gather(*ended)
    finally:
        for transport, _ in opened:
            transport.abort()
    return time.monotonic() - began


class _Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last one is complete."""

    def __init__(
        self, requests: Iterator[bytes], status: bytes, ended: asyncio.Future[None]
    ) -> None:
        self._requests = requests
        self._status = status
        self._ended = ended
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have no class in common with asyncio's.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._send_next(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(_END)
        if end < 0 or self._transport is None:
            return
        if len(self._buffer) < end + len(_END) + _length(self._buffer[:end]):
            return
        if not self._buffer.startswith(self._status):
            self._fail(f"A request was answered with: {self._buffer.decode(errors='replace')}")
            return
        self._buffer = b""
        self._send_next(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"The connection ended: {exc}")

    def _send_next(self, transport: asyncio.WriteTransport) -> None:
        request = next(self._requests, None)
        if request is not None:
            transport.write(request)
        elif not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(WrongAnswer(why))


def _same(connection: _Connection) -> _Connection:
    return connection


def _length(head: bytes) -> int:
    """Return the length of a body; servers under measurement send no chunks."""
    return int(head.lower().partition(_LENGTH)[2].partition(b"\r\n")[0])
