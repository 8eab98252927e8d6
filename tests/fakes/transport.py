"""Carries the requests of a `ModelServer` to functions instead of containers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2

from worker.engine.protocol import Address
from worker.model_server.connections import BrokenConnectionError, RefusedError
from worker.model_server.http_exchange import Answer, Request


class FakeTransport:
    """Hands each request to `answer`, which may raise httpx2's errors of a connection."""

    def __init__(self, answer: Callable[[httpx2.Request], Awaitable[httpx2.Response]]) -> None:
        self._answer = answer

    @asynccontextmanager
    async def exchange(self, address: Address, request: Request) -> AsyncIterator[Answer]:
        request.before_sending()
        content = request.content
        if not isinstance(content, bytes | None):
            content = b"".join([piece async for piece in content.pieces])
        sent = httpx2.Request(
            request.method,
            f"http://{address.host}:{address.port}{request.target}",
            headers=list(request.headers),
            content=content,
        )
        try:
            answer = await self._answer(sent)
            body = await answer.aread()
        except httpx2.ConnectError as error:
            raise RefusedError(str(error)) from error
        except httpx2.TransportError as error:
            raise BrokenConnectionError(str(error)) from error
        yield _FakeAnswer(answer, body)


class _FakeAnswer:
    def __init__(self, response: httpx2.Response, body: bytes) -> None:
        self._response = response
        self._body = body
        self.length: int | None = len(body)

    @property
    def status(self) -> int:
        return self._response.status_code

    def header(self, name: str) -> list[str]:
        return self._response.headers.get_list(name)

    async def read(self, most: int, into: bytearray) -> None:
        taken = self._body[: max(0, most - len(into))]
        self._body = self._body[len(taken) :]
        into += taken
