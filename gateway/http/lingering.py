"""Closes a connection such that a client which is still sending sees the answer.

If a socket is closed while bytes of the client are unread or still come, TCP resets the connection,
and the reset discards an answer that the client has not read yet: a client that reads only after it
has sent everything never sees why its request was refused. So only the sending half is closed, and
what still comes is dropped, until the client closes its end or a bound is reached.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast


class LingeringTransport(asyncio.Transport):
    """The transport of a connection, whose `close` lingers while the client may still send."""

    def __init__(self, transport: asyncio.Transport, still_sends: Callable[[], bool]) -> None:
        """`still_sends` tells whether the client has not sent all of its request."""
        super().__init__()
        self._transport = transport
        self._still_sends = still_sends
        self.lingers = False
        """True once only the client's end is left to be closed; what it sends is to be dropped."""

    def close(self) -> None:
        """Close when what was written is sent; linger if the client still sends."""
        if self.lingers:
            return
        if self._still_sends():
            self.linger()
        else:
            self._transport.close()

    def linger(self) -> None:
        """Close the sending half when what was written is sent, and read on."""
        if self._transport.is_closing() or self.lingers:
            return
        self.lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; what is not sent yet is lost."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return true if nothing more may be written."""
        return self.lingers or self._transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data, unless the sending half is closed."""
        if not self.lingers:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Let the client wait with what it sends; while lingering, nothing does."""
        if not self.lingers:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that are not sent yet."""
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: object = None) -> Any:  # noqa: ANN401 - asyncio's
        """Return what asyncio knows of the connection."""
        return self._transport.get_extra_info(name, default)


def lingering(
    transport: asyncio.BaseTransport, still_sends: Callable[[], bool]
) -> LingeringTransport:
    """Return the transport of a new connection with a `close` that lingers."""
    return LingeringTransport(cast("asyncio.Transport", transport), still_sends)
