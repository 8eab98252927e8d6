"""One request and its answer, as ASGI sees them."""

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

from gateway.http.request_parser import Headers, RequestHeader

log = structlog.get_logger(__name__)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
"""Statuses whose answers have neither a body nor its length."""


class _Framing(StrEnum):
    """How the client finds the end of an answer's body."""

    SIZED = "sized"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until_close"
    """For clients of HTTP/1.0, which know no chunks."""
    NO_BODY = "no_body"


_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_NOT_IN_A_HEADER = re.compile(rb"[\x00\x0a-\x0d]")


@dataclass(frozen=True, slots=True)
class Wire:
    """What a cycle needs of its connection."""

    transport: asyncio.Transport
    flow: FlowControl
    resume_reading: Callable[[], None]
    """Called when the app waits for more of the request, or for the client to disconnect."""
    headers: Headers
    """Headers of every answer."""


class RequestCycle:
    """One request and its answer: gives the request to the app, and writes what the app sends."""

    def __init__(
        self, header: RequestHeader, scope: Scope, wire: Wire, on_answered: Callable[[], None]
    ) -> None:
        """`on_answered` is called once the answer is written."""
        self.scope = scope
        self.disconnected = False
        """True if nobody reads the answer: the app sees a disconnect, and what it sends is dropped.
        """
        self.keep_alive = header.keep_alive
        """False if the connection ends with this answer."""
        self.answer_begun = False
        self.answered = False
        self._transport = wire.transport
        self._flow = wire.flow
        self._resume_reading = wire.resume_reading
        self._headers = wire.headers
        self._on_answered = on_answered
        self._expects_continue = header.expects_continue
        self._old_client = header.version == "1.0"
        self._body = bytearray()
        self._arrived_completely = False
        self._unread = False
        """True if the app has not received the newest part of the request, or its end."""
        self._arrived = asyncio.Event()
        self._header = b""
        """The header of the answer, until it is written."""
        self._framing = _Framing.SIZED
        self._unsent = 0
        """Bytes of the answer's body that the app has announced and not sent."""

    # --- what the connection reads ---

    def add(self, part: bytes) -> None:
        """Add a part of the request's body; a client that sends faster than the app reads waits."""
        self._body += part
        if len(self._body) > HIGH_WATER_LIMIT:
            self._flow.pause_reading()
        self._has_news()

    def end_request(self) -> None:
        """Mark the request as complete."""
        self._arrived_completely = True
        self._has_news()

    def disconnect(self) -> None:
        """Let the app know that nobody reads the answer any more."""
        self.disconnected = True
        self._arrived.set()

    def _has_news(self) -> None:
        self._expects_continue = False
        self._unread = True
        self._arrived.set()

    # --- what the app calls ---

    async def run(self, app: ASGIApp) -> None:
        """Have the app answer the request; log it, and close, if it does not."""
        try:
            await app(self.scope, self.receive, self.send)
            if not (self.answered or self.disconnected):
                log.error("answer.missing", path=self.scope["path"], begun=self.answer_begun)
        except Exception:
            # The app answers its own errors. One that comes out of it broke an answer off.
            log.exception("answer.failed", path=self.scope["path"])
        finally:
            if not (self.answered or self.disconnected):
                self._transport.close()

    async def receive(self) -> Message:
        """Return the next part of the request, or that the client has disconnected."""
        if self._expects_continue and not self._transport.is_closing():
            self._transport.write(CONTINUE)
            self._expects_continue = False
        while not (self._unread or self.disconnected or self.answered):
            self._resume_reading()
            self._arrived.clear()
            await self._arrived.wait()
        if self.disconnected or self.answered:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        self._unread = False
        return {"type": "http.request", "body": body, "more_body": not self._arrived_completely}

    async def send(self, message: Message) -> None:
        """Write a part of the answer; it waits while the client does not read."""
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected:
            return
        if self.answered:
            raise RuntimeError("The app sends more than one answer.")
        if message["type"] == "http.response.start" and not self.answer_begun:
            self._begin_answer(message["status"], message["headers"])
        elif message["type"] == "http.response.body" and self.answer_begun:
            self._write_body(message.get("body", b""), last=not message.get("more_body", False))
        else:
            raise RuntimeError(f"The app sends {message['type']} out of order.")

    def _begin_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.answer_begun = True
        self._expects_continue = False
        lines = [_STATUS_LINES[status]]
        length: int | None = None
        says_close = False
        for name, value in (*self._headers, *headers):
            if _NOT_IN_A_HEADER.search(value) is not None:
                raise ValueError(f"The header {name!r} has a line break in its value.")
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                says_close = says_close or value.lower() == b"close"
            lines += (name, b": ", value, b"\r\n")
        self._framing = self._framing_of(status, length)
        self._unsent = length or 0
        if self._framing is _Framing.CHUNKED:
            lines.append(b"transfer-encoding: chunked\r\n")
        if says_close or self._framing is _Framing.UNTIL_CLOSE:
            self.keep_alive = False
        if not (self.keep_alive or says_close):
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._header = b"".join(lines)

    def _framing_of(self, status: int, length: int | None) -> _Framing:
        if status in WITHOUT_BODY or self.scope["method"] == "HEAD":
            return _Framing.NO_BODY
        if length is not None:
            return _Framing.SIZED
        return _Framing.UNTIL_CLOSE if self._old_client else _Framing.CHUNKED

    def _write_body(self, part: bytes, *, last: bool) -> None:
        if self._framing is _Framing.SIZED:
            self._unsent -= len(part)
            if self._unsent < 0 or (last and self._unsent):
                raise RuntimeError("The answer's body does not have the length in its header.")
        elif self._framing is _Framing.CHUNKED:
            end = b"0\r\n\r\n" if last else b""
            part = b"%x\r\n%b\r\n%b" % (len(part), part, end) if part else end
        elif self._framing is _Framing.NO_BODY:
            part = b""
        if self._header:
            # In one write with the first part: each write of a small answer is a system call.
            part, self._header = self._header + part, b""
        if part:
            self._transport.write(part)
        if last:
            self.answered = True
            self._arrived.set()
            if not self.keep_alive:
                self._transport.close()
            self._on_answered()
