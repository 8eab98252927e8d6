"""Removes stored inputs and results: with their operations, and those that nothing refers to."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.store.connection import MongoConnection
from modelyard.store.content.files import StoredFiles
from modelyard.store.content.inputs import KEPT_S
from modelyard.store.records import Document

LOOKED_AT_S = 60.0
"""Seconds between two looks at a file of a result that an open operation may still refer to."""
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
        self._over: frozenset[str] = frozenset()
        """Files of results that the last look found to be of no use, now or ever."""

    async def delete_of(self, operation_ids: Sequence[str], *, kept_s: float = KEPT_S) -> None:
        """Delete the stored inputs and results of operations that are about to be deleted.

        To be called before their documents go: after a crash in between it is called again. An
        input that another operation names stays, and for `kept_s` seconds one that was uploaded or
        kept for a request: the operation of that may not be recorded yet.
        """
        ids = list(operation_ids)
        found = await self._found({"_id": {"$in": ids}})
        await self._delete_results(ids, found)
        for input_id in {one["input_id"] for one in found if one.get("input_id")}:
            if not await self._is_named(input_id, but_by=ids):
                await self._inputs.release(input_id, kept_s)

    async def delete_results_of(self, operation_ids: Sequence[str]) -> None:
        """Delete the stored results of operations that stay; to be called as `delete_of`."""
        ids = list(operation_ids)
        await self._delete_results(ids, await self._found({"_id": {"$in": ids}}))

    async def _delete_results(self, ids: Sequence[str], found: Sequence[Document]) -> None:
        """Delete the results, and what attempts have left of others."""
        results = {one["result_file"] for one in found if one.get("result_file")}
        for file_id in sorted(results.union(await self._results.of(ids))):
            await self._results.delete(file_id)

    async def remove_orphans(
        self, *, kept_s: float = KEPT_S, looked_at_s: float = LOOKED_AT_S
    ) -> int:
        """Remove inputs older than `kept_s` that no operation names, and results of no use.

        Return how many. The operations of results that are removed have ended without them, or have
        a later attempt. To be called every `looked_at_s` seconds or more rarely. A file that is in
        use is not looked at again: it goes with its operation.
        """
        return await self._remove_results(looked_at_s) + await self._remove_inputs(kept_s)

    async def _remove_results(self, looked_at_s: float) -> int:
        files = await self._results.unused(looked_at_s, limit=_AT_ONCE)
        found = await self._found({"_id": {"$in": sorted(set(map(_owner_of, files)))}})
        operations = {one["_id"]: one for one in found}
        used, awaited, over = [], [], set[str]()
        for file_id in files:
            operation = operations.get(_owner_of(file_id), {})
            if operation.get("result_file") == file_id:
                used.append(file_id)
            elif _may_come(file_id, operation):
                awaited.append(file_id)
            else:
                over.add(file_id)
        if awaited:
            await self._results.postpone(awaited)
        # Only at the second look: a piece of an attempt that has just ended may be being written,
        # and without its file nobody would find it.
        orphans, self._over = over & self._over, frozenset(over - self._over)
        return await self._settle(self._results, used, sorted(orphans), looked_at_s)

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
        fields = {"result_file": 1, "open": 1, "epoch": 1, "input_id": 1}
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


def _owner_of(file_id: str) -> str:
    """Return the operation of a result's file."""
    return file_id.partition(":")[0]


def _may_come(file_id: str, operation: Document) -> bool:
    """Tell whether a report may still refer to a file: that of the attempt that the record has."""
    return bool(operation.get("open")) and file_id.split(":")[1:2] == [str(operation.get("epoch"))]
