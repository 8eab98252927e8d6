"""The HTTP of the fast model server, on a connection in memory."""

import asyncio

import pytest

from deploy.images.fast.server import (
    INFERRED,
    NO_LENGTH,
    NOT_FOUND,
    NOT_LOADED,
    OK,
    Connection,
    Model,
)

LOAD = b"POST /v2/repository/models/fast/load HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
INFER = b"POST /v2/models/fast/infer HTTP/1.1\r\nHost: x\r\ncontent-length: 2\r\n\r\n{}"
READY = b"GET /v2/models/fast/ready HTTP/1.1\r\nHost: x\r\n\r\n"


class Wire(asyncio.Transport):
    """Keeps what the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


@pytest.fixture
def wire() -> Wire:
    """Give the test the server's end of a connection."""
    return Wire()


@pytest.fixture
def connection(wire: Wire) -> Connection:
    """Give the test a connection to a new model."""
    made = Connection(Model().answer)
    made.connection_made(wire)
    return made


def test_a_model_is_ready_from_its_load_on(connection: Connection, wire: Wire) -> None:
    for request in (READY, INFER, LOAD, READY, INFER):
        connection.data_received(request)

    assert wire.written == NOT_LOADED + NOT_LOADED + OK + OK + INFERRED
    assert not wire.closed


def test_requests_may_come_in_any_pieces(connection: Connection, wire: Wire) -> None:
    stream = LOAD + INFER + READY
    for at in range(len(stream)):
        connection.data_received(stream[at : at + 1])

    assert wire.written == OK + INFERRED + OK


def test_several_requests_in_one_packet_are_answered_in_order(
    connection: Connection, wire: Wire
) -> None:
    connection.data_received(LOAD + INFER + b"GET /nothing HTTP/1.1\r\n\r\n" + INFER[:-1])

    assert wire.written == OK + INFERRED + NOT_FOUND


def test_a_connection_closes_when_the_client_asks_for_it(
    connection: Connection, wire: Wire
) -> None:
    connection.data_received(READY.replace(b"Host: x", b"Connection: Close") + LOAD)

    assert wire.written == NOT_LOADED
    assert wire.closed


def test_a_chunked_body_is_refused(connection: Connection, wire: Wire) -> None:
    head = b"POST /v2/models/fast/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.data_received(head + b"0\r\n\r\n")

    assert wire.written == NO_LENGTH
    assert wire.closed


def test_a_head_without_an_end_is_not_kept(connection: Connection, wire: Wire) -> None:
    connection.data_received(b"GET /" + b"x" * 70_000)

    assert wire.written == b""
    assert wire.closed
