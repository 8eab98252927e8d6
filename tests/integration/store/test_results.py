"""Large results of which an upload is cut short, or goes on when another one was recorded."""

import asyncio
import uuid
from typing import Any, cast

import pytest
from motor.motor_asyncio import AsyncIOMotorGridFSBucket

from modelyard.contract.messages import MAX_RESULT_BYTES, JobRequest, OperationReport
from modelyard.contract.states import OperationState, Verb
from modelyard.store import Store
from modelyard.store.operation_writes import DispatchClaim, ResultPlace
from modelyard.store.records import NewOperation
from modelyard.store.results import Results

ONE = str(uuid.UUID(int=1))
OURS, THEIRS = (f'"{letter * (MAX_RESULT_BYTES - 2)}"' for letter in "ab")


class Halting:
    """A real bucket whose first upload stops halfway, with that half in MongoDB."""

    def __init__(self, bucket: AsyncIOMotorGridFSBucket) -> None:
        self._bucket = bucket
        self.halfway = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    async def upload_from_stream_with_id(
        self, file_id: str, filename: str, source: bytes, *, chunk_size_bytes: int
    ) -> None:
        stream = self._bucket.open_upload_stream_with_id(
            file_id, filename, chunk_size_bytes=chunk_size_bytes
        )
        if not self.halfway.is_set():
            half = len(source) // 2
            await stream.write(source[:half])
            self.halfway.set()
            await self.go_on.wait()
            source = source[half:]
        await stream.write(source)
        await stream.close()


@pytest.fixture
def bucket(store: Store, monkeypatch: pytest.MonkeyPatch) -> Halting:
    # The driver keeps 32 MiB back before it writes; so each chunk is in MongoDB when it is full.
    monkeypatch.setattr("gridfs.synchronous.grid_file._UPLOAD_BUFFER_CHUNKS", 1)
    return Halting(AsyncIOMotorGridFSBucket(store._connection.database, bucket_name="results"))


async def halfway(
    store: Store, bucket: Halting, text: str
) -> tuple[Results, asyncio.Task[ResultPlace]]:
    """Return another process's results, and its upload that has stopped halfway."""
    slow = cast("AsyncIOMotorGridFSBucket", bucket)
    results = Results(store._connection, store.operation_queries, bucket=slow)
    storing = asyncio.create_task(results.put(ONE, 1, text))
    async with asyncio.timeout(10):
        await bucket.halfway.wait()
    assert await store._connection.database["results.chunks"].count_documents({}) == 2
    return results, storing


async def cut_short(storing: asyncio.Task[ResultPlace]) -> None:
    storing.cancel()
    await asyncio.wait([storing])
    assert storing.cancelled()


async def recorded(store: Store, place: ResultPlace) -> None:
    """Record the operation's end with its result in this place."""
    request = JobRequest(job_id="j", operation_type=Verb.TERMINATE)
    operation = NewOperation.of(ONE, request, "http")
    await store.operations.take_in([(operation, 1)])
    assert await store.operations.claim(
        [DispatchClaim(operation.queued(1), "h", "boot", 1)], token=uuid.uuid4().hex
    )
    end = OperationReport(
        operation_id=ONE,
        epoch=1,
        seq=1,
        job_id="j",
        generation=1,
        state=OperationState.SUCCEEDED,
    )
    assert await store.operations.apply([end], {ONE: place}) == 1


async def text_of(store: Store) -> str:
    chunks = await store.results.get(ONE)
    assert chunks is not None
    return b"".join([chunk async for chunk in chunks]).decode()


async def test_an_upload_of_another_process_that_ends_late_spoils_nothing(
    store: Store, bucket: Halting
) -> None:
    _, storing = await halfway(store, bucket, THEIRS)
    place = await store.results.put(ONE, 1, OURS)
    await recorded(store, place)
    assert await text_of(store) == OURS
    bucket.go_on.set()
    assert await storing != place
    assert await text_of(store) == OURS


async def test_what_another_process_left_halfway_is_in_nobodys_way(
    store: Store, bucket: Halting
) -> None:
    _, storing = await halfway(store, bucket, THEIRS)
    await cut_short(storing)
    await recorded(store, await store.results.put(ONE, 1, OURS))
    assert await text_of(store) == OURS


async def test_an_upload_that_was_cut_short_is_made_again_by_the_same_process(
    store: Store, bucket: Halting
) -> None:
    results, storing = await halfway(store, bucket, OURS)
    await cut_short(storing)
    await recorded(store, await results.put(ONE, 1, OURS))
    assert await text_of(store) == OURS
