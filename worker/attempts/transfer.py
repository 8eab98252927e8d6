"""How an attempt gets a large input and hands over a large result."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from modelyard.contract.content.transfers import StoredResult
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand


@dataclass(frozen=True, slots=True)
class UploadedInput:
    """An input as its client has uploaded it, read once, as it is needed."""

    content_type: str
    size: int
    """Bytes of all pieces."""
    pieces: AsyncIterator[bytes]
    """Raises `input_gone`, also after some of them."""


class ContentTransfer(Protocol):
    """Transfers large content for the attempts of one incarnation. The caller limits the time."""

    async def receive(self, command: HostCommand) -> UploadedInput:
        """Return the uploaded input of a command; raises `input_gone`."""

    async def send(
        self, command: HostCommand, content_type: str, pieces: AsyncIterator[bytes]
    ) -> StoredResult:
        """Hand over the result of a command; return once all of it is stored.

        Each piece but the last one has `PIECE_BYTES`; the next is taken once one is stored.
        """


class NoTransfer:
    """For attempts that nobody is connected to."""

    async def receive(self, command: HostCommand) -> UploadedInput:
        """Raise `input_gone`."""
        raise ModelyardError(ErrorCode.INPUT_GONE, input_id=command.input_id)

    async def send(
        self, command: HostCommand, content_type: str, pieces: AsyncIterator[bytes]
    ) -> StoredResult:
        """Raise `worker_error`."""
        del content_type, pieces
        raise ModelyardError(ErrorCode.WORKER_ERROR, operation_id=command.operation_id)
