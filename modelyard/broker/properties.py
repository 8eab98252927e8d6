"""Properties of a message that say how to read it, and where an answer goes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MessageProperties:
    """As the publisher set them; null: it did not. None has more than 255 bytes."""

    content_type: str | None = None
    content_encoding: str | None = None
    reply_to: str | None = None
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class DirectReply:
    """A message to one queue, whatever is bound."""

    queue: str
    correlation_id: str | None
    body: bytes


UNSET = MessageProperties()
JSON = MessageProperties(content_type="application/json")
"""Those of our own messages."""
