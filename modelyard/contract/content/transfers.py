"""Large inputs and results on their way between a worker and the dispatcher, piece by piece.

A worker has no access to MongoDB. It sends a piece of a result, or asks for a piece of an input,
and the dispatcher answers; without an answer the worker does the same again. Only then follows the
next piece, so of each transfer at most one piece is in RabbitMQ.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelyard.contract.content.media_types import MediaType
from modelyard.contract.content.results import Base64
from modelyard.contract.ids import Id, Incarnation, OperationId

MAX_CONTENT_BYTES = 64 << 20
"""An input that is uploaded, or a result."""
PIECE_BYTES = 255 << 10
"""Bytes of each piece but the last one."""
MAX_PIECES = -(-MAX_CONTENT_BYTES // PIECE_BYTES)


class TransferMessage(BaseModel):
    """What the messages of this module share."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True
    )


class StoredResult(TransferMessage):
    """A result whose pieces are all stored, in the report of the end."""

    content_type: MediaType
    size: int = Field(gt=0, le=MAX_CONTENT_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PieceOfResult(TransferMessage):
    """Worker to dispatcher: one piece of a result."""

    content: Base64 = Field(max_length=PIECE_BYTES)


class WorkerTransfer(TransferMessage):
    """Worker to dispatcher: a piece of an attempt's result, or the wish for one of its input."""

    schema_version: Literal[1] = 1
    host_id: Id
    incarnation: Incarnation
    job_id: Id
    operation_id: OperationId
    epoch: int = Field(ge=1, le=(1 << 63) - 1)
    number: int = Field(ge=0, lt=MAX_PIECES)
    """Of the piece; the first one is 0."""
    result: PieceOfResult | None = None
    """Null: a piece of the input is wanted."""


class TransferAnswer(TransferMessage):
    """Dispatcher to worker: a piece of a result is stored, or a piece of an input."""

    operation_id: OperationId
    epoch: int
    number: int
    stored: bool = False
    """True: the piece of the result is stored. The other fields are about an input."""
    content_type: str | None = None
    """Of the input; null: it is gone."""
    size: int = 0
    """Bytes of the whole input."""
    content: Base64 = b""
