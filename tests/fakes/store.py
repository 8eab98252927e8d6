"""The real store over MongoDB in memory: its own writes and guards, another server."""

from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from gridfs.errors import FileExists, NoFile
from pymongo.errors import AutoReconnect

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.process.clock import RemoteClock
from modelyard.store import Store
from modelyard.store.api_keys import ApiKeys
from modelyard.store.capacity.footprints import Footprints
from modelyard.store.catalog import CatalogCollection
from modelyard.store.connection import Changes, Collection, MongoConnection, uncounted
from modelyard.store.deleting.deletions import Deletions
from modelyard.store.deleting.old_records import OldRecords
from modelyard.store.events import Audit, DeadLetters, Events
from modelyard.store.hosts import Hosts
from modelyard.store.jobs import Jobs
from modelyard.store.leases import Leases
from modelyard.store.operation_queries import OperationQueries
from modelyard.store.operations import Operations
from modelyard.store.queries.serving_jobs import ServingJobs
from modelyard.store.results import Results
from tests.fakes.broker_links import Call, Link
from tests.fakes.mongodb import MemoryCollection, MemoryDatabase

if TYPE_CHECKING:
    from motor.motor_asyncio import AsyncIOMotorGridFSBucket

FILES = "results.files"


class MemoryConnection(MongoConnection):
    """A connection to a `MemoryDatabase`; deadlines and errors are those of the real one."""

    def __init__(self, database: MemoryDatabase, link: Link, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._call_ended = uncounted
        self.changes = Changes()
        self._clock = RemoteClock()
        self.memory = database
        self.link = link

    def collection(self, name: str) -> Collection:
        return cast("Collection", MemoryCollection(self.memory, self.link, name))

    async def ping(self) -> None:
        async with self.answering():
            await self.link.back(await self.link.there())

    async def _asked_time(self) -> datetime:
        fate = await self.link.there(Call.READ)
        now = self.memory.now
        await self.link.back(fate)
        return now

    def close(self) -> None:
        """Nothing is held."""


class MemoryBucket:
    """The part of a GridFS bucket that results use."""

    def __init__(self, connection: MemoryConnection) -> None:
        self._link = connection.link
        self._files = connection.memory.collections.setdefault(FILES, {})

    async def upload_from_stream_with_id(
        self, file_id: str, filename: str, source: bytes, *, chunk_size_bytes: int
    ) -> None:
        fate = await self._link.there(Call.WRITE)
        if file_id in self._files:
            raise FileExists(file_id)
        self._files[file_id] = {
            "_id": file_id,
            "filename": filename,
            "content": source,
            "chunk": chunk_size_bytes,
        }
        await self._link.back(fate)

    async def delete(self, file_id: str) -> None:
        fate = await self._link.there(Call.WRITE)
        if self._files.pop(file_id, None) is None:
            raise NoFile(file_id)
        await self._link.back(fate)

    async def open_download_stream(self, file_id: str) -> "MemoryStream":
        fate = await self._link.there(Call.READ)
        if file_id not in self._files:
            raise NoFile(file_id)
        await self._link.back(fate)
        return MemoryStream(self._link, self._files[file_id])


class MemoryStream:
    """One file on its way."""

    def __init__(self, link: Link, file: dict[str, Any]) -> None:
        self._link = link
        self._left: bytes = file["content"]
        self._chunk: int = file["chunk"]

    async def readchunk(self) -> bytes:
        await self._link.back(await self._link.there(Call.READ))
        taken, self._left = self._left[: self._chunk], self._left[self._chunk :]
        return taken


class MemoryStore(Store):
    """One process's store. `link` is its own way to the database, for tests to break."""

    def __init__(
        self, database: MemoryDatabase, *, link: Link | None = None, timeout_s: float = 5.0
    ) -> None:
        self.link = link or Link()
        self.link.failure = AutoReconnect
        connection = MemoryConnection(database, self.link, timeout_s=timeout_s)
        self._connection = connection
        self.changes = connection.changes
        self.operation_queries = OperationQueries(connection)
        self.operations = Operations(connection, self.operation_queries)
        self.jobs = Jobs(connection)
        self.serving_jobs = ServingJobs(connection)
        self.hosts = Hosts(connection)
        self.models = CatalogCollection(connection, "models", ModelSpec)
        self.datasets = CatalogCollection(connection, "datasets", DatasetSpec)
        self.footprints = Footprints(connection)
        self.events = Events(connection)
        self.dead_letters = DeadLetters(connection)
        self.audit = Audit(connection)
        self.api_keys = ApiKeys(connection)
        self.results: Any = Results(
            connection,
            self.operation_queries,
            bucket=cast("AsyncIOMotorGridFSBucket", MemoryBucket(connection)),
        )
        self.leases = Leases(connection)
        self.deletions = Deletions(connection, self.jobs, self.results)
        self.old_records = OldRecords(connection, self.jobs, self.results)
