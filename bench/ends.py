"""When has all work of a measurement ended? Read from MongoDB, in the same way for each system.

Modelyard and its peers all keep the end of each operation in MongoDB, so their throughput is taken
from there, by a reader that is no part of them. Events would cost only Modelyard something, and
polls of single operations would cost each system something else. The reader asks more often as the
end comes near: its counts cost little, and the end is seen within `_LEAST_PAUSE_S`.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase

_LEAST_PAUSE_S = 0.02
_MOST_PAUSE_S = 0.25
_SHARE_OF_REST = 0.3
"""The next count comes after this share of the time that the rest seems to need."""
_TIMEOUT_S = 120.0

Query = Mapping[str, Any]


async def count(database: AsyncDatabase[dict[str, Any]], collection: str, query: Query) -> int:
    """Count documents; with a fitting index only the index is read."""
    # Not `count_documents`: it aggregates, and so reads the documents.
    answer = await database.command("count", collection, query=dict(query))
    return int(answer["n"])


async def until_ended(
    database: AsyncDatabase[dict[str, Any]], collection: str, query: Query, expected: int
) -> float:
    """Wait until `expected` documents match; return the `time.monotonic()` at which they do.

    Raises `TimeoutError` after two minutes, with the number of those that match by then.
    """
    began = time.monotonic()
    while True:
        ended = await count(database, collection, query)
        now = time.monotonic()
        if ended >= expected:
            return now
        if now - began > _TIMEOUT_S:
            raise TimeoutError(f"{ended} of {expected} operations ended in {_TIMEOUT_S:.0f} s.")
        await asyncio.sleep(pause_s(ended, expected, now - began))


def pause_s(ended: int, expected: int, elapsed_s: float) -> float:
    """Return the seconds until the next count, from the rate so far."""
    if not ended:
        return _LEAST_PAUSE_S
    rest_s = elapsed_s * (expected - ended) / ended
    return min(max(_LEAST_PAUSE_S, rest_s * _SHARE_OF_REST), _MOST_PAUSE_S)
