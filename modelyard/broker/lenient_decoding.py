"""Decodes messages that RabbitMQ accepts and pamqp would fail on."""

from datetime import datetime

from pamqp import decode

from modelyard.broker.headers import read_headers


def decode_leniently() -> None:
    """Make pamqp 4.0.1 decode every message that RabbitMQ accepts, in little time.

    pamqp can't decode a short string or a header name that is not UTF-8, a timestamp beyond the
    year 9999, or headers that nest too deep. It raises in aiormq's reader, which ends the
    connection: the broker takes back all prefetched messages, counts a delivery for each, and
    delivers the bad message first again. pamqp decodes by two tables, `METHODS` for properties and
    arguments and `TABLE_MAPPING` for headers; this function replaces entries of both. The package
    calls it once, when it is imported.
    """
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["table"] = decode.TABLE_MAPPING[b"F"] = read_headers


def _short_string(value: bytes) -> tuple[int, str]:
    end = 1 + value[0]
    return end, value[1:end].decode(errors="replace")


def _timestamp(value: bytes) -> tuple[int, datetime | None]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):  # by platform and size
        return 8, None
