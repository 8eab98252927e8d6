"""A service for BentoML: the mean of numbers as JSON, and their chart as a PNG."""

import struct
import zlib
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated

import bentoml
from bentoml.validators import ContentType


@bentoml.service
class Mean:
    @bentoml.api
    def mean(self, numbers: list[float]) -> dict:
        return {"mean": sum(numbers) / len(numbers)}

    @bentoml.api
    def chart(self, numbers: list[int]) -> Annotated[Path, ContentType("image/png")]:
        file = Path(mkdtemp()) / "chart.png"
        file.write_bytes(png_of(numbers))
        return file


def png_of(numbers: list[int]) -> bytes:
    """Return one row of grey pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", len(numbers), 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(numbers))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
