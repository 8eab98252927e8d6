"""Reads which attempts a dead-lettered message of a worker or a dispatcher names."""

from modelyard.contract.errors import InvalidRequestError
from modelyard.contract.messages import MAX_BATCH_BYTES
from modelyard.contract.strict_json import JsonValue, parse_json

Listed = list[dict[str, JsonValue]]
_FIELDS = ("operation_id", "epoch", "state")


def listed(payload: bytes, name: str) -> Listed:
    """Return the objects in the list `name` of a message, reduced to the fields of an attempt.

    The result is empty if the message can't be read.
    """
    try:
        message = parse_json(payload, max_bytes=MAX_BATCH_BYTES)
    except InvalidRequestError:
        return []
    found = message.get(name) if isinstance(message, dict) else None
    objects = found if isinstance(found, list) else []
    return [
        {field: one.get(field) for field in _FIELDS} for one in objects if isinstance(one, dict)
    ]
