"""The protocol between a service and its body process: frames of a JSON header and raw bytes."""

import struct

PREFIX = struct.Struct(">II")
"""The lengths of the header and of the raw bytes. An answer ends with a frame without either."""

FAILED = "failed"
"""The only name in the header of a part that reports an error; its value is the reason."""


def frame(header: bytes, blob: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the parts of one frame, in the order in which they are written."""
    return PREFIX.pack(len(header), len(blob)), header, blob


END = PREFIX.pack(0, 0)
