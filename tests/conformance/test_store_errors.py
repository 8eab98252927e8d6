"""What MongoDB's errors become, made by a real server that is told to fail."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from pymongo import InsertOne, MongoClient, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from deploy.local import mongodb as local_mongodb
from deploy.local.mongodb import MongoDB
from modelyard.contract.errors import (
    ErrorCode,
    ModelyardError,
    SlowQueryError,
    StoreUnavailableError,
    StoreUnreadableError,
)
from modelyard.contract.messages import MAX_INLINE_RESULT_BYTES, JobRequest
from modelyard.store import Store
from modelyard.store.connection import Collection, MongoConnection
from modelyard.store.records import Document, NewOperation

APP = "modelyard-failing"
TIMEOUT_S = 3.0
"""The driver tries some of the failures again until this time is over."""
ID = "00000000-0000-7000-8000-000000000001"


def _new_operation() -> NewOperation:
    request = JobRequest.model_validate({"job_id": "j", "operation_type": "TERMINATE"})
    return NewOperation.of(ID, request, "http")


@pytest.fixture(scope="module")
def failing_mongodb(data: Path) -> Iterator[MongoDB]:
    """Start a MongoDB that takes `configureFailPoint`."""
    with pytest.MonkeyPatch.context() as patch:
        options = (*local_mongodb._OPTIONS, ("--setParameter", "enableTestCommands=1"))
        patch.setattr(local_mongodb, "_OPTIONS", options)
        server = MongoDB(data / "failing-mongodb")
        server.start()
    yield server
    server.stop()


class FailPoint:
    """Makes the server fail commands of our own connection."""

    def __init__(self, url: str) -> None:
        self._client: MongoClient[dict[str, Any]] = MongoClient(url)

    def fail(self, command: str, **how: Any) -> None:
        self._set("alwaysOn", failCommands=[command], appName=APP, **how)

    def off(self) -> None:
        self._set("off")
        self._client.close()

    def _set(self, mode: str, **how: Any) -> None:
        self._client.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": how})


@pytest.fixture
def fail_point(failing_mongodb: MongoDB) -> Iterator[FailPoint]:
    made = FailPoint(failing_mongodb.url)
    yield made
    made.off()


@pytest.fixture
async def connection(failing_mongodb: MongoDB) -> AsyncIterator[MongoConnection]:
    made = MongoConnection(failing_mongodb.url, name="failing", timeout_s=TIMEOUT_S)
    await made.collection("things").drop()
    yield made
    made.close()


@pytest.fixture
def things(connection: MongoConnection) -> Collection:
    return connection.collection("things")


NOT_NOW = {
    43: "CursorNotFound",
    50: "MaxTimeMSExpired",
    91: "ShutdownInProgress",
    112: "WriteConflict",
    175: "QueryPlanKilled",
    189: "PrimarySteppedDown",
    237: "CursorKilled",
    262: "ExceededTimeLimit",
    10107: "NotWritablePrimary",
    11600: "InterruptedAtShutdown",
    11601: "Interrupted",
    11602: "InterruptedDueToReplStateChange",
    13436: "NotPrimaryOrSecondary",
    14031: "OutOfDiskSpace",
}


@pytest.mark.parametrize("code", NOT_NOW, ids=NOT_NOW.get)
async def test_a_read_that_fails_for_now_is_an_unavailable_store(
    connection: MongoConnection, things: Collection, fail_point: FailPoint, code: int
) -> None:
    fail_point.fail("find", errorCode=code)
    with pytest.raises(StoreUnavailableError):
        async with connection.answering():
            await things.find_one({})


async def test_a_document_that_cant_be_decoded_is_an_error_of_ours(
    connection: MongoConnection, failing_mongodb: MongoDB
) -> None:
    broken = bson.encode({"_id": 1, "text": "xx"}).replace(b"xx", b"\xff\xff")
    with MongoClient[RawBSONDocument](failing_mongodb.url, document_class=RawBSONDocument) as raw:
        raw.get_database(connection.database.name)["things"].insert_one(RawBSONDocument(broken))
    with pytest.raises(StoreUnreadableError):
        async with connection.answering():
            await connection.collection("things").find_one({})


@pytest.mark.parametrize("code", [43, 91, 112, 11601, 14031])
async def test_a_write_that_fails_for_now_is_an_unavailable_store(
    connection: MongoConnection, things: Collection, fail_point: FailPoint, code: int
) -> None:
    fail_point.fail("update", errorCode=code)
    with pytest.raises(StoreUnavailableError):
        async with connection.answering():
            await things.update_one({"_id": 1}, {"$set": {"a": 1}}, upsert=True)
    with pytest.raises(StoreUnavailableError):
        async with connection.answering():
            await things.bulk_write([UpdateOne({"_id": 1}, {"$set": {"a": 1}}, upsert=True)])


@pytest.mark.parametrize("code", [64, 91, 189, 11602])
async def test_a_bulk_write_that_is_not_known_to_last_is_an_unavailable_store(
    connection: MongoConnection, things: Collection, fail_point: FailPoint, code: int
) -> None:
    fail_point.fail("update", writeConcernError={"code": code, "errmsg": "not durable yet"})
    with pytest.raises(StoreUnavailableError):
        async with connection.answering():
            await things.bulk_write([UpdateOne({"_id": 1}, {"$set": {"a": 1}}, upsert=True)])


async def test_duplicates_alone_are_an_answer(
    connection: MongoConnection, things: Collection
) -> None:
    await things.insert_one({"_id": 1})
    with pytest.raises(DuplicateKeyError):
        async with connection.answering():
            await things.insert_one({"_id": 1})
    with pytest.raises(BulkWriteError):
        async with connection.answering():
            await things.bulk_write([InsertOne({"_id": 1}), InsertOne({"_id": 2})], ordered=False)


async def test_duplicates_beside_a_write_that_may_not_last_are_an_unavailable_store(
    connection: MongoConnection, things: Collection, fail_point: FailPoint
) -> None:
    await things.insert_one({"_id": 1})
    fail_point.fail("insert", writeConcernError={"code": 64, "errmsg": "timed out"})
    with pytest.raises(StoreUnavailableError):
        async with connection.answering():
            await things.bulk_write([InsertOne({"_id": 1}), InsertOne({"_id": 2})], ordered=False)


@pytest.mark.parametrize(
    ("errors", "unavailable"),
    [
        ({"writeErrors": [{"code": 11000}, {"code": 14031}]}, True),
        ({"writeErrors": [{"code": 112}]}, True),
        ({"writeConcernErrors": [{"code": 100, "errInfo": {"wtimeout": True}}]}, True),
        ({"writeErrors": [{"code": 11000}]}, False),
        ({"writeErrors": [{"code": 11000}, {"code": 121}]}, False),
    ],
)
async def test_each_error_of_a_bulk_write_counts(
    connection: MongoConnection, errors: dict[str, Any], *, unavailable: bool
) -> None:
    """No fail point fails a single statement: these are the driver's own errors."""
    with pytest.raises(StoreUnavailableError if unavailable else BulkWriteError):
        async with connection.answering():
            raise BulkWriteError(errors)


async def test_a_refusal_for_good_stays_what_it_is(
    connection: MongoConnection, things: Collection, fail_point: FailPoint
) -> None:
    fail_point.fail("find", errorCode=2)  # BadValue
    with pytest.raises(OperationFailure):
        async with connection.answering():
            await things.find_one({})


async def test_a_stored_result_whose_file_is_gone_is_said_to_be_gone(
    store: Store, mongo_url: str
) -> None:
    await store.operations.record([_new_operation()])
    place = await store.results.put(ID, 1, '"' + "x" * MAX_INLINE_RESULT_BYTES + '"')
    with MongoClient[dict[str, Any]](mongo_url) as client:
        database = client.get_default_database()
        database.operations.update_one(
            {"_id": ID}, {"$set": {"result_bytes": place.size, "result_file": place.file_id}}
        )
        database["results.files"].delete_many({})
    chunks = await store.results.get(ID)
    assert chunks is not None
    with pytest.raises(ModelyardError, match="gone") as raised:
        await anext(chunks)
    assert raised.value.code is ErrorCode.INTERNAL


async def test_a_result_that_is_stored_again_is_replaced(store: Store) -> None:
    large = '"' + "x" * MAX_INLINE_RESULT_BYTES + '"'
    assert await store.results.put(ID, 1, large) == await store.results.put(ID, 1, large)


async def test_a_page_that_takes_too_long_is_a_query_that_is_too_slow(
    failing_mongodb: MongoDB, fail_point: FailPoint
) -> None:
    store = Store(failing_mongodb.url, name="failing", timeout_s=TIMEOUT_S)
    fail_point.fail("find", errorCode=50)
    pages = (
        store.operation_queries.page({"model": "m"}, after=None, limit=1),
        store.jobs.page({}, after=None, limit=1),
        store.dead_letters.page({"reason": "r"}, after=None, limit=1),
        store.hosts.page(limit=1),
        store.models.page(limit=1),
    )
    for page in pages:
        with pytest.raises(SlowQueryError, match=r"within 1\.5 s"):
            await page
    store.close()


async def test_mongodb_ends_the_query_of_a_page(failing_mongodb: MongoDB) -> None:
    store = Store(failing_mongodb.url, name="failing", timeout_s=TIMEOUT_S)
    await store.operations.record([_new_operation()])
    with MongoClient[dict[str, Any]](failing_mongodb.url) as client:
        always: Document = {"configureFailPoint": "maxTimeAlwaysTimeOut", "mode": "alwaysOn"}
        client.admin.command(always)
        try:
            with pytest.raises(SlowQueryError, match="job_id"):
                await store.operation_queries.page({"verb": "TEMP"}, after=None, limit=1)
            assert await store.operation_queries.get(ID), "other reads have no such bound"
        finally:
            client.admin.command(always | {"mode": "off"})
    store.close()
