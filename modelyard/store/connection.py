"""The connection to MongoDB, and the one place where its errors become ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bson.codec_options import CodecOptions
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from pymongo.write_concern import WriteConcern

from modelyard.contract.errors import StoreUnavailableError

Collection = AsyncIOMotorCollection[dict[str, Any]]

DEFAULT_DATABASE = "modelyard"
DUPLICATE_KEY = 11_000

_UNUSABLE_URL = (
    "MongoDB's URL is none that can be used: mongodb://[user:password@]host[:port]/database"
    "[?options], with user and password percent-encoded."
)


class Connection:
    """A client with majority writes and a deadline on every call."""

    def __init__(self, url: str, *, name: str, timeout_s: float) -> None:
        """`url` is a MongoDB URI; its path names the database (`modelyard` if it has none).

        Raises `ValueError` for one that can't be used; the message does not repeat it.
        """
        self._timeout_s = timeout_s
        try:
            self._client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
                url,
                appname=f"modelyard-{name}",
                tz_aware=True,
                serverSelectionTimeoutMS=int(timeout_s * 1_000),
                connectTimeoutMS=int(timeout_s * 1_000),
                retryWrites=True,
            )
        except (ConfigurationError, ValueError) as error:
            # The driver's own words may hold a part of the password.
            raise ValueError(_UNUSABLE_URL) from error
        self.database: AsyncIOMotorDatabase[dict[str, Any]] = self._client.get_default_database(
            DEFAULT_DATABASE,
            codec_options=CodecOptions(tz_aware=True),
            write_concern=WriteConcern(w="majority"),
        )

    def collection(self, name: str) -> Collection:
        """Return a collection of the database."""
        return self.database[name]

    async def ping(self) -> None:
        """Return if a primary answers; raises `StoreUnavailableError`."""
        async with self.answering():
            await self.database.command("ping")

    def close(self) -> None:
        """Close all sockets."""
        self._client.close()

    @asynccontextmanager
    async def answering(self, *, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Bound the calls inside by a deadline and turn the driver's failures into ours.

        Raises `StoreUnavailableError`; whether a write inside took effect is then unknown, and
        the same guarded write may be made again.
        """
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                yield
        except TimeoutError as error:
            raise StoreUnavailableError("MongoDB did not answer in time.") from error
        except (DuplicateKeyError, BulkWriteError):
            raise
        except OperationFailure as error:
            if error.has_error_label("RetryableWriteError") or error.timeout:
                raise StoreUnavailableError(f"MongoDB could not do it now: {error}") from error
            if error.code in _NOT_NOW:
                raise StoreUnavailableError(f"MongoDB could not do it now: {error}") from error
            raise
        except PyMongoError as error:
            raise StoreUnavailableError(f"MongoDB does not answer: {error}") from error


# Server codes that say "not now": primary stepping down, shutting down, interrupted, full disk.
_NOT_NOW = frozenset(
    {6, 7, 64, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436, 14031},
)
