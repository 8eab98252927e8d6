"""Values as MongoDB sees them: their order over all types, and paths into documents.

Sources: MongoDB's manual, "Comparison/Sort Order", "Field Paths", "Query on Embedded Documents".
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from bson.int64 import Int64

Document = dict[str, Any]


class Missing:
    """What a path gives that leads nowhere; it is not null."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


class NotKnownError(NotImplementedError):
    """Something of MongoDB's language that this small interpreter does not speak."""


def type_of(value: object) -> str:
    """Return the name of a value's BSON type, as `$type` gives it."""
    if isinstance(value, Missing):
        return "missing"
    if value is None:
        return "null"
    if isinstance(value, bool):  # before int, which it is to Python
        return "bool"
    for kind, name in _TYPES:
        if isinstance(value, kind):
            return name
    raise NotKnownError(f"a value of type {type(value).__name__}")


_TYPES: tuple[tuple[type, str], ...] = (
    (int, "int"),
    (float, "double"),
    (str, "string"),
    (dict, "object"),
    (list, "array"),
    (bytes, "binData"),
    (datetime, "date"),
)
_PLACES: Mapping[type, int] = {
    Missing: 0,
    type(None): 1,
    int: 2,
    Int64: 2,
    float: 2,
    str: 3,
    dict: 4,
    list: 5,
    bytes: 6,
    bool: 7,
    datetime: 8,
}
"""By type, its place among all: what is of one place is compared by value."""


def place_of(value: object) -> int:
    """Return the place of a value's type; all numbers have one."""
    try:
        return _PLACES[value.__class__]
    except KeyError:
        raise NotKnownError(f"a value of type {type(value).__name__}") from None


def key_of(value: Any) -> tuple[Any, ...]:
    """Return a key that sorts values of all types as MongoDB does."""
    place = place_of(value)
    if isinstance(value, dict):
        return place, [(place_of(one), name, key_of(one)) for name, one in value.items()]
    if isinstance(value, list):
        return place, [key_of(one) for one in value]
    if isinstance(value, bytes):
        return place, len(value), value
    return (place,) if value is None or value is MISSING else (place, value)


def same(left: object, right: object) -> bool:
    """Tell whether two values are equal to MongoDB: 1 is 1.0, true is not 1."""
    if left.__class__ is str and right.__class__ is str:
        return left == right
    return place_of(left) == place_of(right) and key_of(left) == key_of(right)


def value_at(document: object, path: Sequence[str]) -> Any:
    """Return what an aggregation's `$a.b` gives: through arrays it gathers."""
    if not path:
        return document
    if isinstance(document, list):
        found = [value_at(one, path) for one in document if isinstance(one, dict)]
        return [one for one in found if one is not MISSING]
    if not isinstance(document, dict) or path[0] not in document:
        return MISSING
    return value_at(document[path[0]], path[1:])


def values_at(document: object, path: Sequence[str]) -> Iterator[Any]:
    """Yield what a query's `a.b` looks at: each element of an array on the way."""
    if not path:
        yield document
    elif isinstance(document, list):
        for one in document:
            if isinstance(one, dict):
                yield from values_at(one, path)
    elif isinstance(document, dict) and path[0] in document:
        yield from values_at(document[path[0]], path[1:])
    else:
        yield MISSING


def put_at(document: Document, path: Sequence[str], value: object) -> None:
    """Set a dotted path, making the documents on the way; `MISSING` removes what is there."""
    *way, last = path
    for step in way:
        if value is MISSING and step not in document:
            return
        document = document.setdefault(step, {})
        if not isinstance(document, dict):
            raise NotKnownError(f"{'.'.join(path)} leads through something that is no document")
    if value is MISSING:
        document.pop(last, None)
    else:
        document[last] = value
