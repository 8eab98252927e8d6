"""Reading one answer of a model server, byte by byte, with bounds that hold before the head too."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model_server.http_answer import (
    MAX_CHUNKS,
    MAX_FRAMING_BYTES,
    MAX_HEADERS,
    MAX_INTERIM,
    AnswerReader,
    BadAnswerError,
)

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = (
    INTERIM + b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding:  Chunked \r\nX-Empty:\r\n\r\n",
    b'3;ext="a"\r\n[1,\r\n00002\r\n2]\r\n0\r\nTrailer: x\r\n\r\nwhat follows is never read',
)


def read(*pieces: bytes, closed: bool = False) -> tuple[AnswerReader, bytes]:
    reader = AnswerReader()
    body = b"".join(reader.feed(piece) for piece in pieces)
    if closed:
        reader.closed()
    return reader, body


@given(st.lists(st.integers(0, len(b"".join(WHOLE))), max_size=8))
def test_an_answer_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    raw = b"".join(WHOLE)
    edges = [0, *sorted(cuts), len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(edges)]
    reader, body = read(*pieces)
    assert reader.head is not None
    assert (reader.head.status, body, reader.done) == (200, b"[1,2]", True)
    assert reader.head.values(b"x-empty") == [b""]


@pytest.mark.parametrize(
    ("raw", "body", "done"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}more", b"{}", True),
        (b"HTTP/1.0 200\r\nContent-Length: 2, 2\r\n\r\n{}", b"{}", True),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", b"{}", True),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n12345", b"", True),
        (b"HTTP/1.1 304 Not\r\nTransfer-Encoding: chunked\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", b"{}", False),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", b"{}", False),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}more",
            b"{}",
            True,
        ),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: Identity\r\n\r\n{}", b"{}", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: , \r\n\r\n{}", b"{}", False),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"{}",
            True,
        ),
    ],
)
def test_a_body_ends_where_its_framing_says(raw: bytes, body: bytes, *, done: bool) -> None:
    reader, got = read(raw)
    assert (got, reader.done) == (body, done)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    reader, body = read(b"HTTP/1.1 200 OK\r\n\r\n", b"{", b"}", closed=True)
    assert (body, reader.done) == (b"{}", True)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nConte",
        INTERIM,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
        CHUNKED + b"2\r\n{}\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\n",
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(raw: bytes) -> None:
    with pytest.raises(BadAnswerError, match="closed"):
        read(raw, closed=True)


@pytest.mark.parametrize(
    "raw",
    [
        b"<html>HTTP/0.9</html>",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 2xx OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity, gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\n",
        CHUNKED + b"xyz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"1\r\nabc\r\n",
        CHUNKED + b"f" * 9 + b"\r\n",
    ],
)
def test_what_is_no_http_answer_is_an_error_at_once(raw: bytes) -> None:
    with pytest.raises(BadAnswerError):
        read(raw)


@pytest.mark.parametrize(
    ("first", "endless"),
    [
        (b"", INTERIM),
        (b"", b"HTTP/1.1 100 Continue\r\nX: " + b"y" * 20_000 + b"\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"1;", b"e"),
        (CHUNKED + b"0\r\n", b"T: x\r\n"),
    ],
    ids=["interim", "long interim", "headers", "header", "chunks", "extension", "trailers"],
)
def test_no_framing_is_endless(first: bytes, endless: bytes) -> None:
    reader = AnswerReader()
    reader.feed(first)
    piece = endless * max(1, 16_384 // len(endless))
    pieces = 8 * MAX_FRAMING_BYTES // len(piece)
    with pytest.raises(BadAnswerError):
        all(reader.feed(piece) is not None for _ in range(pieces))


def test_as_much_as_is_allowed_is_read() -> None:
    headers = b"".join(b"X-%d: y\r\n" % n for n in range(MAX_HEADERS - 1))
    head = b"HTTP/1.1 200 OK\r\n" + headers + b"Transfer-Encoding: chunked\r\n\r\n"
    chunks = b"1\r\nx\r\n" * (MAX_CHUNKS - 1) + b"0\r\n\r\n"
    reader, body = read(INTERIM * MAX_INTERIM, head, chunks)
    assert (reader.done, len(body)) == (True, MAX_CHUNKS - 1)


def test_one_interim_answer_more_than_is_allowed_is_an_error() -> None:
    with pytest.raises(BadAnswerError, match="interim"):
        read(INTERIM * (MAX_INTERIM + 1))
