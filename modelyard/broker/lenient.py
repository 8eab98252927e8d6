"""Decoding what RabbitMQ takes and pamqp would not."""

from datetime import datetime
from typing import Any

import structlog
from pamqp import decode

log = structlog.get_logger(__name__)


def decode_leniently() -> None:
    """Make pamqp 4.0.1 take every message that RabbitMQ takes.

    What it can't decode (a short string or a header's name that is not UTF-8, a timestamp beyond
    the year 9999, headers nested too deep) it raises in aiormq's reader, which is the end of the
    connection: everything prefetched comes back with one delivery less to go, and the message
    itself comes first. It decodes by two tables, `METHODS` for properties and arguments and
    `TABLE_MAPPING` for what is in headers; ours replace its entries there. The
    package calls it once.
    """
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["table"] = decode.TABLE_MAPPING[b"F"] = _table


def _short_string(value: bytes) -> tuple[int, str]:
    end = 1 + value[0]
    return end, value[1:end].decode(errors="replace")


def _timestamp(value: bytes) -> tuple[int, datetime | None]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):  # by platform and size
        return 8, None


def _table(value: bytes) -> tuple[int, dict[str, Any]]:
    end = 4 + int.from_bytes(value[:4])
    table: dict[str, Any] = {}
    at = 4
    try:
        while at < end:
            size, name = _short_string(value[at:end])
            at += size
            size, table[name] = decode.embedded_value(value[at:end])
            at += size
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
        # Its length is known, so what comes after it can still be read.
        log.warning("message.headers_unreadable", error=repr(error))
    return end, table
