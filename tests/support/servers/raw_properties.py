"""Properties of messages as a client of another language may write them."""

import struct

from pamqp.commands import Basic


class RawProperties(Basic.Properties):
    """Properties that are sent as the bytes that they were given as."""

    def __init__(self, flags: int, content: bytes) -> None:
        super().__init__()
        self._raw = struct.pack(">H", flags) + content

    def marshal(self) -> bytes:
        return self._raw


def raw_headers(content: bytes) -> RawProperties:
    """Return properties that are headers alone."""
    return RawProperties(0x2000, struct.pack(">I", len(content)) + content)
