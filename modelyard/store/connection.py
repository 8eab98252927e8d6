"""The connection to MongoDB: its errors become ours here, and its writes are told to listeners."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import InvalidBSON
from gridfs.errors import GridFSError
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from pymongo.write_concern import WriteConcern

from modelyard.contract.errors import (
    SlowQueryError,
    StoreUnavailableError,
    StoreUnreadableError,
)
from modelyard.process.clock import RemoteClock, uptime_s

Collection = AsyncIOMotorCollection[dict[str, Any]]

CODEC_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_CLAMP
)
"""A date beyond the year 9999 is read as the last moment of that year. Otherwise one such date
would make its whole collection unreadable."""

DEFAULT_DATABASE = "modelyard"
DUPLICATE_KEY = 11_000
BAD_VALUE = 2
ASK_TIME_EVERY_S = 10.0
"""Seconds after which the database is asked for the time again."""

UNUSABLE_URL = (
    "MongoDB's URL can't be used; expected mongodb://[user:password@]host[:port]/database"
    "[?options], with user and password percent-encoded."
)


Listener = Callable[[Iterable[str]], None]


class CallEnded(Protocol):
    """Called when a call to MongoDB has ended, with its seconds."""

    def __call__(self, seconds: float, *, answered: bool) -> None: ...


def uncounted(seconds: float, *, answered: bool) -> None:
    del seconds, answered


class Changes:
    """Tells listeners which jobs and hosts were written, after each write."""

    def __init__(self) -> None:
        self._of_jobs: list[Listener] = []
        self._of_hosts: list[Listener] = []

    def listen(self, *, jobs: Listener, hosts: Listener) -> Callable[[], None]:
        """Call `jobs` and `hosts` with the ids of what was written; return how to stop that.

        A job counts as written if one of its open operations was. They are called too if the write
        failed or was cancelled: it may have taken effect all the same.
        """
        self._of_jobs.append(jobs)
        self._of_hosts.append(hosts)

        def stop() -> None:
            self._of_jobs.remove(jobs)
            self._of_hosts.remove(hosts)

        return stop

    def written(self, *, jobs: Iterable[str | None] = (), hosts: Iterable[str] = ()) -> None:
        """Tell the listeners."""
        job_ids = [job_id for job_id in jobs if job_id is not None]
        host_ids = list(hosts)
        for listener in self._of_jobs if job_ids else ():
            listener(job_ids)
        for listener in self._of_hosts if host_ids else ():
            listener(host_ids)


class MongoConnection:
    """A client with majority writes and a deadline on every call."""

    def __init__(
        self, url: str, *, name: str, timeout_s: float, call_ended: CallEnded = uncounted
    ) -> None:
        """`url` is a MongoDB URI; its path names the database (`modelyard` if it has none).

        `call_ended` is called at the end of each call. Raises `ValueError` for a URL that can't be
        used; the message does not repeat it.
        """
        self._timeout_s = timeout_s
        self._call_ended = call_ended
        self.changes = Changes()
        self._clock = RemoteClock()
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
            # The driver's message may contain a part of the password.
            raise ValueError(UNUSABLE_URL) from error
        self.database: AsyncIOMotorDatabase[dict[str, Any]] = self._client.get_default_database(
            DEFAULT_DATABASE,
            codec_options=CODEC_OPTIONS,
            write_concern=WriteConcern(w="majority"),
        )

    async def insert_new(
        self, collection: Collection, documents: Sequence[dict[str, Any]]
    ) -> frozenset[int]:
        """Insert documents whose keys are new; return which of them, by index, existed already.

        Raises `StoreUnavailableError`.
        """
        try:
            async with self.answering():
                await collection.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            errors = error.details["writeErrors"]
            if any(one["code"] != DUPLICATE_KEY for one in errors):
                raise
            return frozenset(one["index"] for one in errors)
        return frozenset()

    def collection(self, name: str) -> Collection:
        """Return a collection of the database."""
        return self.database[name]

    async def ping(self) -> None:
        """Return if a primary answers; raises `StoreUnavailableError`."""
        async with self.answering():
            await self.database.command("ping")

    async def time(self) -> datetime:
        """Return the time by the database's clock, in whole milliseconds as MongoDB stores it.

        It is asked for every `ASK_TIME_EVERY_S` seconds only. It does not go back by itself, so
        what one process records is in order. Raises `StoreUnavailableError`.
        """
        if self._clock.age_s > ASK_TIME_EVERY_S:
            asked_at = uptime_s()
            async with self.answering():
                time = await self._asked_time()
            self._clock.hear(time, asked_at=asked_at, answered_at=uptime_s())
        return self._clock.now()

    @property
    def known_time(self) -> datetime | None:
        """The time as `time` returned it last, and what has passed since; None if it never did."""
        try:
            return self._clock.now()
        except LookupError:
            return None

    async def _asked_time(self) -> datetime:
        answer = await self.database.command("hello")
        time: datetime = answer["localTime"]
        # The driver leaves out the zone in answers to commands: such a time is UTC.
        return time.replace(tzinfo=UTC)

    def close(self) -> None:
        """Close all sockets."""
        self._client.close()

    @asynccontextmanager
    async def writing(
        self, *, jobs: Iterable[str | None] = (), hosts: Iterable[str] = ()
    ) -> AsyncIterator[None]:
        """Enclose writes to these jobs, their operations, or these hosts, as `answering` does.

        Whatever becomes of the writes, the listeners of `changes` are told afterwards.
        """
        try:
            async with self.answering():
                yield
        finally:
            self.changes.written(jobs=jobs, hosts=hosts)

    @asynccontextmanager
    async def answering(self, *, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Bound the calls inside by a deadline and turn the driver's failures into ours.

        Raises `StoreUnavailableError`; whether a write inside took effect is then unknown, and
        the same guarded write may be made again. Raises `StoreUnreadableError` for an answer that
        can't be decoded.
        """
        began, answered = time.monotonic(), False
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                yield
            answered = True
        except TimeoutError as error:
            raise StoreUnavailableError("MongoDB did not answer in time.") from error
        except InvalidBSON as error:
            message = f"MongoDB holds a document that can't be read: {error}"
            raise StoreUnreadableError(message) from error
        except (DuplicateKeyError, GridFSError, SlowQueryError):
            # These are answers of MongoDB; the caller decides what they mean.
            answered = True
            raise
        except OperationFailure as error:
            if refusal := refused_access(error):
                raise StoreUnavailableError(refusal) from error
            if _is_not_now(error):
                raise StoreUnavailableError(f"MongoDB could not do it now: {error}") from error
            answered = True
            raise
        except PyMongoError as error:
            raise StoreUnavailableError(f"MongoDB does not answer: {error}") from error
        finally:
            self._call_ended(time.monotonic() - began, answered=answered)


def refused_access(error: OperationFailure) -> str | None:
    """Return a sentence for people if MongoDB refuses the user of its URL; None if it does not.

    The driver's own message would repeat the command that was refused.
    """
    return _REFUSED_ACCESS.get(error.code) if error.code else None


_REFUSED_ACCESS = {
    13: (  # Unauthorized
        "MongoDB refuses access to the user in MODELYARD_MONGO_URL. Give the user the role "
        "readWrite on the database, or add a user and a password to the URL if it has none."
    ),
    18: (  # AuthenticationFailed
        "MongoDB refuses the user or the password in MODELYARD_MONGO_URL. If the user was created "
        "in another database, add authSource=THAT_DATABASE."
    ),
}


def _is_not_now(error: OperationFailure) -> bool:
    """Tell whether the server may succeed later, when the same call is made again.

    A bulk write counts as such if one of its errors does. The caller then repeats all of it, and
    gets its duplicate keys again.
    """
    if isinstance(error, BulkWriteError):
        return any(_says_not_now(one) for one in _errors_of(error))
    return (
        error.timeout
        or error.code in _NOT_NOW
        or any(error.has_error_label(label) for label in _NOT_NOW_LABELS)
    )


def _errors_of(error: BulkWriteError) -> Iterator[Mapping[str, Any]]:
    yield error.details
    yield from error.details.get("writeErrors", ())
    yield from error.details.get("writeConcernErrors", ())


def _says_not_now(error: Mapping[str, Any]) -> bool:
    return (
        error.get("code") in _NOT_NOW
        or bool(_NOT_NOW_LABELS.intersection(error.get("errorLabels", ())))
        or bool(error.get("errInfo", {}).get("wtimeout"))
    )


_NOT_NOW_LABELS = frozenset({"RetryableWriteError", "TransientTransactionError"})

_NOT_NOW = frozenset(
    {
        # The connection between the servers, or to this one.
        6,  # HostUnreachable
        7,  # HostNotFound
        89,  # NetworkTimeout
        9001,  # SocketException
        # Its role in the replica set changes, or it shuts down.
        91,  # ShutdownInProgress
        189,  # PrimarySteppedDown
        10058,  # LegacyNotPrimary
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11602,  # InterruptedDueToReplStateChange
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
        134,  # ReadConcernMajorityNotAvailableYet
        # Too slow.
        24,  # LockTimeout
        46,  # LockBusy
        50,  # MaxTimeMSExpired
        64,  # WriteConcernFailed (wtimeout)
        202,  # NetworkInterfaceExceededTimeLimit
        262,  # ExceededTimeLimit
        # A person or another operation ended or disturbed the operation.
        43,  # CursorNotFound
        112,  # WriteConflict
        175,  # QueryPlanKilled
        237,  # CursorKilled
        11601,  # Interrupted
        # Overloaded, or its disk is full.
        365,  # TemporarilyUnavailable
        14031,  # OutOfDiskSpace
    },
)
"""MongoDB's error codes (its `error_codes.yml`) that mean "not now", by their names there."""
