"""Parses one HTTP/1.1 answer from an untrusted model server. Pure: no sockets, no time.

This parser exists because common ones read interim answers, headers and chunk lines for as long as
a server sends them. Here everything that costs work without bringing the answer nearer is counted,
from the first byte on, and too much of it raises `BadAnswerError`. The body is returned as it was
sent and never decompressed. The caller limits its size, by not feeding more bytes. Source of the
grammar: RFC 9112.
"""

import re
from dataclasses import dataclass

MAX_INTERIM = 16
"""Interim (1xx) answers before the final one."""
MAX_HEADERS = 256
"""Header lines in one head."""
MAX_FRAMING_BYTES = 256 << 10
"""Bytes of one answer that are not its body: heads, interim answers, chunk lines, trailers."""
MAX_CHUNKS = 8_192
"""Chunks of one body; 1 MiB in chunks of 128 bytes is allowed."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?")
_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_START = b"HTTP/1."
_LONGEST_HEAD_END = 4
_SWITCHING_PROTOCOLS = 101
_FIRST_FINAL = 200
_NO_BODY = frozenset({204, 304})


class BadAnswerError(Exception):
    """The bytes are not an HTTP/1.1 answer, or exceed one of the limits."""


@dataclass(frozen=True, slots=True)
class Head:
    """The status and the headers of the final answer."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    minor_version: int = 1
    """0 for HTTP/1.0, 1 for HTTP/1.1."""

    @property
    def ends_connection(self) -> bool:
        """True if the server closes the connection after this answer; RFC 9112, 9.3."""
        options = b",".join(self.values(b"connection")).lower().split(b",")
        return self.minor_version == 0 or any(one.strip() == b"close" for one in options)

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a header; `name` is in lower case."""
        return [value for key, value in self.headers if key.lower() == name]


class AnswerReader:
    """Parses the bytes of one connection into the final head and the body."""

    def __init__(self) -> None:
        """Begin before the first byte. Answers to HEAD, which have no body, are not supported."""
        self._buffer = bytearray()
        self._searched = 0
        self._framing = 0
        self._interim = 0
        self._body: _Length | _Chunked | _UntilClosed | None = None
        self.head: Head | None = None

    @property
    def done(self) -> bool:
        """True once the whole answer was read; later bytes are ignored."""
        return self._body is not None and self._body.done

    @property
    def length(self) -> int | None:
        """Bytes of the whole body; None if its end alone tells, or the head was not read yet."""
        return self._body.length if isinstance(self._body, _Length) else None

    @property
    def reusable(self) -> bool:
        """True if the answer is complete and its connection may carry another request."""
        return (
            self.done
            and not self._buffer
            and not isinstance(self._body, _UntilClosed)
            and self.head is not None
            and not self.head.ends_connection
        )

    def feed(self, data: bytes) -> bytes:
        """Parse the next bytes and return the part of the body in them; raises `BadAnswerError`."""
        self._buffer += data
        while self.head is None:
            if not self._next_head():
                return b""
        if self._body is None or self._body.done:
            return b""
        return self._body.take(self._buffer)

    def closed(self) -> None:
        """Handle the end of the connection; raises `BadAnswerError` if the answer is incomplete."""
        if self.head is None:
            what = "in the middle of the answer's head" if self._buffer else "without an answer"
            raise BadAnswerError(f"The connection was closed {what}.")
        if isinstance(self._body, _UntilClosed):
            self._body.done = True
        elif not self.done:
            raise BadAnswerError("The connection was closed in the middle of the answer's body.")

    def _next_head(self) -> bool:
        """Parse one head, interim or final; return false if it is incomplete."""
        buffer = self._buffer
        if buffer[: len(_START)] != _START[: len(buffer)]:
            raise BadAnswerError(f"The answer is not HTTP/1.1: {bytes(buffer[:40])!r}.")
        found = _HEAD_END.search(buffer, max(0, self._searched - _LONGEST_HEAD_END))
        size = found.end() if found else len(buffer)
        if self._framing + size > MAX_FRAMING_BYTES:
            raise BadAnswerError(f"More than {MAX_FRAMING_BYTES} bytes came before the answer.")
        if found is None:
            self._searched = len(buffer)
            return False
        head = _parse_head(bytes(buffer[: found.start()]))
        del buffer[: found.end()]
        self._searched = 0
        self._framing += size
        if head.status == _SWITCHING_PROTOCOLS:
            raise BadAnswerError("The server switched protocols (101) without a request to do so.")
        if head.status < _FIRST_FINAL:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise BadAnswerError(f"More than {MAX_INTERIM} interim (1xx) answers came.")
            return bool(buffer)
        self.head = head
        self._body = self._body_of(head)
        return True

    def _body_of(self, head: Head) -> "_Length | _Chunked | _UntilClosed":
        if head.status in _NO_BODY:
            return _Length(0)
        listed = b",".join(head.values(b"transfer-encoding")).lower().split(b",")
        # `identity` changes nothing; RFC 7230 removed it from the codings.
        codings = [coding for each in listed if (coding := each.strip()) not in {b"", b"identity"}]
        if codings == [b"chunked"]:
            return _Chunked(self._framing)
        if codings:
            named = b", ".join(codings)[:40]
            raise BadAnswerError(f"The transfer coding {named!r} was not asked for.")
        lengths = {
            one.strip() for value in head.values(b"content-length") for one in value.split(b",")
        }
        if not lengths:
            return _UntilClosed()
        length = lengths.pop()
        if lengths or not re.fullmatch(rb"[0-9]{1,15}", length):
            raise BadAnswerError("The Content-Length is not a number, or has several values.")
        return _Length(int(length))


class _UntilClosed:
    done = False

    def take(self, buffer: bytearray) -> bytes:
        taken = bytes(buffer)
        buffer.clear()
        return taken


class _Length:
    def __init__(self, length: int) -> None:
        self.length = length
        self._left = length

    @property
    def done(self) -> bool:
        return self._left == 0

    def take(self, buffer: bytearray) -> bytes:
        taken = bytes(buffer[: self._left])
        del buffer[: len(taken)]
        self._left -= len(taken)
        return taken


class _Chunked:
    def __init__(self, framing: int) -> None:
        self._framing = framing
        self._chunks = 0
        self._left = 0
        """Bytes of the current chunk that are still to come."""
        self._ends_chunk = False
        """True if the line end after a chunk's bytes comes next."""
        self._trailing = False
        self.done = False

    def take(self, buffer: bytearray) -> bytes:
        body: list[bytes] = []
        at = 0
        while not self.done:
            if self._left:
                taken = bytes(buffer[at : at + self._left])
                body.append(taken)
                at += len(taken)
                self._left -= len(taken)
                if self._left:
                    break
            line_end = buffer.find(b"\n", at)
            size = (line_end + 1 if line_end >= 0 else len(buffer)) - at
            if self._framing + size > MAX_FRAMING_BYTES:
                raise BadAnswerError(f"More than {MAX_FRAMING_BYTES} bytes frame the body.")
            if line_end < 0:
                break
            self._line(bytes(buffer[at:line_end]).removesuffix(b"\r"))
            self._framing += size
            at = line_end + 1
        del buffer[:at]
        return b"".join(body)

    def _line(self, line: bytes) -> None:
        """Parse a line that is not body: the end of a chunk, the size of the next, a trailer."""
        if self._ends_chunk:
            if line:
                raise BadAnswerError("A chunk of the body is longer than it says.")
            self._ends_chunk = False
        elif self._trailing:
            self.done = not line
        else:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise BadAnswerError(f"The size of a chunk is invalid: {line[:40]!r}.")
            self._chunks += 1
            if self._chunks > MAX_CHUNKS:
                raise BadAnswerError(f"The body came in more than {MAX_CHUNKS} chunks.")
            self._left = int(size[1], 16)
            self._ends_chunk = self._left > 0
            self._trailing = self._left == 0


def _parse_head(raw: bytes) -> Head:
    status_line, *lines = raw.split(b"\n", MAX_HEADERS + 1)
    if len(lines) > MAX_HEADERS:
        raise BadAnswerError(f"The answer has more than {MAX_HEADERS} headers.")
    status = _STATUS_LINE.fullmatch(status_line.removesuffix(b"\r"))
    if status is None:
        raise BadAnswerError(f"The status line is not HTTP/1.1: {status_line[:40]!r}.")
    headers: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, colon, value = line.removesuffix(b"\r").partition(b":")
        if not colon or not _HEADER_NAME.fullmatch(name):
            raise BadAnswerError(f"A header line is invalid: {line[:40]!r}.")
        headers.append((name, value.strip(b" \t")))
    return Head(int(status[2]), tuple(headers), int(status[1]))
