"""Files in the form of GridFS, written a piece at a time; each write may be made again.

The driver's own upload keeps 32 MiB in memory, and leaves pieces behind without a file if it is cut
short. Here the file is noted before its first piece, so whatever was begun can be found.
Source of the form: MongoDB's GridFS specification.
"""

from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from pydantic import Field

from modelyard.contract.content.media_types import JSON_TYPE
from modelyard.contract.content.transfers import MAX_PIECES, PIECE_BYTES
from modelyard.store.connection import MongoConnection
from modelyard.store.operation_writes import older
from modelyard.store.records import Document, Record


class StoredFile(Record):
    """What is known of a file."""

    file_id: str = Field(alias="_id")
    length: int = 0
    piece_bytes: int = Field(default=PIECE_BYTES, alias="chunkSize")
    content_type: str = JSON_TYPE
    sha256: str | None = None
    tenant: str | None = None
    complete: bool = True
    """False until `finish`; files of older versions are complete."""

    @property
    def pieces(self) -> int:
        """How many pieces it has."""
        return -(-self.length // self.piece_bytes)


class StoredFiles:
    """The files of one bucket. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection, bucket: str) -> None:
        self._connection = connection
        self._files = connection.collection(f"{bucket}.files")
        self._pieces = connection.collection(f"{bucket}.chunks")

    async def begin(self, file_id: str, content_type: str, *, tenant: str | None = None) -> None:
        """Note a file that is about to be written; a file that is noted stays as it is."""
        new = {
            "length": 0,
            "chunkSize": PIECE_BYTES,
            "filename": file_id,
            "content_type": content_type,
            "tenant": tenant,
            "complete": False,
            "unused": True,
        }
        stage: dict[str, Any] = {
            name: {"$ifNull": [f"${name}", {"$literal": value}]} for name, value in new.items()
        }
        stage["uploadDate"] = {"$ifNull": ["$uploadDate", "$$NOW"]}
        async with self._connection.answering():
            await self._files.update_one({"_id": file_id}, [{"$set": stage}], upsert=True)

    async def write(self, file_id: str, number: int, content: bytes) -> None:
        """Write one piece; numbers begin with 0."""
        piece = {"files_id": file_id, "n": number, "data": content, "bytes": len(content)}
        async with self._connection.answering():
            await self._pieces.update_one(
                {"_id": f"{file_id}/{number}"}, {"$set": piece}, upsert=True
            )

    async def finish(self, file_id: str, length: int, sha256: str) -> bool:
        """Note that all pieces are there; return False if there is no such file any more."""
        done = {"length": length, "sha256": sha256, "complete": True}
        async with self._connection.answering():
            found = await self._files.update_one({"_id": file_id}, {"$set": done})
        return found.matched_count == 1

    async def find(self, file_id: str) -> StoredFile | None:
        """Return what is known of a file."""
        async with self._connection.answering():
            found = await self._files.find_one({"_id": file_id})
        return StoredFile.model_validate(found) if found else None

    async def touch(self, file_ids: AbstractSet[str], *, tenant: str) -> set[str]:
        """Begin the time of files again, as if they were new; return those that are not complete.

        A file of another tenant counts as one that is not there.
        """
        query = {"_id": {"$in": sorted(file_ids)}, "tenant": tenant, "complete": True}
        again = [{"$set": {"uploadDate": "$$NOW", "unused": True}}]
        async with self._connection.answering():
            touched = await self._files.update_many(query, again)
            if touched.matched_count == len(file_ids):
                return set()
            found = await self._files.find(query, {"_id": 1}).to_list(None)
        return set(file_ids) - {one["_id"] for one in found}

    async def sizes(self, file_id: str) -> list[int] | None:
        """Return the bytes of each piece, in order; None if one before the last is missing."""
        async with self._connection.answering():
            found = await self._pieces.find(
                {"files_id": file_id}, {"n": 1, "bytes": 1}, limit=MAX_PIECES + 1
            ).to_list(None)
        sizes = {one["n"]: one.get("bytes", 0) for one in found}
        return [sizes[n] for n in sorted(sizes)] if sizes.keys() == {*range(len(found))} else None

    async def piece(self, file_id: str, number: int) -> bytes | None:
        """Return one piece; None if there is none."""
        async with self._connection.answering():
            found = await self._pieces.find_one({"files_id": file_id, "n": number}, {"data": 1})
        return None if found is None else bytes(found["data"])

    async def read(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Yield the pieces in order; end early if one is missing."""
        for number in range(file.pieces):
            # The deadline is for MongoDB; the reader may take longer.
            content = await self.piece(file.file_id, number)
            if content is None:
                return
            yield content

    async def delete(self, file_id: str) -> None:
        """Delete a file. What a crash leaves of it can be deleted again: the file goes last."""
        async with self._connection.answering(timeout_s=30.0):
            await self._pieces.delete_many({"files_id": file_id})
            await self._files.delete_one({"_id": file_id})

    async def of(self, owners: Sequence[str]) -> list[str]:
        """Return the files whose ids begin with one of these, and a colon."""
        if not owners:
            return []
        query = {"$or": [{"_id": {"$gt": f"{one}:", "$lt": f"{one};"}} for one in owners]}
        async with self._connection.answering():
            found = await self._files.find(query, {"_id": 1}).to_list(None)
        return [one["_id"] for one in found]

    async def unused(self, seconds: float, *, limit: int) -> list[str]:
        """Return files that nothing was found to use, and whose time began so long ago.

        Those come first whose time began first.
        """
        query = {"unused": True, "$expr": older("$uploadDate", seconds)}
        async with self._connection.answering():
            cursor = self._files.find(query, {"_id": 1}).sort("uploadDate", 1).limit(limit)
            found = await cursor.to_list(None)
        return [one["_id"] for one in found]

    async def postpone(self, file_ids: Sequence[str]) -> None:
        """Begin the time of files again: something may still come to use them."""
        async with self._connection.answering():
            await self._files.update_many(
                {"_id": {"$in": list(file_ids)}}, [{"$set": {"uploadDate": "$$NOW"}}]
            )

    async def used(self, file_ids: Sequence[str]) -> None:
        """Note that something uses these files, so that they are not looked at again."""
        async with self._connection.answering():
            await self._files.update_many(
                {"_id": {"$in": list(file_ids)}}, {"$set": {"unused": False}}
            )

    async def delete_unused(self, file_id: str, seconds: float) -> None:
        """Delete a file unless it was touched since it was found unused."""
        await self._delete_old(file_id, seconds, {"unused": True})

    async def release(self, file_id: str, seconds: float) -> None:
        """Delete a file that its last user leaves; if it was touched within `seconds`, keep it.

        Somebody may be about to use it. `unused` returns it when that time has passed.
        """
        if not await self._delete_old(file_id, seconds, {}):
            async with self._connection.answering():
                await self._files.update_one({"_id": file_id}, {"$set": {"unused": True}})

    async def _delete_old(self, file_id: str, seconds: float, criteria: Document) -> bool:
        query = {"_id": file_id, "$expr": older("$uploadDate", seconds), **criteria}
        async with self._connection.answering(timeout_s=30.0):
            # Nobody can use it from here on; its pieces go while the file still says that they are.
            found = await self._files.update_one(query, {"$set": {"complete": False}})
            if found.matched_count == 0:
                return False
            await self._pieces.delete_many({"files_id": file_id})
            await self._files.delete_one({"_id": file_id})
        return True
