"""One request and its answer: how the answer is framed, and what the app sees of the client."""

import asyncio
from collections.abc import Iterable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl

from gateway.http.request_cycle import CONTINUE, RequestCycle, Wire
from gateway.http.request_parser import RequestHeader, RequestParser


class Wiretap(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def header(text: bytes = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n") -> RequestHeader:
    parser = RequestParser()
    parser.feed(text)
    found = parser.next_event()
    assert isinstance(found, RequestHeader)
    return found


def cycle(request: RequestHeader | None = None) -> tuple[RequestCycle, Wiretap]:
    request = request or header()
    wiretap = Wiretap()
    wire = Wire(wiretap, FlowControl(wiretap), lambda: None, [(b"date", b"today")])
    scope = {"type": "http", "method": request.method, "path": request.target.decode()}
    return RequestCycle(request, scope, wire, lambda: None), wiretap


def answering(
    *parts: bytes, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
) -> ASGIApp:
    """Return an app that answers with these parts of a body."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for index, part in enumerate(parts):
            more = index < len(parts) - 1
            await send({"type": "http.response.body", "body": part, "more_body": more})

    return app


SIZED = [(b"content-length", b"4")]
OK = b"HTTP/1.1 200 OK\r\ndate: today\r\n"
CLOSE = b"connection: close\r\n"


@pytest.mark.parametrize(
    ("request_", "app", "written", "closed"),
    [
        (b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", answering(b"ab", b"cd", headers=SIZED),
         OK + b"content-length: 4\r\n\r\nabcd", False),
        (b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", answering(b"ab", b"", b"c", b""),
         OK + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", False),
        (b"GET /x HTTP/1.0\r\n\r\n", answering(b"ab", b"cd"), OK + CLOSE + b"\r\nabcd", True),
        (b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n", answering(b"abcd", headers=SIZED),
         OK + b"content-length: 4\r\n\r\n", False),
        (b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
         answering(b"abcd", headers=SIZED), OK + b"content-length: 4\r\n" + CLOSE + b"\r\nabcd",
         True),
        (b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n",
         answering(b"", headers=[(b"connection", b"close")], status=204),
         b"HTTP/1.1 204 No Content\r\ndate: today\r\n" + CLOSE + b"\r\n", True),
    ],
)  # fmt: skip
async def test_the_client_finds_the_end_of_each_answer(
    request_: bytes, app: ASGIApp, written: bytes, *, closed: bool
) -> None:
    one, wiretap = cycle(header(request_))
    await one.run(app)
    assert (wiretap.written, wiretap.closed, one.answered) == (written, closed, True)


@pytest.mark.parametrize(
    "app",
    [
        answering(b"abcde", headers=SIZED),
        answering(b"abc", headers=SIZED),
        answering(),
        answering(b"", headers=[(b"x", b"a\r\nb: c")]),
        answering(b"ab", b"cd", b"ef", headers=[(b"content-length", b"2")]),
    ],
)
async def test_an_answer_that_the_app_breaks_off_or_gets_wrong_closes_the_connection(
    app: ASGIApp,
) -> None:
    one, wiretap = cycle()
    await one.run(app)
    assert wiretap.closed
    assert b"b: c" not in wiretap.written


async def test_the_app_gets_the_body_as_it_arrives_and_then_the_end_of_the_client() -> None:
    one, wiretap = cycle(
        header(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    )
    seen: list[Message] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            seen.append(await receive())
            if seen[-1]["type"] == "http.disconnect":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                return

    running = asyncio.create_task(one.run(app))
    await _let_it_run()
    assert wiretap.written == CONTINUE
    one.add(b"ab")
    await _let_it_run()
    one.add(b"cd")
    one.end_request()
    await _let_it_run()
    one.disconnect()
    await running
    bodies = [(one["body"], one["more_body"]) for one in seen[:-1]]
    assert bodies == [(b"ab", True), (b"cd", False)]
    assert wiretap.written == CONTINUE


async def _let_it_run() -> None:
    """Let the app go on until it waits for the client again."""
    for _ in range(5):
        await asyncio.sleep(0)
