"""The strict parser: what it accepts h11 reads alike, however its bytes are cut into pieces."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.request_parser import (
    MAX_HEADER_BYTES,
    End,
    RefusedBytesError,
    RequestHeader,
    RequestParser,
)

Seen = tuple[str, bytes, str, list[tuple[bytes, bytes]], bytes]
"""Method, target, version, headers and body of a request that has arrived completely."""

SMALL = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
SIZED = b"POST /v1/jobs?a=b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n12345"
CHUNKED = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;a=b\r\n123\r\n2\r\n45\r\n0\r\nX-Trailer: t\r\n\r\n"
)
OLD = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
ROWS = (SMALL + SIZED + CHUNKED + SMALL, CHUNKED + CHUNKED, OLD)


def read(row: bytes, cuts: list[int]) -> list[Seen]:
    """Parse a row of requests that arrives in pieces; return those that are complete."""
    parser = RequestParser()
    seen: list[Seen] = []
    header: RequestHeader | None = None
    body = b""
    ends = sorted({min(cut, len(row)) for cut in cuts} | {len(row)})
    for start, end in zip([0, *ends], ends, strict=False):
        parser.feed(row[start:end])
        while (event := parser.next_event()) is not None:
            if isinstance(event, RequestHeader):
                header, body = event, b""
            elif isinstance(event, bytes):
                body += event
            elif header is not None:
                seen.append((header.method, header.target, header.version, header.headers, body))
                if not header.keep_alive:
                    return seen
                assert event is End.OF_REQUEST
                parser.start_next()
    return seen


def read_by_h11(row: bytes) -> list[Seen]:
    """Have h11 parse a row of requests; return those that are complete."""
    connection = h11.Connection(h11.SERVER, MAX_HEADER_BYTES)
    connection.receive_data(row)
    seen: list[Seen] = []
    request: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return seen
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            method, version = request.method.decode(), request.http_version.decode()
            seen.append((method, request.target, version, list(request.headers), body))
            connection.send(h11.Response(status_code=204, headers=[]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE:
                return seen
            connection.start_next_cycle()


@given(row=st.sampled_from(ROWS), cuts=st.lists(st.integers(0, 300), max_size=12))
def test_a_row_of_requests_is_the_same_in_any_pieces(row: bytes, cuts: list[int]) -> None:
    assert read(row, cuts) == read_by_h11(row)


BYTES = [
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0",
    b"5",
    b"a",
    b"\0",
    b"\v",
    b"\xff",
]
LINES = [b"Host: x\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"X:\r\n"]
PARTS = st.sampled_from([*BYTES, *LINES])


@settings(max_examples=400)
@given(row=st.sampled_from(ROWS), data=st.data())
def test_what_is_accepted_is_read_by_h11_alike(row: bytes, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(row)))
        dropped = data.draw(st.integers(0, 2))
        row = row[:at] + data.draw(PARTS) + row[at + dropped :]
    try:
        seen = read(row, data.draw(st.lists(st.integers(0, 300), max_size=3)))
    except RefusedBytesError:
        return
    assert read_by_h11(row) == seen


@pytest.mark.parametrize(
    "trailers",
    [b"X: a\nY: b\r\n\r\n", b"X: a\r\n b\r\n\r\n", b"no colon\r\n\r\n", b"\n\n", b" X: a\r\n\r\n"],
)
def test_trailers_are_as_strict_as_a_header(trailers: bytes) -> None:
    with pytest.raises(RefusedBytesError):
        read(CHUNKED.removesuffix(b"X-Trailer: t\r\n\r\n") + trailers, [])


@pytest.mark.parametrize(
    "row",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * MAX_HEADER_BYTES,
        CHUNKED.removesuffix(b"\r\n\r\n") + b"x" * MAX_HEADER_BYTES,
        CHUNKED[: CHUNKED.index(b"3;a")] + b"3;" + b"x" * MAX_HEADER_BYTES,
    ],
)
def test_no_part_of_a_request_is_kept_without_limit(row: bytes) -> None:
    with pytest.raises(RefusedBytesError) as refused:
        read(row, [])
    assert refused.value.status == 431


@pytest.mark.parametrize("part", [b"\x16\x03\x01", b"\r\n", b"GET / HTTP/1.1\nHost", b"GET /\r\n "])
def test_what_no_rest_can_make_valid_is_refused_at_once(part: bytes) -> None:
    with pytest.raises(RefusedBytesError):
        read(part, [])
