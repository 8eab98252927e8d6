"""Says what a result is that is not printed: its type, its size, its hash."""

import hashlib

from modelyard.client import Content
from modelyard.contract.capacity.sizes import size_text
from modelyard.contract.strict_json import JsonValue


def described_content(content: Content) -> str:
    """Return type and size for people."""
    return f"{content.media_type}, {size_text(len(content.content))}"


def description_of(content: Content) -> dict[str, JsonValue]:
    """Return type, size and hash for machines, by the names of an operation's view."""
    return {
        "result_type": content.media_type,
        "result_bytes": len(content.content),
        "result_sha256": hashlib.sha256(content.content).hexdigest(),
    }
