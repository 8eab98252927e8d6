"""Strict HTTP/1.1 parsing: refuses requests that a proxy in front might parse differently.

h11 joins folded header lines, accepts bare line feeds as line ends and lets `Transfer-Encoding` win
over `Content-Length`. Each of these has been used to smuggle a request past a proxy (RFC 9112,
sections 2.2, 5.2, 6.1 and 6.3, let a server refuse all of them).
"""

import re
from http import HTTPStatus
from typing import Any

import h11

MAX_HEADER_BYTES = 16 << 10
"""Most bytes in the header of one request, including its first line."""
VERSIONS = frozenset({b"1.0", b"1.1"})

_FOLDED = re.compile(rb"\n[ \t]")
_CONTENT_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_HEADER_END = b"\r\n\r\n"
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
"""A target in the form that is sent to proxies; a server has to take it (RFC 9112, 3.2.2)."""


class StrictnessError(h11.RemoteProtocolError):
    """A request that is refused for a reason of ours, which quotes nothing of it."""


class StrictConnection(h11.Connection):
    """A server's end of a connection that raises `h11.RemoteProtocolError` earlier than h11."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self.refused_with = HTTPStatus.BAD_REQUEST
        """The status with which the gateway answers a request that was refused."""
        self.refused_because = ""
        """Why, in a sentence that may be answered; empty where h11 refused it."""

    @property
    def has_part_of_header(self) -> bool:
        """True while only a part of a request's header has arrived."""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0])

    def next_event(self) -> Any:  # noqa: ANN401 - h11's own type
        """Return the next event; raises `h11.RemoteProtocolError`."""
        try:
            return self._next_event()
        except h11.RemoteProtocolError as error:
            if isinstance(error, StrictnessError):  # h11's own messages quote the client
                self.refused_because = f"{error}."
            if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                self.refused_with = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise

    def _next_event(self) -> Any:  # noqa: ANN401 - h11's own type
        if self.their_state is not h11.IDLE:
            return super().next_event()
        _check_raw(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check(event)
            return _in_origin_form(event)
        return event


def _check_raw(buffered: bytes) -> None:
    end = buffered.find(_HEADER_END)
    header = buffered[: end + 2] if end >= 0 else buffered
    if len(header) > MAX_HEADER_BYTES:
        raise StrictnessError(
            f"The header has more than {MAX_HEADER_BYTES} bytes", error_status_hint=431
        )
    if header.count(b"\n") != header.count(b"\r\n"):
        raise StrictnessError("A line of the header does not end in CR LF")
    if _FOLDED.search(header):
        raise StrictnessError("A line of the header is folded")
    lengths = _CONTENT_LENGTH.findall(header)
    if len(lengths) > 1 or any(not length.strip().isdigit() for length in lengths):
        raise StrictnessError("Content-Length is not one number")


def _check(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    if request.http_version not in VERSIONS:
        raise StrictnessError("The version of HTTP is not 1.0 or 1.1")
    if b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version != b"1.1"
    ):
        raise StrictnessError(
            "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0"
        )


def _in_origin_form(request: h11.Request) -> h11.Request:
    """Return a request with its path as the target, if that is a whole URL of the same host."""
    absolute = _ABSOLUTE.fullmatch(request.target)
    if absolute is None:
        return request
    host, path = absolute.groups()
    if [value.lower() for name, value in request.headers if name == b"host"] != [host.lower()]:
        raise StrictnessError("The target names another host than the header")
    target = path if path.startswith(b"/") else b"/" + path
    return h11.Request(
        method=request.method,
        target=target,
        headers=request.headers.raw_items(),
        http_version=request.http_version,
    )
