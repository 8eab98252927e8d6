"""HTTP is read strictly: what is wrong in it is refused, and nothing behind it is read."""

import pytest

from tests.support.gateway import ServedGateway
from tests.support.wire import CHUNKED, REQUEST, SIZED, post, problem_in, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "request_",
    [
        post(SIZED, b"Transfer-Encoding: chunked", body=CHUNKED),
        post(b"Transfer-Encoding: chunked", SIZED, body=CHUNKED),
        post(b"Transfer-Encoding: chunked", b"Content-Length: 0", body=CHUNKED),
        post(b"Transfer-Encoding: gzip, chunked", body=CHUNKED),
        post(b"Transfer-Encoding: identity", body=CHUNKED),
        post(b"Transfer-Encoding : chunked", body=CHUNKED),
        post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED),
        post(b"Transfer-Encoding: chunked", body=CHUNKED, version=b"1.0"),
        post(b"Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"),
        post(SIZED, b"Content-Length: 3"),
        post(SIZED, SIZED),
        post(SIZED + b", %d" % len(REQUEST)),
        post(b"Content-Length: +43"),
        post(b"Content-Length: -1"),
        post(b"Content-Length: 0x2b"),
        post(b"Content-Length: "),
        post(b"Content-Length:\r\n 43"),
        post(SIZED, b"X-Folded: a\r\n b"),
        post(SIZED, b"X-Folded: a\r\n\tb"),
        post(SIZED, b"X-Bare: a\nX-Other: b"),
        post(SIZED, b"X-Nul: a\0b"),
        post(SIZED, b"No colon"),
        post(SIZED, b"Host: evil.example"),
        post(SIZED, version=b"2.0"),
        post(SIZED, version=b"1.2"),
        b"POST  /v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: localhost\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_two_servers_may_read_in_two_ways_is_400_and_the_end(
    shared: ServedGateway, request_: bytes
) -> None:
    async with wire(shared.url) as other:
        await other.send(request_)
        assert problem_in(await other.rest()) == (400, "invalid_request")
    assert not (await shared.client.get("/v1/operations")).json()["operations"]


@pytest.mark.parametrize("pad", [b"X-Pad: " + b"x" * 20_000, b"\r\n".join([b"X: y"] * 5_000)])
async def test_a_header_that_is_too_large_is_431(shared: ServedGateway, pad: bytes) -> None:
    async with wire(shared.url) as other:
        await other.send(post(SIZED, pad))
        answer = await other.rest()
    assert problem_in(answer) == (431, "invalid_request")
    assert b"The header has more than 16384 bytes." in answer


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (post(SIZED, b"X-Folded: a\r\n b"), b"A line of the header is folded."),
        (post(SIZED, b"X-Bare: a\nX-Other: b"), b"A line of the header does not end in CR LF."),
        (post(SIZED, SIZED), b"Content-Length is not one number."),
        (post(SIZED, version=b"2.0"), b"The version of HTTP is not 1.0 or 1.1."),
        (b"\x16\x03\x01\r\n\r\n", b"This is not a valid HTTP/1.1 request."),
    ],
)
async def test_a_refused_request_is_told_why(
    shared: ServedGateway, request_: bytes, reason: bytes
) -> None:
    async with wire(shared.url) as other:
        await other.send(request_)
        assert reason in await other.rest()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://LOCALHOST/livez", b"200"),
        (b"http://localhost/v1/operations?limit=0", b"422"),
        (b"http://localhost", b"404"),
    ],
)
async def test_a_whole_url_is_taken_as_the_target(
    shared: ServedGateway, target: bytes, status: bytes
) -> None:
    head = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with wire(shared.url) as other:
        await other.send(head % target)
        assert (await other.rest()).startswith(b"HTTP/1.1 " + status)


async def test_an_error_in_the_middle_of_a_body_ends_only_its_own_connection(
    shared: ServedGateway,
) -> None:
    async with wire(shared.url) as other:
        await other.send(post(b"Transfer-Encoding: chunked", body=b"5\r\n{}   \r\n"))
        await other.send(b"zz\r\n")
        assert problem_in(await other.rest()) == (400, "invalid_request")
    assert (await shared.client.get("/livez")).status_code == 200


async def test_what_comes_behind_a_refusal_is_not_read(shared: ServedGateway) -> None:
    async with wire(shared.url) as other:
        await other.send(post(SIZED, SIZED) + post(SIZED))
        assert (await other.rest()).count(b"HTTP/1.1 4") == 1
    assert not (await shared.client.get("/v1/operations")).json()["operations"]
