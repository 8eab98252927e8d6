"""Removes stored inputs and results: with their operations, and those that a crash left."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.store.connection import MongoConnection
from modelyard.store.content.files import StoredFiles
from modelyard.store.content.inputs import KEPT_S
from modelyard.store.records import Document

_AT_ONCE = 500
"""Files of each kind that one call looks at."""


class ContentRetention:
    """Which files are still of use. Every method raises `StoreUnavailableError`."""

    def __init__(
        self, connection: MongoConnection, *, results: StoredFiles, inputs: StoredFiles
    ) -> None:
        self._connection = connection
        self._operations = connection.collection("operations")
        self._results = results
        self._inputs = inputs

    async def delete_of(self, operation_ids: Sequence[str], *, kept_s: float = KEPT_S) -> None:
        """Delete the stored inputs and results of operations that are about to be deleted.

        To be called before their documents go: after a crash in between it is called again. An
        input that another operation names stays, and for `kept_s` seconds one that was uploaded or
        kept for a request: the operation of that may not be recorded yet.
        """
        ids = list(operation_ids)
        found = await self._found({"_id": {"$in": ids}})
        await self._delete_results(found)
        for input_id in {one["input_id"] for one in found if one.get("input_id")}:
            if not await self._is_named(input_id, but_by=ids):
                await self._inputs.release(input_id, kept_s)

    async def delete_results_of(self, operation_ids: Sequence[str]) -> None:
        """Delete the stored results of operations that stay; to be called as `delete_of`."""
        await self._delete_results(await self._found({"_id": {"$in": list(operation_ids)}}))

    async def _delete_results(self, found: Sequence[Document]) -> None:
        for one in found:
            if one.get("result_file"):
                await self._results.delete(one["result_file"])

    async def remove_orphans(self, *, kept_s: float = KEPT_S) -> int:
        """Remove files that are older than `kept_s` and of no operation; return how many.

        Each file is looked at once: one that is in use goes with its operation.
        """
        return await self._remove_results(kept_s) + await self._remove_inputs(kept_s)

    async def _remove_results(self, kept_s: float) -> int:
        files = await self._results.unused(kept_s, limit=_AT_ONCE)
        owners = {file_id: file_id.partition(":")[0] for file_id in files}
        found = await self._found({"_id": {"$in": sorted(set(owners.values()))}})
        operations = {one["_id"]: one for one in found}
        used, orphans = [], []
        for file_id, operation_id in owners.items():
            operation = operations.get(operation_id, {})
            if operation.get("result_file") == file_id:
                used.append(file_id)
            elif not operation.get("open"):  # else the report that refers to it may still come
                orphans.append(file_id)
        return await self._settle(self._results, used, orphans, kept_s)

    async def _remove_inputs(self, kept_s: float) -> int:
        files = await self._inputs.unused(kept_s, limit=_AT_ONCE)
        async with self._connection.answering():
            # However many operations name one of them.
            found = await self._operations.aggregate(
                [{"$match": {"input_id": {"$in": files}}}, {"$group": {"_id": "$input_id"}}]
            ).to_list(None)
        named = {one["_id"] for one in found}
        used = [one for one in files if one in named]
        orphans = [one for one in files if one not in named]
        return await self._settle(self._inputs, used, orphans, kept_s)

    async def _found(self, query: Mapping[str, Any]) -> list[Document]:
        fields = {"result_file": 1, "open": 1, "input_id": 1}
        async with self._connection.answering():
            return await self._operations.find(query, fields).to_list(None)

    async def _settle(
        self, files: StoredFiles, used: Sequence[str], orphans: Sequence[str], kept_s: float
    ) -> int:
        if used:
            await files.used(used)
        for file_id in orphans:
            await files.delete_unused(file_id, kept_s)
        return len(orphans)

    async def _is_named(self, input_id: str, *, but_by: Sequence[str]) -> bool:
        async with self._connection.answering():
            found = await self._operations.find_one(
                {"input_id": input_id, "_id": {"$nin": list(but_by)}}, {"_id": 1}
            )
        return found is not None
