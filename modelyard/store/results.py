"""Results: small ones in the operation's document, larger ones in GridFS."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence

from gridfs.errors import FileExists, NoFile
from motor.motor_asyncio import AsyncIOMotorGridFSBucket

from modelyard.contract.errors import ErrorCode, ModelyardError, StoreUnavailableError
from modelyard.contract.messages import MAX_INLINE_RESULT_BYTES
from modelyard.store.connection import MongoConnection
from modelyard.store.operation_queries import OperationQueries
from modelyard.store.operation_writes import ResultPlace

CHUNK_BYTES = 255 << 10


class Results:
    """The stored results. Every method raises `StoreUnavailableError`."""

    def __init__(
        self,
        connection: MongoConnection,
        queries: OperationQueries,
        *,
        bucket: AsyncIOMotorGridFSBucket | None = None,
    ) -> None:
        """`bucket` stores the files; it is named `results` if none is given."""
        self._connection = connection
        self._queries = queries
        self._writer = uuid.uuid4().hex[:12]
        """Part of a file's name: processes never share a file, so a slow one can't damage it."""
        self._files = connection.collection("results.files")
        self._chunks = connection.collection("results.chunks")
        self._bucket = bucket or AsyncIOMotorGridFSBucket(
            connection.database, bucket_name="results"
        )

    async def put(self, operation_id: str, epoch: int, result_json: str) -> ResultPlace:
        """Store a result and return where; storing the same again changes nothing."""
        content = result_json.encode()
        if len(content) <= MAX_INLINE_RESULT_BYTES:
            return ResultPlace(result_json, None, len(content))
        file_id = f"{operation_id}:{epoch}:{self._writer}"
        async with self._connection.answering(timeout_s=30.0):
            try:
                await self._bucket.upload_from_stream_with_id(
                    file_id, _filename(operation_id), content, chunk_size_bytes=CHUNK_BYTES
                )
            except FileExists:
                # The report came before, and its upload may have been interrupted.
                await self._replace(file_id, operation_id, content)
        return ResultPlace(None, file_id, len(content))

    async def _replace(self, file_id: str, operation_id: str, content: bytes) -> None:
        try:
            with contextlib.suppress(
                NoFile
            ):  # the upload had written chunks and no file yet; this deletes them
                await self._bucket.delete(file_id)
            await self._bucket.upload_from_stream_with_id(
                file_id, _filename(operation_id), content, chunk_size_bytes=CHUNK_BYTES
            )
        except FileExists as error:
            message = "This process is still storing this result for an earlier report."
            raise StoreUnavailableError(message) from error

    async def delete(self, operation_ids: Sequence[str]) -> None:
        """Delete the files of operations, also those that only interrupted attempts have left.

        The chunks go first: a crash in between leaves a file that the next call finds.
        """
        names = [_filename(one) for one in operation_ids]
        async with self._connection.answering(timeout_s=30.0):
            found = await self._files.find({"filename": {"$in": names}}, {"_id": 1}).to_list(None)
            if found:
                file_ids = [one["_id"] for one in found]
                await self._chunks.delete_many({"files_id": {"$in": file_ids}})
                await self._files.delete_many({"_id": {"$in": file_ids}})

    async def get(self, operation_id: str) -> AsyncIterator[bytes] | None:
        """Return an operation's result as chunks of JSON text, or null if it has none."""
        place = await self._queries.result(operation_id)
        if place is None:
            return None
        if place.inline_json is not None:
            return _one(place.inline_json.encode())
        return self._stream(place.file_id or "")

    async def _stream(self, file_id: str) -> AsyncIterator[bytes]:
        try:
            async with self._connection.answering():
                stream = await self._bucket.open_download_stream(file_id)
            while True:
                # The deadline is for MongoDB; the reader of the stream may take longer.
                async with self._connection.answering():
                    chunk = await stream.readchunk()
                if not chunk:
                    return
                yield chunk
        except NoFile as error:
            raise ModelyardError(ErrorCode.INTERNAL, "The stored result is gone.") from error


def _filename(operation_id: str) -> str:
    return f"{operation_id}.json"


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content
