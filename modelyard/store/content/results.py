"""Results: small ones in the operation's document, larger ones in files."""

import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

from modelyard.contract.content.media_types import JSON_TYPE
from modelyard.contract.content.results import ResultContent
from modelyard.contract.content.transfers import PIECE_BYTES, StoredResult
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_INLINE_RESULT_BYTES
from modelyard.store.content.files import StoredFiles
from modelyard.store.operation_queries import OperationQueries
from modelyard.store.operation_writes import ResultPlace

BUCKET = "results"


class Results:
    """The stored results. Every method raises `StoreUnavailableError`."""

    def __init__(self, files: StoredFiles, queries: OperationQueries) -> None:
        self._files = files
        self._queries = queries
        self._writer = uuid.uuid4().hex[:12]
        """Part of a file's name: processes never share a file, so a slow one can't damage it."""

    async def put(self, operation_id: str, epoch: int, result: str | ResultContent) -> ResultPlace:
        """Store a result and return where; storing the same again changes nothing.

        A small one is not written here: it is in what is returned, and so in the write of its
        operation. A text is JSON.
        """
        text = result if isinstance(result, str) else None
        content = result.encode() if isinstance(result, str) else result.content
        place = ResultPlace(
            content_type=JSON_TYPE if isinstance(result, str) else result.content_type,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        if len(content) <= MAX_INLINE_RESULT_BYTES:
            inline = None if text is not None else content
            return replace(place, inline_json=text, inline_content=inline)
        file_id = f"{operation_id}:{epoch}:{self._writer}"
        await self._files.begin(file_id, place.content_type)
        for number, start in enumerate(range(0, len(content), PIECE_BYTES)):
            await self._files.write(file_id, number, content[start : start + PIECE_BYTES])
        await self._files.finish(file_id, place.size, place.sha256 or "")
        return replace(place, file_id=file_id)

    async def put_piece(self, operation_id: str, epoch: int, number: int, content: bytes) -> None:
        """Store a piece of a result that comes in pieces; 0 has to be the first."""
        file_id = file_of(operation_id, epoch)
        if number == 0:
            await self._files.begin(file_id, JSON_TYPE)
        await self._files.write(file_id, number, content)

    async def complete(
        self, operation_id: str, epoch: int, told: StoredResult
    ) -> ResultPlace | None:
        """Return where a result is that came in pieces; None if these are not just the result."""
        file_id = file_of(operation_id, epoch)
        full, rest = divmod(told.size, PIECE_BYTES)
        expected = [PIECE_BYTES] * full + [rest] * bool(rest)
        if await self._files.sizes(file_id) != expected:
            return None
        if not await self._files.finish(file_id, told.size, told.sha256):
            return None
        return ResultPlace(
            content_type=told.content_type, size=told.size, sha256=told.sha256, file_id=file_id
        )

    async def get(self, operation_id: str) -> AsyncIterator[bytes] | None:
        """Return an operation's result in chunks, or null if it has none."""
        place = await self._queries.result(operation_id)
        if place is None:
            return None
        if place.inline_json is not None:
            return _one(place.inline_json.encode())
        if place.inline_content is not None:
            return _one(place.inline_content)
        return self._stream(place.file_id or "")

    async def _stream(self, file_id: str) -> AsyncIterator[bytes]:
        file = await self._files.find(file_id)
        left = file.length if file is not None else 1
        if file is not None:
            async for piece in self._files.read(file):
                left -= len(piece)
                yield piece
        if left:
            raise ModelyardError(ErrorCode.INTERNAL, "The stored result is gone.")


def file_of(operation_id: str, epoch: int) -> str:
    """Return the file of a result that comes in pieces: of one attempt, so from one worker."""
    return f"{operation_id}:{epoch}"


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content
