"""Headers of messages are read within a bound, and nothing of ours is lost over it."""

import struct
import time
from collections.abc import Callable, Iterator

import pytest
from pamqp import encode, frame
from pamqp.header import ContentHeader
from structlog.testing import capture_logs

from modelyard.broker import MAX_HEADER_BYTES, MAX_HEADER_VALUES, REASON_HEADER
from modelyard.broker.dead_lettering import _kept
from modelyard.broker.headers import MAX_NAMES, Headers

FRAME = 131_000
"""RabbitMQ takes this much of headers."""
MOST = MAX_HEADER_BYTES - 100
"""What is not skipped for its size alone."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Write no lines into the log: they are not what is measured."""
    with capture_logs():
        yield


def entry(name: bytes, kind: bytes, content: bytes) -> bytes:
    return bytes((len(name),)) + name + kind + struct.pack(">I", len(content)) + content


def header_frame(table: bytes) -> bytes:
    content = struct.pack(">HHQHI", 60, 0, 2, 0x2000, len(table)) + table
    return struct.pack(">BHI", 2, 1, len(content)) + content + b"\xce"


def read(table: bytes) -> Headers:
    data = header_frame(table)
    used, _, found = frame.unmarshal(data)
    assert used == len(data)
    assert isinstance(found, ContentHeader)
    headers = found.properties.headers
    assert isinstance(headers, Headers)
    return headers


def table_of(said: dict[str, object]) -> bytes:
    return encode.field_table(said)[4:]  # type: ignore[arg-type]


def many_names(size: int) -> bytes:
    return b"".join(b"\x05%05dV" % number for number in range(size // 7))


WORST: dict[str, Callable[[int], bytes]] = {
    "voids": lambda size: entry(b"k", b"A", b"V" * size),
    "bools": lambda size: entry(b"k", b"A", b"t\x01" * (size // 2)),
    "tables": lambda size: entry(b"k", b"A", b"F\0\0\0\0" * (size // 5)),
    "arrays": lambda size: entry(b"k", b"A", b"A\0\0\0\0" * (size // 5)),
    "names in a table": lambda size: entry(b"k", b"F", many_names(size)),
    "voids in our own": lambda size: entry(b"x-death", b"A", b"V" * size),
    "names": many_names,
    "names of no letter": lambda size: b"\0V" * (size // 2),
    "names that are not UTF-8": lambda size: (b"\xff" * 254 + b"\xff\xffV") * (size // 257),
}


@pytest.mark.parametrize("size", [FRAME, MOST])
@pytest.mark.parametrize("fill", WORST)
def test_the_worst_headers_take_little_more_time_than_many_usual_ones(fill: str, size: int) -> None:
    usual = table_of({f"header-{number}": "value" for number in range(MAX_HEADER_VALUES)})

    def shortest_s(table: bytes) -> float:
        data, times = header_frame(table), []
        for _ in range(5):
            start = time.perf_counter()
            frame.unmarshal(data)
            times.append(time.perf_counter() - start)
        return min(times)

    assert shortest_s(WORST[fill](size)) < 12 * shortest_s(usual)


@pytest.mark.parametrize("fill", WORST)
def test_the_worst_headers_are_known_as_not_all_read(fill: str) -> None:
    headers = read(WORST[fill](MOST))
    # Where all names are the same, the first one was read, and it is the one that counts.
    assert headers.cut or (fill.startswith("names ") and len(headers) == 1)
    assert headers.wire_bytes > MOST - 300


def test_usual_headers_are_all_read() -> None:
    said = {f"header-{number:03}": "v" * 300 for number in range(MAX_HEADER_VALUES)}
    headers = read(table_of(dict(said)))
    assert headers == said
    assert not headers.cut


@pytest.mark.parametrize(
    "first", [many_names(7 * (MAX_NAMES - 9)), entry(b"a", b"S", b"x" * (FRAME - 4_096))]
)
def test_what_rabbitmq_and_a_process_of_ours_say_is_read_behind_any_others(first: bytes) -> None:
    death = {"count": 1, "reason": "rejected", "queue": "q", "routing-keys": ["a", "b"]}
    said = {"x-death": [death] * 5, REASON_HEADER: "invalid_json", "x-delivery-count": 2}
    headers = read(first + table_of(dict(said)))
    assert {name: headers[name] for name in said} == said
    assert headers.cut


def test_a_message_whose_headers_are_not_all_read_is_one_line_in_the_log() -> None:
    with capture_logs() as logs:
        read(many_names(FRAME))
        read(entry(b"k", b"A", entry(b"", b"A", b"V" * 300)[1:] * 9))
    assert [line["event"] for line in logs] == ["message.headers_not_all_read"] * 2


@pytest.mark.parametrize(
    "table",
    [
        b"\x01k?",
        b"\x01k",
        b"\xffk",
        b"\x01kS\xff\xff\xff\xff",
        b"\x01kA\0\0\0\x05S\0\0\0\x09",
        b"\x01kT",
        b"\x01kF\0\0\0\x02\x01k",
    ],
)
def test_headers_that_lie_about_their_sizes_are_known_as_not_all_read(table: bytes) -> None:
    assert read(table_of({"before": "1"}) + table).cut
    assert read(table).cut


def test_of_two_headers_of_one_name_the_first_counts() -> None:
    assert read(b"".join(table_of({"key": value}) for value in ("1", "2"))) == {"key": "1"}


@pytest.mark.parametrize(("count", "length"), [(5_000, 4), (240, 230), (3, 30_000)])
def test_what_is_kept_of_a_buried_messages_headers_is_read_again(count: int, length: int) -> None:
    kept = _kept({f"{number:04}": "é" * (length // 2) for number in range(count)})
    assert kept
    ours = {f"x-modelyard-{number}": "d" * 1_000 for number in range(5)}
    headers = read(table_of({**kept, **ours, "x-death": [{"reason": "x", "queue": "q"}] * 4}))
    assert not headers.cut
    assert len(kept) + 5 < MAX_HEADER_VALUES
