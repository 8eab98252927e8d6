"""How a service and its body process talk: frames of a JSON header and bytes that belong to it."""

import struct

PREFIX = struct.Struct(">II")
"""Bytes of the header and of what belongs to it. An answer ends with a frame that has neither."""

FAILED = "failed"
"""The only name in the header of an answer that says that the process could not do it."""


def frame(header: bytes, blob: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the parts of one frame, in the order in which they are written."""
    return PREFIX.pack(len(header), len(blob)), header, blob


END = PREFIX.pack(0, 0)
