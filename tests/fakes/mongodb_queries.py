"""Queries, orders and projections over documents, as far as the store uses them.

Source: MongoDB's manual, "Query and Projection Operators".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from tests.fakes.mongodb_expressions import evaluate, truth
from tests.fakes.mongodb_values import (
    MISSING,
    Document,
    NotKnownError,
    key_of,
    place_of,
    put_at,
    same,
    type_of,
    value_at,
    values_at,
)


def matches(document: Document, query: Mapping[str, Any], now: datetime) -> bool:
    """Tell whether a document fits a query."""
    for key, wanted in query.items():  # noqa: SIM110 - most of all time goes by here
        if not _fits(document, key, wanted, now):
            return False
    return True


def _fits(document: Document, key: str, wanted: Any, now: datetime) -> bool:
    if key == "$or":
        return any(matches(document, one, now) for one in wanted)
    if key == "$and":
        return all(matches(document, one, now) for one in wanted)
    if key == "$expr":
        return truth(evaluate(wanted, {"ROOT": document, "NOW": now}))
    if key.startswith("$"):
        raise NotKnownError(f"the query operator {key}")
    if "." in key:
        found = list(values_at(document, key.split(".")))
    else:
        found = [document.get(key, MISSING)]
    negated = isinstance(wanted, dict) and set(wanted) == {"$not"}
    asked = wanted["$not"] if negated else wanted
    if isinstance(asked, dict) and set(asked) == {"$elemMatch"}:
        arrays = (one for one in found if isinstance(one, list))
        fits = any(matches(one, asked["$elemMatch"], now) for many in arrays for one in many)
        return fits is not negated
    if isinstance(wanted, dict) and any(name.startswith("$") for name in wanted):
        return all(_holds(name, found, operand) for name, operand in wanted.items())
    return _equals(found, wanted)


def _each(found: Iterable[Any]) -> Iterable[Any]:
    """Yield the values, and what is in those that are arrays."""
    for one in found:
        yield one
        if isinstance(one, list):
            yield from one


def _equals(found: Iterable[Any], wanted: Any) -> bool:
    for one in found:
        if one is wanted or same(one, wanted) or (one is MISSING and wanted is None):
            return True
        if isinstance(one, list) and any(same(inner, wanted) for inner in one):
            return True
    return False


def _is_in(found: Iterable[Any], wanted: Sequence[Any]) -> bool:
    return any(_equals(found, one) for one in wanted)


def _compared(test: Callable[[Any, Any], bool]) -> Callable[[Sequence[Any], Any], bool]:
    def holds(found: Sequence[Any], wanted: Any) -> bool:
        if wanted is None:
            raise NotKnownError("a comparison with null")
        return any(
            place_of(one) == place_of(wanted) and test(key_of(one), key_of(wanted))
            for one in _each(found)
        )

    return holds


_OPERATORS: Mapping[str, Callable[[Sequence[Any], Any], bool]] = {
    "$eq": _equals,
    "$ne": lambda found, wanted: not _equals(found, wanted),
    "$not": lambda found, wanted: not all(_holds(name, found, one) for name, one in wanted.items()),
    "$in": _is_in,
    "$nin": lambda found, wanted: not _is_in(found, wanted),
    "$exists": lambda found, wanted: any(one is not MISSING for one in found) is wanted,
    "$type": lambda found, wanted: any(type_of(one) == wanted for one in _each(found)),
    "$lt": _compared(lambda left, right: left < right),
    "$lte": _compared(lambda left, right: left <= right),
    "$gt": _compared(lambda left, right: left > right),
    "$gte": _compared(lambda left, right: left >= right),
}


def _holds(name: str, found: Sequence[Any], operand: Any) -> bool:
    if name not in _OPERATORS:
        raise NotKnownError(f"the query operator {name}")
    return _OPERATORS[name](found, operand)


def in_order(documents: Iterable[Document], order: Sequence[tuple[str, int]]) -> list[Document]:
    """Sort documents; what is equal keeps its order."""
    ordered = list(documents)
    for field, direction in reversed(order):
        path = field.split(".")
        ordered.sort(key=lambda one: key_of(value_at(one, path)), reverse=direction < 0)
    return ordered


def projected(document: Document, fields: Mapping[str, int] | None) -> Document:
    """Return the fields that are asked for, or all but those that are not wanted."""
    if not fields:
        return document
    if any(not isinstance(one, int) for one in fields.values()):
        raise NotKnownError("a projection with expressions")
    if any(one for key, one in fields.items() if key != "_id"):
        return _included(document, fields)
    kept = dict(document)
    for field in (field for field, wanted in fields.items() if not wanted):
        if "." in field:
            raise NotKnownError("a projection without a nested field")
        kept.pop(field, None)
    return {"_id": kept["_id"]} if fields == {"_id": 1} else kept


def _included(document: Document, fields: Mapping[str, int]) -> Document:
    chosen: Document = {}
    for field in ("_id", *fields):
        value = value_at(document, field.split("."))
        if fields.get(field, 1) and value is not MISSING:
            put_at(chosen, field.split("."), value)
    return chosen
