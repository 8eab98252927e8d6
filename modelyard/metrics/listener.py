"""The listener for scrapes: a small HTTP server with one path, `/metrics`.

It has a port of its own, also in the gateway. Several gateways may share the port for clients, and
a scrape there would reach any of them. And clients of the API need no way to it. The port has no
authentication: it is for the network of the monitoring, loopback by default.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

import structlog

from modelyard.metrics.exposition import Exposition

log = structlog.get_logger(__name__)

PATH = "/metrics"
REQUEST_S = 5.0
"""Seconds that a scrape may take, from its connection to the last byte that its client reads."""
MAX_HEADER_BYTES = 8 << 10
MAX_OPEN = 16
"""Most scrapes at a time; further ones are closed."""
RETRY_S = 5.0
"""Seconds between two tries to listen: the address may still be taken by the process before."""

_PLAIN = "text/plain; charset=utf-8"


class MetricsListener:
    """Answers scrapes until cancelled."""

    def __init__(self, exposition: Exposition, place: tuple[str, int]) -> None:
        """`place` is host and port; port 0 takes a free one."""
        self._exposition = exposition
        self._place = place
        self._open = 0

    async def run(self, listening: Callable[[tuple[str, int]], None] = lambda _: None) -> None:
        """Listen, and call `listening` with host and port.

        While the address can't be used it is tried again, with one log line: the work of the
        process does not depend on being watched.
        """
        server = await self._listen(*self._place)
        try:
            host, port = server.sockets[0].getsockname()[:2]
            log.info("metrics.listening", host=host, port=port)
            listening((host, port))
            await asyncio.Event().wait()
        finally:
            server.close()

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        failing = False
        while True:
            try:
                return await asyncio.start_server(
                    self._answer, host, port, limit=MAX_HEADER_BYTES, reuse_address=True
                )
            except OSError as error:
                if not failing:
                    log.warning("metrics.not_listening", host=host, port=port, reason=str(error))
                failing = True
            await asyncio.sleep(RETRY_S)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close; what goes wrong ends this connection alone."""
        if self._open >= MAX_OPEN:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(REQUEST_S):
                writer.write(self._response(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        except Exception:
            # The boundary of a scrape: a metric that can't be read must not end the process.
            log.exception("metrics.failed")
            with suppress(OSError):
                writer.transport.abort()
        finally:
            self._open -= 1

    def _response(self, header: bytes) -> bytes:
        lines = header.decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path != PATH:
            return _message(HTTPStatus.NOT_FOUND, b"The metrics are at /metrics.\n", _PLAIN)
        if method not in ("GET", "HEAD"):
            return _message(HTTPStatus.METHOD_NOT_ALLOWED, b"Use GET.\n", _PLAIN)
        text, content_type = self._exposition.render(_header(lines[1:], "accept"))
        return _message(HTTPStatus.OK, text, content_type, with_body=method == "GET")


def _header(lines: list[str], name: str) -> str:
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""


def _message(
    status: HTTPStatus, body: bytes, content_type: str, *, with_body: bool = True
) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (body if with_body else b"")
