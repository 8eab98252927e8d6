"""Databases of a MongoDB, so that tests share the server and nothing on it."""

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pymongo import MongoClient


@contextmanager
def own_database(client: MongoClient[dict[str, Any]], url: str) -> Generator[str]:
    """Return the URL of a new database of the server at `url`, and drop it in the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    try:
        yield url.replace("/modelyard?", f"/{name}?")
    finally:
        client.drop_database(name)
