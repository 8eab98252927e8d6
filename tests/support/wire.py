"""Connections to a gateway whose bytes are chosen, as those who mean harm choose them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

REQUEST = b'{"job_id":"j","operation_type":"TERMINATE"}'


def post(*lines: bytes, body: bytes = REQUEST, version: bytes = b"1.1") -> bytes:
    """Return a submission with these lines in its head."""
    given = (b"POST /v1/jobs HTTP/" + version, b"Host: localhost")
    return b"\r\n".join([*given, b"Content-Type: application/json", *lines, b"", body])


SIZED = b"Content-Length: %d" % len(REQUEST)
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(REQUEST), REQUEST)


class Wire:
    """A connection whose bytes are chosen."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self, within_s: float = 8.0) -> bytes:
        """Return all that comes until the gateway closes."""
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def answer(self) -> tuple[int, bytes]:
        """Return the status and the body of one answer; the connection stays open."""
        async with asyncio.timeout(8):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            return int(head.split()[1]), await self.reader.readexactly(length)


@asynccontextmanager
async def wire(url: str) -> AsyncIterator[Wire]:
    port = httpx2.URL(url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def problem_in(answer: bytes) -> tuple[int, str]:
    """Return status and code of a raw answer, which must be a whole problem that ends it all."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert f"X-Request-Id: {document['request_id']}".encode() in head
    assert document["status"] == int(head.split()[1])
    return document["status"], document["code"]
