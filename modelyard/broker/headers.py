"""The headers of a message, read within a bound: RabbitMQ takes 128 KiB of them.

They are read on the event loop, by the client library and before anybody can refuse the message.
So only so many values and bytes are read, and of the rest nothing is made: every value says how
long it is, and is skipped.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import structlog
from pamqp import decode

from modelyard.contract.topology import REPLAY_HEADER

log = structlog.get_logger(__name__)

REASON_HEADER = "x-modelyard-reason"
DETAIL_HEADER = "x-modelyard-detail"
QUEUE_HEADER = "x-modelyard-queue"
SENDER_HEADER = "x-modelyard-sender"
"""The user that RabbitMQ had verified on the buried message; empty if its sender did not say."""
SIZE_HEADER = "x-modelyard-body-bytes"
"""Size of the message before it was buried: of one that is too large only its beginning is."""

MAX_HEADER_VALUES = 256
"""In the headers of one message, also inside of lists and tables."""
MAX_HEADER_BYTES = 96 << 10
MAX_DEPTH = 16
MAX_NAMES = 1_024
"""Names that are looked at for the ones that always count, once the rest is not read any more."""
MAX_VALUES_OF_OURS = 100
"""In each of these: one entry of `x-death` has about eight."""

_ALWAYS_READ = frozenset(
    name.encode()
    for name in (
        REASON_HEADER,
        DETAIL_HEADER,
        QUEUE_HEADER,
        SENDER_HEADER,
        SIZE_HEADER,
        REPLAY_HEADER,
        "x-death",
        "x-delivery-count",
    )
)
_TABLE, _ARRAY = b"FA"
_SIZES = dict(zip(b"tbBsuIilLfdDTV\0", (1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0, 0), strict=True))
_SAYS_ITS_SIZE = frozenset(b"SxAF")
_LENGTH = 4


class Headers(dict[str, Any]):
    """The headers of one message, or those of them that were read."""

    cut = False
    """True if not all of them were read."""
    wire_bytes = 0
    """Bytes of all of them, as they came."""

    def __bool__(self) -> bool:
        """Return true also if none could be read: the library replaces what is false."""
        return self.cut or len(self) > 0


class _Room:
    """How much more is read."""

    def __init__(self, values: int) -> None:
        self.values = values
        self.bytes = MAX_HEADER_BYTES
        self.spent = False

    def take(self, size: int) -> bool:
        """Tell whether one more value may be read; after the first that may not, none may."""
        self.values -= 1
        self.bytes -= size
        self.spent = self.spent or self.values < 0 or self.bytes < 0
        return not self.spent


def read_headers(data: bytes) -> tuple[int, Headers]:
    """Return how long the table at the beginning of `data` is, and what is in it.

    Never raises: a message that can't be read would end the connection and come again. Of two
    headers of one name the first counts, as it does for RabbitMQ.
    """
    length = _LENGTH + int.from_bytes(data[:_LENGTH])
    headers = Headers()
    headers.wire_bytes = length
    theirs = _Room(MAX_HEADER_VALUES)
    why = "it has more headers than are read"
    try:
        if length > len(data):
            raise ValueError("the table ends behind its frame")  # noqa: TRY301 - told below
        entries = _entries(data, _LENGTH, length)
        for raw, at, end in islice(entries, MAX_NAMES):
            always = raw in _ALWAYS_READ
            if theirs.spent and not always:
                continue
            name = raw.decode(errors="replace")
            if name in headers:
                continue
            room = _Room(MAX_VALUES_OF_OURS) if always else theirs
            if room.take(len(raw) + end - at):
                headers[name] = _value(data, at, end, room, MAX_DEPTH)
            headers.cut = headers.cut or room.spent
        headers.cut = headers.cut or next(entries, None) is not None
    except (ValueError, LookupError, ArithmeticError) as error:
        headers.cut, why = True, repr(error)
    if headers.cut:
        log.warning("message.headers_not_all_read", bytes=length, read=len(headers), why=why)
    return length, headers


def _entries(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the names in a table, and where their values begin and end."""
    while at < end:
        name_at = at + 1
        at = name_at + data[at]
        after = _end(data, at, end)
        yield data[name_at:at], at, after
        at = after


def _end(data: bytes, at: int, limit: int) -> int:
    """Return where the value ends that begins at `at`, without reading it."""
    kind = data[at]
    at += 1
    if kind in _SAYS_ITS_SIZE:
        end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH])
    elif kind in _SIZES:
        end = at + _SIZES[kind]
    else:
        raise ValueError(f"a value is of the unknown type {kind}")
    if end > limit:
        raise ValueError("a value ends behind what it is in")
    return end


def _value(data: bytes, at: int, end: int, room: _Room, depth: int) -> Any:  # noqa: ANN401 - any of AMQP's types
    kind, at = data[at], at + 1
    if kind not in (_TABLE, _ARRAY):
        return decode.TABLE_MAPPING[bytes((kind,))](data[at:end])[1]
    at += _LENGTH
    if depth == 0:
        room.spent = True
        return None
    if kind == _TABLE:
        table: dict[str, Any] = {}
        for raw, start, after in _entries(data, at, end):
            if not room.take(0):
                break
            table[raw.decode(errors="replace")] = _value(data, start, after, room, depth - 1)
        return table
    array: list[Any] = []
    while at < end and room.take(0):
        after = _end(data, at, end)
        array.append(_value(data, at, after, room, depth - 1))
        at = after
    return array
