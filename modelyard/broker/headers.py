"""Reads the headers of a message within limits: RabbitMQ accepts 128 KiB of them.

The client library reads headers on the event loop, before a consumer can refuse the message. So
only a limited number of values and bytes is decoded. The rest is skipped without building objects,
because every value states its length.
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
"""The user that RabbitMQ had verified on the dead-lettered message; empty if it had none."""
SIZE_HEADER = "x-modelyard-body-bytes"
"""Size of the whole message; of one that is too large a dead letter has only the beginning."""
GENERATED_ID_HEADER = "x-modelyard-generated-id"
"""On a dead letter whose message had no `message_id`: the one that it has was made for it."""
OUR_HEADERS = frozenset(
    {
        REASON_HEADER,
        DETAIL_HEADER,
        QUEUE_HEADER,
        SENDER_HEADER,
        SIZE_HEADER,
        GENERATED_ID_HEADER,
        REPLAY_HEADER,
    }
)
"""Those that one of our processes adds to a message that it dead-letters."""

MAX_HEADER_VALUES = 256
"""Values in the headers of one message, those inside of lists and tables included."""
MAX_HEADER_BYTES = 96 << 10
MAX_DEPTH = 16
MAX_NAMES = 1_024
"""Names that are checked for the headers that are always read, after the limits are reached."""
MAX_VALUES_OF_OURS = 100
"""Values in each header that is always read; one entry of `x-death` has about eight."""

_ALWAYS_READ = frozenset(
    name.encode()
    for name in (
        REASON_HEADER,
        DETAIL_HEADER,
        QUEUE_HEADER,
        SENDER_HEADER,
        SIZE_HEADER,
        GENERATED_ID_HEADER,
        REPLAY_HEADER,
        "x-death",
        "x-delivery-count",
    )
)
_TABLE, _ARRAY = b"FA"
_SIZES = dict(zip(b"tbBsuIilLfdDTV\0", (1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0, 0), strict=True))
_SIZED_BY_PREFIX = frozenset(b"SxAF")
_LENGTH = 4


_RABBITMQ_ADDS = ("x-death", "x-delivery-", "x-first-death-", "x-last-death-", "x-acquired-count")


def added_by_rabbitmq(name: str) -> bool:
    """Tell whether a header is one of those that RabbitMQ itself adds."""
    return name.lower().startswith(_RABBITMQ_ADDS)


class Headers(dict[str, Any]):
    """The headers of one message that were read."""

    cut = False
    """True if not all of them were read."""
    wire_bytes = 0
    """Bytes of all headers in the message."""

    def __bool__(self) -> bool:
        """Return true even if none could be read: the library replaces false headers by `{}`."""
        return self.cut or len(self) > 0


class _Budget:
    """How many more values and bytes may be read."""

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

    Never raises: an exception would end the connection, and the message would be delivered again.
    Of two headers of one name the first counts, as it does for RabbitMQ.
    """
    length = _LENGTH + int.from_bytes(data[:_LENGTH])
    headers = Headers()
    headers.wire_bytes = length
    shared_budget = _Budget(MAX_HEADER_VALUES)
    why = "it has more headers than are read"
    try:
        if length > len(data):
            raise ValueError("the table ends behind its frame")  # noqa: TRY301 - logged below
        entries = _entries(data, _LENGTH, length)
        for raw, at, end in islice(entries, MAX_NAMES):
            always = raw in _ALWAYS_READ
            if shared_budget.spent and not always:
                continue
            name = raw.decode(errors="replace")
            if name in headers:
                continue
            budget = _Budget(MAX_VALUES_OF_OURS) if always else shared_budget
            if budget.take(len(raw) + end - at):
                headers[name] = _value(data, at, end, budget, MAX_DEPTH)
            headers.cut = headers.cut or budget.spent
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
    if kind in _SIZED_BY_PREFIX:
        end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH])
    elif kind in _SIZES:
        end = at + _SIZES[kind]
    else:
        raise ValueError(f"a value is of the unknown type {kind}")
    if end > limit:
        raise ValueError("a value ends behind its table or array")
    return end


def _value(data: bytes, at: int, end: int, budget: _Budget, depth: int) -> Any:  # noqa: ANN401 - any of AMQP's types
    kind, at = data[at], at + 1
    if kind not in (_TABLE, _ARRAY):
        return decode.TABLE_MAPPING[bytes((kind,))](data[at:end])[1]
    at += _LENGTH
    if depth == 0:
        budget.spent = True
        return None
    if kind == _TABLE:
        table: dict[str, Any] = {}
        for raw, start, after in _entries(data, at, end):
            if not budget.take(0):
                break
            table[raw.decode(errors="replace")] = _value(data, start, after, budget, depth - 1)
        return table
    array: list[Any] = []
    while at < end and budget.take(0):
        after = _end(data, at, end)
        array.append(_value(data, at, after, budget, depth - 1))
        at = after
    return array
