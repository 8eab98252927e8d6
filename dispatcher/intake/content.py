"""What a message says of its body: its content type and its content encoding."""

import zlib

from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.messages import MAX_BATCH_BYTES

JSON_TYPE = "application/json"
PLAIN = frozenset({"", "identity", "utf-8", "utf8"})
"""Encodings of a body that is JSON as it is; kombu says `utf-8`."""
GZIP = frozenset({"gzip", "x-gzip"})
MAX_MEMBERS = 64
"""Members in one gzip body; each costs a copy of what is behind it."""

_GZIP_ONLY = 16 + zlib.MAX_WBITS


def check_content(content_type: str | None, content_encoding: str | None) -> None:
    """Raise `InvalidRequestError` for a body that is not JSON, or is packed in an unknown way.

    Many publishers say neither, and then the body is taken for JSON.
    """
    media_type, _, parameters = (content_type or JSON_TYPE).partition(";")
    if media_type.strip().lower() != JSON_TYPE:
        raise _unsupported(f"The message has the content type {content_type!r}")
    name, _, charset = parameters.strip().partition("=")
    if name.strip().lower() == "charset" and charset.strip(' "').lower() not in PLAIN:
        raise _unsupported(f"The message has the content type {content_type!r}")
    if _encoding(content_encoding) not in PLAIN | GZIP:
        raise _unsupported(f"The message has the content encoding {content_encoding!r}")


def is_packed(content_encoding: str | None) -> bool:
    """Tell whether a body has to be unpacked."""
    return _encoding(content_encoding) in GZIP


def unpacked(body: bytes, content_encoding: str | None) -> bytes:
    """Return the body as JSON text.

    It never makes more than `MAX_BATCH_BYTES` and a byte, whatever the body would unpack to. Raises
    `InvalidRequestError` with `body_too_large`, or `invalid_request` if the body is not gzip.
    """
    if not is_packed(content_encoding):
        return body
    parts = list[bytes]()
    room = MAX_BATCH_BYTES + 1
    try:
        while (body or not parts) and room:
            if len(parts) == MAX_MEMBERS:
                raise _not_gzip(f"it has more than {MAX_MEMBERS} members")
            reader = zlib.decompressobj(_GZIP_ONLY)
            part = reader.decompress(body, room)
            parts.append(part)
            room -= len(part)
            if room and not reader.eof:
                raise _not_gzip("it ends too early")
            body = reader.unused_data
    except zlib.error as error:
        raise _not_gzip(str(error)) from error
    if not room:
        raise InvalidRequestError(
            ErrorCode.BODY_TOO_LARGE,
            f"Unpacked, the message has more than {MAX_BATCH_BYTES} bytes.",
        )
    return b"".join(parts)


def _encoding(content_encoding: str | None) -> str:
    return (content_encoding or "").strip().lower()


def _unsupported(what: str) -> InvalidRequestError:
    return InvalidRequestError(
        ErrorCode.UNSUPPORTED_MEDIA_TYPE,
        f"{what[:400]}. It must be {JSON_TYPE} in UTF-8, as it is or in gzip; or say neither.",
    )


def _not_gzip(why: str) -> InvalidRequestError:
    return InvalidRequestError(
        ErrorCode.INVALID_REQUEST, f"The message is not gzip, as its content encoding says: {why}."
    )
