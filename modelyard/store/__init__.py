"""MongoDB: the records of Modelyard. The only package that imports motor."""

import asyncio
from contextlib import suppress
from datetime import datetime

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.errors import StoreUnavailableError
from modelyard.store.api_keys import ApiKeys
from modelyard.store.capacity.footprints import Footprints
from modelyard.store.catalog import CatalogCollection
from modelyard.store.connection import (
    ASK_TIME_EVERY_S,
    CallEnded,
    MongoConnection,
    uncounted,
)
from modelyard.store.content import inputs, results
from modelyard.store.content.files import StoredFiles
from modelyard.store.content.retention import ContentRetention
from modelyard.store.deleting.deletions import Deletions
from modelyard.store.deleting.old_records import OldRecords
from modelyard.store.events import Audit, DeadLetters, Events
from modelyard.store.hosts import Hosts
from modelyard.store.indexes import ensure_indexes
from modelyard.store.jobs import Jobs
from modelyard.store.leases import Leases
from modelyard.store.operation_queries import OperationQueries
from modelyard.store.operations import Operations
from modelyard.store.queries.serving_jobs import ServingJobs


class Store:
    """All collections of one database."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout_s: float = 5.0,
        call_ended: CallEnded = uncounted,
    ) -> None:
        """`url` is a MongoDB URI; every call ends within about `timeout_s` seconds.

        `call_ended` is called at the end of each call.
        """
        self._connection = MongoConnection(
            url, name=name, timeout_s=timeout_s, call_ended=call_ended
        )
        self.changes = self._connection.changes
        self.operation_queries = OperationQueries(self._connection)
        self.operations = Operations(self._connection, self.operation_queries)
        self.jobs = Jobs(self._connection)
        self.serving_jobs = ServingJobs(self._connection)
        self.hosts = Hosts(self._connection)
        self.models = CatalogCollection(self._connection, "models", ModelSpec)
        self.datasets = CatalogCollection(self._connection, "datasets", DatasetSpec)
        self.footprints = Footprints(self._connection)
        self.events = Events(self._connection)
        self.dead_letters = DeadLetters(self._connection)
        self.audit = Audit(self._connection)
        self.api_keys = ApiKeys(self._connection)
        result_files = StoredFiles(self._connection, results.BUCKET)
        input_files = StoredFiles(self._connection, inputs.BUCKET)
        self.results = results.Results(result_files, self.operation_queries)
        self.inputs = inputs.Inputs(input_files)
        self.content_retention = ContentRetention(
            self._connection, results=result_files, inputs=input_files
        )
        self.leases = Leases(self._connection)
        self.deletions = Deletions(self._connection, self.jobs, self.content_retention)
        self.old_records = OldRecords(self._connection, self.jobs, self.content_retention)

    async def prepare(self) -> None:
        """Create the indexes that are missing; raises `StoreUnavailableError`."""
        await ensure_indexes(self._connection)

    async def ping(self) -> None:
        """Return if a primary answers; raises `StoreUnavailableError`."""
        await self._connection.ping()

    async def time(self) -> datetime:
        """Return the time by the database's clock; raises `StoreUnavailableError`."""
        return await self._connection.time()

    @property
    def known_time(self) -> datetime | None:
        """The time by the database's clock, without asking it; null if it was never asked."""
        return self._connection.known_time

    async def keep_time(self) -> None:
        """Ask for the database's time again and again, so that nobody waits for it."""
        while True:
            with suppress(StoreUnavailableError):
                await self._connection.time()
            await asyncio.sleep(ASK_TIME_EVERY_S + 0.1)

    def close(self) -> None:
        """Close all sockets."""
        self._connection.close()


__all__ = ["Store"]
