"""Decodes messages: small ones here, large ones in the body process.

A large message would block the event loop while it is parsed.
"""

import json
from collections.abc import Iterator

from pydantic import BaseModel

from dispatcher.intake.content import is_packed
from dispatcher.intake.decode import (
    UnreadableMessage,
    decode_arguments,
    decode_delivery,
    refused_content,
)
from dispatcher.intake.listed import Listed, listed
from modelyard.broker import MAX_HEADER_BYTES, MAX_HEADER_VALUES, Delivery
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import MAX_BATCH_BYTES
from modelyard.process.body_child import Part
from modelyard.process.body_process import LARGE_BODY_BYTES, BodyProcess
from modelyard.store.records import NewOperation

MODULE = "dispatcher.body_child"
_HEADERS_NOT_READ = ErrorInfo(
    code=ErrorCode.INVALID_REQUEST,
    message=(
        "Not all headers of the message could be read. The headers may hold at most"
        f" {MAX_HEADER_VALUES} values and {MAX_HEADER_BYTES} bytes, of AMQP's types only."
    ),
)


class DecodedOperation(BaseModel):
    """One operation of a message, or the reason why the whole message can't be read.

    The body process returns it to the dispatcher.
    """

    operation: NewOperation | None = None
    has_input: bool = False
    unreadable: ErrorInfo | None = None


class MessageDecoder:
    """Decodes the messages of one dispatcher."""

    def __init__(self) -> None:
        self._process = BodyProcess(MODULE)

    async def close(self) -> None:
        """End the body process."""
        await self._process.close()

    async def decode(
        self, delivery: Delivery, *, fallback_key: str | None = None, trusted: bool
    ) -> list[NewOperation] | UnreadableMessage:
        """Return the operations that a message requests, as `decode_delivery` does."""
        if delivery.cut:
            return UnreadableMessage(too_large(delivery))
        if delivery.headers_cut:
            # The idempotency key may be missing: each redelivery would become a new operation.
            return UnreadableMessage(_HEADERS_NOT_READ)
        refused = refused_content(delivery)
        if refused is not None:
            return refused
        encoding = delivery.properties.content_encoding
        # A packed body of any size may be a large one.
        if len(delivery.body) < LARGE_BODY_BYTES and not is_packed(encoding):
            return decode_delivery(delivery, fallback_key=fallback_key, trusted=trusted)
        arguments = decode_arguments(delivery, fallback_key=fallback_key, trusted=trusted)
        more = {"content_encoding": encoding, **arguments}
        return unpack(await self._process.ask("decode", more, delivery.body))

    async def listed(self, payload: bytes, name: str) -> Listed:
        """Return the objects in the list `name` of a message; none if it can't be read."""
        if len(payload) < LARGE_BODY_BYTES:
            return listed(payload, name)
        [(found, _)] = await self._process.ask("listed", {"name": name}, payload)
        objects: Listed = json.loads(found)["listed"]
        return objects


def too_large(delivery: Delivery) -> ErrorInfo:
    """Return the error for a message that was cut off because it is too large."""
    message = f"The message has {delivery.size} bytes; at most {MAX_BATCH_BYTES} are allowed."
    return ErrorInfo(code=ErrorCode.BODY_TOO_LARGE, message=message)


def pack(decoded: list[NewOperation] | UnreadableMessage) -> Iterator[Part]:
    """Yield operations in the form that the body process returns; inputs go beside them."""
    if isinstance(decoded, UnreadableMessage):
        yield DecodedOperation(unreadable=decoded.error).model_dump_json().encode(), b""
        return
    for operation in decoded:
        transfer = DecodedOperation(
            operation=operation.model_copy(update={"input_json": None}),
            has_input=operation.input_json is not None,
        )
        header = transfer.model_dump_json(exclude_defaults=True).encode()
        yield header, (operation.input_json or "").encode()


def unpack(parts: list[Part]) -> list[NewOperation] | UnreadableMessage:
    """Return what `pack` was given."""
    operations: list[NewOperation] = []
    for header, input_json in parts:
        transfer = DecodedOperation.model_validate_json(header)
        if transfer.unreadable is not None:
            return UnreadableMessage(transfer.unreadable)
        if transfer.operation is not None:
            update = {"input_json": input_json.decode()} if transfer.has_input else {}
            operations.append(transfer.operation.model_copy(update=update))
    return operations
