"""Pages by position: new entries don't shift them, and deep pages cost no more.

What happened is listed newest first, what has a name by name.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.store.records import Document, Record

T = TypeVar("T", bound=Record)
N = TypeVar("N")

_FIRST_YEAR, _LAST_YEAR = 1970, 9000


@dataclass(frozen=True, slots=True)
class Position:
    """The last entry of a page."""

    at: datetime
    key: str

    def cursor(self) -> str:
        """Return the position as an opaque string for clients."""
        return _packed([self.at.isoformat(), self.key])

    @classmethod
    def parse(cls, cursor: str) -> "Position":
        """Read a cursor; raises `InvalidRequestError` if `cursor()` did not make it."""
        try:
            at, key = _unpacked(cursor)
            moment = datetime.fromisoformat(at)
        except (ValueError, TypeError) as error:
            raise _invalid_cursor() from error
        if moment.tzinfo is None or not isinstance(key, str) or not key.isascii():
            raise _invalid_cursor()
        if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:  # years that BSON dates can hold safely
            raise _invalid_cursor()
        return cls(moment, key)


def name_cursor(name: str) -> str:
    """Return the name of the last entry of a page as an opaque string for clients."""
    return _packed([name])


def parse_name_cursor(cursor: str) -> str:
    """Read a cursor; raises `InvalidRequestError` if `name_cursor` did not make it."""
    try:
        (name,) = _unpacked(cursor)
    except (ValueError, TypeError) as error:
        raise _invalid_cursor() from error
    if not isinstance(name, str):
        raise _invalid_cursor()
    return name


def _packed(parts: Sequence[str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def _unpacked(cursor: str) -> Any:  # noqa: ANN401 - any JSON: the cursor may be anything
    padded = cursor + "=" * (-len(cursor) % 4)
    return json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))


def _invalid_cursor() -> InvalidRequestError:
    return InvalidRequestError(ErrorCode.INVALID_REQUEST, "The cursor does not come from a page.")


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
