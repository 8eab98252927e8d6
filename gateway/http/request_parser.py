"""A strict HTTP/1.1 parser: refuses requests that a proxy in front might parse differently.

Common parsers join folded header lines, accept bare line feeds as line ends, merge repeated lengths
or let `Transfer-Encoding` win over `Content-Length`. Each of these has been used to smuggle a
request past a proxy (RFC 9112, sections 2.2, 5.2, 6.1 and 6.3, let a server refuse all of them).
Here they are not in the grammar: what it does not describe is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

MAX_HEADER_BYTES = 16 << 10
"""Most bytes in the header of one request, including its first line; the same for its trailers."""

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]++"
_FIELDS = rb"((?:" + _TOKEN + rb":[^\x00\x0a-\x0d]*+\r\n)*+)\r\n"
_HEADER = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]++) HTTP/(1\.[01])\r\n" + _FIELDS)
_TRAILERS = re.compile(_FIELDS)
_CHUNK_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\x00\x0a-\x0d]*+)?[ \t]*\r\n")
_FOLDED = re.compile(rb"\n[ \t]")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_LINE_END = b"\r\n"
_HEADER_END = b"\r\n\r\n"

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, and their values, in the order in which they arrived."""


class RefusedBytesError(Exception):
    """The bytes are no request of this grammar; `status` is that of the answer."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """The header of one request."""

    method: str
    target: bytes
    version: str
    """`1.0` or `1.1`."""
    headers: Headers
    length: int | None
    """Bytes of its body; null if the body comes in chunks."""
    keep_alive: bool
    """False if the connection ends with this request's answer."""
    expects_continue: bool
    """True if the client waits for `100 Continue` before it sends the body."""


class End(StrEnum):
    """The event that a request has arrived completely."""

    OF_REQUEST = "end_of_request"


class _ParserState(StrEnum):
    HEADER = "header"
    SIZED_BODY = "sized_body"
    CHUNK_HEADER = "chunk_header"
    CHUNK = "chunk"
    CHUNK_END = "chunk_end"
    TRAILERS = "trailers"
    DONE = "done"


class RequestParser:
    """Turns the bytes of one connection into events: a header, parts of its body, its end."""

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        """Where in the buffer the bytes begin that are not read yet."""
        self._state = _ParserState.HEADER
        self._remaining = 0
        """Bytes of the body, or of the chunk, that are not read yet."""

    @property
    def has_part_of_header(self) -> bool:
        """True while only a part of a request's header has arrived."""
        return self._state is _ParserState.HEADER and self._has_bytes

    @property
    def in_body(self) -> bool:
        """True between the header of a request and its end."""
        return self._state not in {_ParserState.HEADER, _ParserState.DONE}

    @property
    def done(self) -> bool:
        """True from the end of a request until `start_next`."""
        return self._state is _ParserState.DONE

    @property
    def holds_back(self) -> bool:
        """True if bytes have arrived that belong to a request after the one that is done."""
        return self.done and self._has_bytes

    @property
    def _has_bytes(self) -> bool:
        return self._at < len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes that have arrived."""
        self._buffer = self._buffer[self._at :] + data if self._has_bytes else data
        self._at = 0

    def start_next(self) -> None:
        """Go on to the next request, after the end of one."""
        self._state = _ParserState.HEADER

    def next_event(self) -> RequestHeader | bytes | End | None:
        """Return the next event; null if more bytes are needed, or the request is done.

        Raises `RefusedBytesError`; then the connection can't be read any further.
        """
        match self._state:
            case _ParserState.HEADER:
                return self._header() if self._has_bytes else None
            case _ParserState.SIZED_BODY:
                return self._sized_body()
            case _ParserState.DONE:
                return None
            case _:
                return self._chunked_body()

    def _header(self) -> RequestHeader | None:
        end = self._end_of(_HEADER_END)
        if end is None:
            _check_part(self._buffer[self._at :])
            return None
        if end - self._at > MAX_HEADER_BYTES + len(_LINE_END):
            raise _too_large()
        match = _HEADER.fullmatch(self._buffer, self._at, end)
        if match is None:
            raise RefusedBytesError("The header does not follow the grammar of HTTP/1.1.")
        header = _header_of(*match.groups())
        self._at = end
        self._remaining = header.length or 0
        self._state = (
            _ParserState.CHUNK_HEADER if header.length is None else _ParserState.SIZED_BODY
        )
        return header

    def _sized_body(self) -> bytes | End | None:
        if not self._remaining:
            self._state = _ParserState.DONE
            return End.OF_REQUEST
        return self._part_of_body()

    def _part_of_body(self) -> bytes | None:
        part = self._buffer[self._at : self._at + self._remaining]
        self._at += len(part)
        self._remaining -= len(part)
        return part or None

    def _chunked_body(self) -> bytes | End | None:
        while True:
            before = self._state
            if before is _ParserState.CHUNK:
                part = self._part_of_body()
                if not self._remaining:
                    self._state = _ParserState.CHUNK_END
                return part
            if before is _ParserState.CHUNK_HEADER:
                self._read_chunk_header()
            elif before is _ParserState.CHUNK_END:
                self._read_chunk_end()
            else:
                self._read_trailers()
            if self._state is _ParserState.DONE:
                return End.OF_REQUEST
            if self._state is before:
                return None

    def _read_chunk_header(self) -> None:
        end = self._end_of(_LINE_END)
        if (end or len(self._buffer)) - self._at > MAX_HEADER_BYTES:
            raise _too_large()
        if end is None:
            return
        match = _CHUNK_HEADER.fullmatch(self._buffer, self._at, end)
        if match is None:
            raise RefusedBytesError("A chunk has no size.")
        self._at = end
        self._remaining = int(match.group(1), 16)
        self._state = _ParserState.CHUNK if self._remaining else _ParserState.TRAILERS

    def _read_chunk_end(self) -> None:
        found = self._buffer[self._at : self._at + len(_LINE_END)]
        if not _LINE_END.startswith(found):
            raise RefusedBytesError("A chunk does not end where its size says.")
        if found == _LINE_END:
            self._at += len(_LINE_END)
            self._state = _ParserState.CHUNK_HEADER

    def _read_trailers(self) -> None:
        """Drop the trailers, which no route reads, once all of them have arrived."""
        without = self._buffer.startswith(_LINE_END, self._at)
        end = self._at + len(_LINE_END) if without else self._end_of(_HEADER_END)
        if end is None:
            if self._has_bytes:
                _check_part(self._buffer[self._at :], may_be_empty=True)
            return
        if end - self._at > MAX_HEADER_BYTES:
            raise _too_large()
        if _TRAILERS.fullmatch(self._buffer, self._at, end) is None:
            raise RefusedBytesError("The trailers do not follow the grammar of HTTP/1.1.")
        self._at = end
        self._state = _ParserState.DONE

    def _end_of(self, mark: bytes) -> int | None:
        """Return where the first such mark ends; null if it has not arrived."""
        found = self._buffer.find(mark, self._at)
        return None if found < 0 else found + len(mark)


def _check_part(part: bytes, *, may_be_empty: bool = False) -> None:
    """Refuse a part of a header, or of trailers, if no rest can make it valid."""
    if len(part) > MAX_HEADER_BYTES:
        raise _too_large()
    if part[:1] < b"!" and not (may_be_empty and part == b"\r"):  # such as a TLS handshake
        raise RefusedBytesError("The first line does not begin with a name.")
    if part.count(b"\n") != part.count(_LINE_END):
        raise RefusedBytesError("A line of the header does not end in CR LF.")
    if _FOLDED.search(part):
        raise RefusedBytesError("A line of the header is folded.")


def _header_of(method: bytes, target: bytes, version: bytes, fields: bytes) -> RequestHeader:
    headers: Headers = []
    for line in fields.split(_LINE_END)[:-1]:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    names = [name for name, _ in headers]
    _check_hosts(names.count(b"host"), version)
    connection = _tokens(headers, b"connection") if b"connection" in names else ()
    expect = _tokens(headers, b"expect") if b"expect" in names else ()
    modern = version == b"1.1"
    return RequestHeader(
        method=method.decode("ascii"),
        target=target,
        version=version.decode("ascii"),
        headers=headers,
        length=_length(headers, names, chunked_allowed=modern),
        keep_alive=modern and b"close" not in connection,
        expects_continue=modern and b"100-continue" in expect,
    )


def _check_hosts(count: int, version: bytes) -> None:
    if count > 1 or (count == 0 and version == b"1.1"):
        raise RefusedBytesError("The header does not name one host.")


def _length(headers: Headers, names: Sequence[bytes], *, chunked_allowed: bool) -> int | None:
    """Return how many bytes the body has; null for chunks."""
    if b"transfer-encoding" in names:
        encodings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
        if encodings != [b"chunked"] or b"content-length" in names or not chunked_allowed:
            raise RefusedBytesError(
                "Transfer-Encoding may only be chunked, and goes neither with Content-Length nor "
                "with HTTP/1.0."
            )
        return None
    if b"content-length" not in names:
        return 0
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise RefusedBytesError("Content-Length is not one number.")
    return int(lengths[0])


def _tokens(headers: Headers, wanted: bytes) -> list[bytes]:
    """Return the members of a header that is a list, in lower case."""
    return [
        token.strip(b" \t").lower()
        for name, value in headers
        if name == wanted
        for token in value.split(b",")
    ]


def _too_large() -> RefusedBytesError:
    return RefusedBytesError(
        f"The header has more than {MAX_HEADER_BYTES} bytes.",
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    )
