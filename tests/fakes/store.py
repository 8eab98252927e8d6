"""The real store over MongoDB in memory: its own writes and guards, another server."""

from datetime import datetime
from typing import cast

from pymongo.errors import AutoReconnect

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.process.clock import RemoteClock
from modelyard.store import Store
from modelyard.store.api_keys import ApiKeys
from modelyard.store.capacity.footprints import Footprints
from modelyard.store.catalog import CatalogCollection
from modelyard.store.connection import Changes, Collection, MongoConnection, uncounted
from modelyard.store.content import inputs, results
from modelyard.store.content.files import StoredFiles
from modelyard.store.content.retention import ContentRetention
from modelyard.store.deleting.deletions import Deletions
from modelyard.store.deleting.old_records import OldRecords
from modelyard.store.events import Audit, DeadLetters, Events
from modelyard.store.hosts import Hosts
from modelyard.store.jobs import Jobs
from modelyard.store.leases import Leases
from modelyard.store.operation_queries import OperationQueries
from modelyard.store.operations import Operations
from modelyard.store.queries.serving_jobs import ServingJobs
from tests.fakes.broker_links import Call, Link
from tests.fakes.mongodb import MemoryCollection, MemoryDatabase


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
        result_files = StoredFiles(connection, results.BUCKET)
        input_files = StoredFiles(connection, inputs.BUCKET)
        self.results = results.Results(result_files, self.operation_queries)
        self.inputs = inputs.Inputs(input_files)
        self.content_retention = ContentRetention(
            connection, results=result_files, inputs=input_files
        )
        self.leases = Leases(connection)
        self.deletions = Deletions(connection, self.jobs, self.content_retention)
        self.old_records = OldRecords(connection, self.jobs, self.content_retention)
