"""Pages by position: new entries don't shift them, and deep pages cost no more.

What happened is listed newest first, what has a name by name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pymongo.errors import ExecutionTimeout

from modelyard.contract.errors import ErrorCode, InvalidRequestError, SlowQueryError
from modelyard.contract.ids import ID_PATTERN
from modelyard.store.connection import MongoConnection
from modelyard.store.records import EPOCH, Document, Record

if TYPE_CHECKING:
    from motor.motor_asyncio import AsyncIOMotorCursor

T = TypeVar("T", bound=Record)
N = TypeVar("N")

NAME_CURSOR_PATTERN = ID_PATTERN
"""The cursor of a list by name: the last name of the page."""
CURSOR_PATTERN = rf"^[0-9]{{1,14}}\.{ID_PATTERN.strip('^$')}$"
"""The cursor of a list by time, `Position.cursor`."""

PAGE_S = 1.5
"""Longest time of a page's query in seconds; MongoDB ends a slower one."""

_CURSOR = re.compile(CURSOR_PATTERN)
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Position:
    """The last entry of a page."""

    at: datetime
    key: str

    def cursor(self) -> str:
        """Return the position as a string that clients need not understand.

        MongoDB's times are whole milliseconds, so nothing is lost.
        """
        return f"{round((self.at - EPOCH) / _MS)}.{self.key}"

    @classmethod
    def parse(cls, cursor: str) -> "Position":
        """Read a cursor; raises `InvalidRequestError` if it does not follow `CURSOR_PATTERN`."""
        if not _CURSOR.fullmatch(cursor):
            raise InvalidRequestError(
                ErrorCode.INVALID_REQUEST, "The cursor does not come from a page."
            )
        ms, _, key = cursor.partition(".")
        return cls(EPOCH + int(ms) * _MS, key)


async def read_page(
    connection: MongoConnection,
    cursor: "AsyncIOMotorCursor[dict[str, Any]]",
    limit: int,
    *,
    advice: str = "",
) -> list[Document]:
    """Return up to `limit + 1` entries, for `to_page` or `NamedPage.of`.

    Raises `StoreUnavailableError`, and `SlowQueryError` with `advice` if MongoDB looked for
    `PAGE_S` seconds and ended the query: it is not away.
    """
    async with connection.answering():
        try:
            return await cursor.limit(limit + 1).max_time_ms(int(PAGE_S * 1_000)).to_list(None)
        except ExecutionTimeout as error:
            message = f"MongoDB did not find the page within {PAGE_S} s. {advice}".strip()
            raise SlowQueryError(message) from error


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some entries, and where the next page starts, if there is one."""

    items: tuple[T, ...]
    next: Position | None


def page_filter(criteria: Mapping[str, str], time_field: str, after: Position | None) -> Document:
    """Return a query for the entries that come after a position."""
    query: Document = {field: {"$eq": value} for field, value in criteria.items()}
    if after is not None:
        query["$or"] = [
            {time_field: {"$lt": after.at}},
            {time_field: after.at, "_id": {"$lt": after.key}},
        ]
    return query


def to_page(
    documents: Sequence[Mapping[str, Any]], record: type[T], time_field: str, limit: int
) -> Page[T]:
    """Make a page of up to `limit + 1` documents; the extra one shows that a next page exists."""
    kept = documents[:limit]
    last = kept[-1] if len(documents) > limit and kept else None
    return Page(
        items=tuple(record.model_validate(document) for document in kept),
        next=Position(last[time_field], last["_id"]) if last else None,
    )


@dataclass(frozen=True, slots=True)
class NamedPage(Generic[N]):
    """Some entries by name, and the name after which the next page starts, if there is one."""

    items: tuple[N, ...]
    next: str | None

    @classmethod
    def of(
        cls, documents: Sequence[Document], limit: int, read: Callable[[Document], N | None]
    ) -> "NamedPage[N]":
        """Make a page of up to `limit + 1` documents, as `to_page`; `read` may leave some out."""
        kept = documents[:limit]
        last = kept[-1]["_id"] if len(documents) > limit and kept else None
        read_ones = (read(document) for document in kept)
        return cls(tuple(one for one in read_ones if one is not None), last)


def names_after(name: str | None) -> Document:
    """Return a query for the entries that come after a name."""
    return {} if name is None else {"_id": {"$gt": name}}
