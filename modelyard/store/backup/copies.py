"""Back up a database to a file, and restore it.

The file is gzip over BSON documents: first one with `format`; then for each collection one with its
`indexes`, and one for each `document` in it; last one with `documents`, their number. Documents are
copied as they are, never decoded: what another version wrote stays what it was.

A backup shows the database as of one moment, while everything goes on (a snapshot session).

Commands of a person, who waits: the driver without asyncio is enough.
"""

import gzip
import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from bson import decode_file_iter, encode
from bson.codec_options import CodecOptions
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from modelyard.contract.errors import StoreUnavailableError
from modelyard.store.connection import DEFAULT_DATABASE, UNUSABLE_URL, refused_access
from modelyard.store.doctor.reaching import silent

FORMAT = 1
BATCH_BYTES = 8 << 20
"""Documents that are inserted at once; one of MongoDB's messages takes 48 MB."""
_ANSWERS_WITHIN_MS = 10_000
_SNAPSHOT_TOO_OLD = 239
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)

Copied = Mapping[str, int]
"""How many documents of each collection."""


class UnusableBackupError(Exception):
    """A backup can't be written or restored, and trying again does not help; says why."""


def back_up(url: str, file: Path) -> Copied:
    """Write the database at `url` to a new file, which only its owner can read.

    Raises `UnusableBackupError`, `StoreUnavailableError`, and `ValueError` for a URL that can't be
    used. The file is there only once it is complete.
    """
    if file.exists():
        raise UnusableBackupError(f"{file} exists already.")
    partial = file.with_name(f"{file.name}.partial")
    with _database(url) as database, _written(partial) as out:
        copied = Counter[str]()
        out.write(encode({"format": FORMAT, "database": database.name}))
        for entry in _entries(database):
            out.write(encode(entry))
            copied[entry["collection"]] += "document" in entry
        out.write(encode({"documents": copied.total()}))
    partial.rename(file)
    return copied


def restore(url: str, file: Path) -> Copied:
    """Fill the database at `url`, which must have no documents, from a backup.

    The file is read to its end before anything is written. Raises as `back_up` does.
    """
    for _ in _read(file):
        pass
    with _database(url) as database:
        full = [name for name in _collections(database) if database[name].find_one({}, {"_id": 1})]
        if full:
            raise UnusableBackupError(
                f"The database {database.name} is not empty: it has {', '.join(full)}. Stop "
                "gateways and dispatchers, and drop it first."
            )
        return _fill(database, file)


def _fill(database: Database[RawBSONDocument], file: Path) -> Copied:
    copied = Counter[str]()
    indexes: dict[str, list[Mapping[str, Any]]] = {}
    batch: list[RawBSONDocument] = []
    size, current = 0, ""

    def write() -> None:
        if batch:
            database[current].insert_many(batch, ordered=False)
            copied[current] += len(batch)
            batch.clear()

    for entry in _read(file):
        name = entry["collection"]
        if "indexes" in entry:
            indexes[name] = list(entry["indexes"])
            copied[name] += 0
            continue
        if name != current or size >= BATCH_BYTES:
            write()
            size, current = 0, name
        batch.append(entry["document"])
        size += len(entry["document"].raw)
    write()
    for name, of_it in indexes.items():
        # Made last: that is faster than to keep them up to date.
        database.command("createIndexes", name, indexes=of_it)
    return copied


def _entries(database: Database[RawBSONDocument]) -> Iterator[dict[str, Any]]:
    """Yield what a backup says of one moment, at most five minutes ago (MongoDB's default)."""
    with database.client.start_session(snapshot=True) as session:
        # The first read of a collection that is there sets the moment.
        for name in _collections(database)[:1]:
            database[name].find_one({}, session=session)
        for name in _collections(database):
            indexes = [dict(one) for one in database[name].list_indexes()]
            yield {"collection": name, "indexes": indexes}
            for document in database[name].find({}, session=session):
                yield {"collection": name, "document": document}


def _collections(database: Database[RawBSONDocument]) -> list[str]:
    found = database.list_collections(filter={"type": "collection"})
    return sorted(one["name"] for one in found if not one["name"].startswith("system."))


def _read(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a whole backup between its first and its last one."""
    documents, last = 0, None
    try:
        with gzip.open(file) as stream:
            # The driver's types leave out that it takes any stream of bytes.
            entries = decode_file_iter(cast("IO[bytes]", stream), _RAW)
            first = next(entries, None)
            if first is None or first.get("format") != FORMAT:
                raise UnusableBackupError(f"{file} is no backup that this version can read.")
            for entry in entries:
                last = entry.get("documents")
                if last is None:
                    documents += "document" in entry
                    yield entry
    except (OSError, EOFError, InvalidBSON) as error:
        raise UnusableBackupError(f"{file} can't be read: {_reason(error)}.") from error
    if last != documents:
        raise UnusableBackupError(f"{file} is not complete.")


def _reason(error: Exception) -> str:
    """Return why a file can't be used, without its name, which the sentence has."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def _written(partial: Path) -> Generator[gzip.GzipFile]:
    """Open a file for writing, and have it on the disk in the end; a failure leaves none."""
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise UnusableBackupError(f"{partial} can't be written: {_reason(error)}.") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as out:
                yield out
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        partial.unlink()
        raise UnusableBackupError(f"{partial} can't be written: {_reason(error)}.") from error
    except BaseException:
        partial.unlink()
        raise


@contextmanager
def _database(url: str) -> Generator[Database[RawBSONDocument]]:
    """Connect to the database, and turn the driver's failures into ours."""
    try:
        client: MongoClient[RawBSONDocument] = MongoClient(
            url,
            appname="modelyard-backup",
            document_class=RawBSONDocument,
            serverSelectionTimeoutMS=_ANSWERS_WITHIN_MS,
        )
    except (ConfigurationError, ValueError) as error:
        raise ValueError(UNUSABLE_URL) from error
    try:
        yield client.get_default_database(
            DEFAULT_DATABASE, write_concern=WriteConcern(w="majority")
        )
    except OperationFailure as error:
        if error.code == _SNAPSHOT_TOO_OLD:
            raise UnusableBackupError(
                "The backup took longer than MongoDB keeps the past. Raise its parameter "
                "minSnapshotHistoryWindowInSeconds."
            ) from error
        message = refused_access(error) or f"MongoDB could not do it: {error}"
        raise StoreUnavailableError(message) from error
    except PyMongoError as error:
        raise silent(url) from error
    finally:
        client.close()
