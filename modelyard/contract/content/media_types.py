"""Media types as models and catalog entries name them; what is not one is only bytes.

Source of the grammar: RFC 9110, 8.3.1.
"""

import re
from typing import Annotated

from pydantic import StringConstraints

from modelyard.contract.ids import MustBe

JSON_TYPE = "application/json"
UNKNOWN_TYPE = "application/octet-stream"
"""Bytes of which nothing is known."""
MAX_TYPE_CHARS = 200

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - a token of the grammar
_QUOTED = r'"[^"\\\x00-\x1f\x7f-\U0010ffff]*"'
MEDIA_TYPE_PATTERN = rf"^{_TOKEN}/{_TOKEN}( ?; ?{_TOKEN}=({_TOKEN}|{_QUOTED}))*$"
_MEDIA_TYPE = re.compile(MEDIA_TYPE_PATTERN[1:-1])

MediaType = Annotated[
    str,
    StringConstraints(strict=True, max_length=MAX_TYPE_CHARS, pattern=MEDIA_TYPE_PATTERN),
    MustBe(f"a media type such as image/png, of at most {MAX_TYPE_CHARS} characters"),
]
"""`type/subtype`, perhaps with parameters; it may stand in a header as it is."""

_ENDINGS = {
    "application/json": "json",
    "application/pdf": "pdf",
    "application/zip": "zip",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "image/gif": "gif",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "text/csv": "csv",
    "text/plain": "txt",
    "video/mp4": "mp4",
}
"""Of types that no program runs when somebody opens a file."""


def media_type_of(header: str) -> str:
    """Return the media type in a `Content-Type` that nobody has checked.

    Without one it is JSON, which is all that older model servers answer. What is not a media type,
    or too long for one, is `UNKNOWN_TYPE`.
    """
    text = header.strip()
    if not text:
        return JSON_TYPE
    valid = len(text) <= MAX_TYPE_CHARS and _MEDIA_TYPE.fullmatch(text) is not None
    return text if valid else UNKNOWN_TYPE


def essence_of(media_type: str) -> str:
    """Return the type without its parameters, in lower case."""
    return media_type.partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """Tell whether content of this type is JSON: `application/json`, or one that ends in `+json`.

    Other types that JSON is sent with (`text/json`) count, too.
    """
    essence = essence_of(media_type)
    return essence in {JSON_TYPE, "text/json"} or essence.endswith("+json")


def is_text(media_type: str) -> bool:
    """Tell whether people can read content of this type."""
    return essence_of(media_type).startswith("text/") or is_json(media_type)


def file_ending(media_type: str) -> str:
    """Return the ending of a file's name that suits content of this type."""
    return _ENDINGS.get(essence_of(media_type), "bin")
