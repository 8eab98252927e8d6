"""A backup of a real database, and the database that is made of it."""

import gzip
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from bson import Int64, encode
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.database import Database

from modelyard.contract.errors import StoreUnavailableError
from modelyard.contract.messages import MAX_INLINE_RESULT_BYTES
from modelyard.store import Store
from modelyard.store.backup import copies
from modelyard.store.backup.copies import UnusableBackupError, back_up, restore

AFTER_THE_YEAR_9999 = RawBSONDocument(
    # Milliseconds since 1970 that Python's dates can't hold; the driver writes them as they are.
    encode({"_id": "late", "at": Int64(300_000_000_000_000)}).replace(b"\x12at", b"\x09at")
)
Whole = dict[str, tuple[list[bytes], list[dict[str, Any]]]]


@pytest.fixture
def database(
    mongo_client: MongoClient[dict[str, Any]], mongo_url: str
) -> Database[RawBSONDocument]:
    name = mongo_url.rpartition("/")[2].partition("?")[0]
    return mongo_client.get_database(name).with_options(codec_options=copies._RAW)


@pytest.fixture
async def filled(store: Store, database: Database[RawBSONDocument]) -> Whole:
    """Have a database with all indexes, a result in GridFS, and documents of every kind."""
    await store.results.put("op", 1, '"' + "x" * MAX_INLINE_RESULT_BYTES + '"')
    database["events"].insert_one(AFTER_THE_YEAR_9999)
    database["operations"].insert_many(
        RawBSONDocument(encode({"_id": f"op-{n}", "b": n, "a": {"z": 1, "y": [n]}}))
        for n in range(5_000)
    )
    return whole(database)


def whole(database: Database[RawBSONDocument]) -> Whole:
    """Return all documents, byte by byte, and all indexes."""
    return {
        name: (
            sorted(bytes(one.raw) for one in database[name].find({})),
            sorted(
                ({**one, "key": [*one["key"].items()]} for one in database[name].list_indexes()),
                key=lambda one: str(one["name"]),
            ),
        )
        for name in database.list_collection_names()
    }


def drop(database: Database[RawBSONDocument]) -> None:
    database.client.drop_database(database.name)
    assert whole(database) == {}


async def test_what_is_restored_is_what_was_backed_up(
    filled: Whole, store: Store, database: Database[RawBSONDocument], mongo_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    copied = back_up(mongo_url, file)
    assert copied["operations"] == 5_000
    assert copied["results.chunks"] == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["backup"]  # noqa: PTH208
    drop(database)
    assert restore(mongo_url, file) == copied
    assert whole(database) == filled
    await store.prepare()
    assert whole(database) == filled, "an index was missing, or another one"


def test_a_backup_shows_one_moment(filled: Whole, database: Database[RawBSONDocument]) -> None:
    entries = copies._entries(database)
    first = next(entries)
    database["operations"].insert_one(RawBSONDocument(encode({"_id": "later"})))
    database["operations"].delete_one({"_id": "op-1"})
    found = [
        bytes(one["document"].raw)
        for one in [first, *entries]
        if one["collection"] == "operations" and "document" in one
    ]
    assert sorted(found) == filled["operations"][0]


def test_a_database_with_documents_is_left_as_it_is(
    filled: Whole, database: Database[RawBSONDocument], mongo_url: str, tmp_path: Path
) -> None:
    back_up(mongo_url, tmp_path / "backup")
    with pytest.raises(UnusableBackupError, match=r"is not empty: it has events, operations, res"):
        restore(mongo_url, tmp_path / "backup")
    assert whole(database) == filled


@pytest.mark.parametrize("damage", ["cut", "without an end", "of something else", "plain"])
def test_of_a_damaged_backup_nothing_is_restored(
    filled: Whole,  # noqa: ARG001
    database: Database[RawBSONDocument],
    mongo_url: str,
    tmp_path: Path,
    damage: str,
) -> None:
    file = tmp_path / "backup"
    back_up(mongo_url, file)
    end = len(encode({"documents": 1}))
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-100])
        case "without an end":
            file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-end]))
        case "of something else":
            file.write_bytes(gzip.compress(encode({"format": 2})))
        case _:
            file.write_bytes(b"something else")
    drop(database)
    with pytest.raises(UnusableBackupError):
        restore(mongo_url, file)
    assert whole(database) == {}


def test_a_backup_that_is_there_is_kept(
    mongo_url: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "backup"
    file.write_text("of yesterday")
    with pytest.raises(UnusableBackupError, match="exists already"):
        back_up(mongo_url, file)
    assert file.read_text() == "of yesterday"
    with pytest.raises(UnusableBackupError, match="can't be written"):
        back_up(mongo_url, tmp_path / "no-folder" / "backup")


def test_without_a_database_there_is_no_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_ANSWERS_WITHIN_MS", 100)
    with pytest.raises(StoreUnavailableError):
        back_up("mongodb://127.0.0.1:1/x", tmp_path / "backup")
    with pytest.raises(ValueError, match="URL can't be used"):
        back_up("mongo://nonsense", tmp_path / "backup")
    assert [*tmp_path.iterdir()] == []
