"""Decoding what RabbitMQ takes and pamqp would not."""

from datetime import datetime

from pamqp import decode

from modelyard.broker.headers import read_headers


def decode_leniently() -> None:
    """Make pamqp 4.0.1 take every message that RabbitMQ takes, in little time.

    What it can't decode (a short string or a header's name that is not UTF-8, a timestamp beyond
    the year 9999, headers nested too deep) it raises in aiormq's reader, which is the end of the
    connection: everything prefetched comes back with one delivery less to go, and the message
    itself comes first. It decodes by two tables, `METHODS` for properties and arguments and
    `TABLE_MAPPING` for what is in headers; ours replace its entries there. The
    package calls it once.
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
