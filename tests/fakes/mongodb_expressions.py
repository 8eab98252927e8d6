"""Aggregation expressions, as far as the store uses them. An operator that is not here raises.

Source: MongoDB's manual, "Aggregation Operators".
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.fakes.mongodb_values import (
    MISSING,
    Document,
    NotKnownError,
    key_of,
    place_of,
    same,
    type_of,
    value_at,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Variables = Mapping[str, Any]


def evaluate(expression: object, variables: Variables) -> Any:
    """Return the value of an expression; `variables` has at least `ROOT` and `NOW`."""
    if isinstance(expression, str) and expression.startswith("$"):
        return _path(expression, variables)
    if isinstance(expression, list):
        return [_null_if_missing(evaluate(one, variables)) for one in expression]
    if not isinstance(expression, dict):
        return expression
    operators = [key for key in expression if key.startswith("$")]
    if not operators:
        fields = {key: evaluate(one, variables) for key, one in expression.items()}
        return {key: one for key, one in fields.items() if one is not MISSING}
    if len(expression) != 1:
        raise NotKnownError(f"an expression with more than one operator: {sorted(expression)}")
    return _operate(operators[0], expression[operators[0]], variables)


def truth(value: object) -> bool:
    """Tell whether a value counts as true."""
    return value is not MISSING and value is not None and value is not False and value != 0


def _path(expression: str, variables: Variables) -> Any:
    name, *path = expression.lstrip("$").split(".")
    if not expression.startswith("$$"):
        return value_at(variables["ROOT"], [name, *path])
    if name == "REMOVE":
        return MISSING
    if name not in variables:
        raise NotKnownError(f"the variable {expression}")
    return value_at(variables[name], path)


def _null_if_missing(value: object) -> object:
    return None if value is MISSING else value


def _operate(name: str, given: Any, variables: Variables) -> Any:
    if name == "$literal":
        return given
    if name == "$filter":
        return _filter(given, variables)
    if name in _LAZY:
        return _LAZY[name](given, variables)
    if name not in _EAGER:
        raise NotKnownError(f"the operator {name}")
    operands = given if isinstance(given, list) else [given]
    return _EAGER[name]([evaluate(one, variables) for one in operands])


def _cond(given: Any, variables: Variables) -> Any:
    if not isinstance(given, list):
        raise NotKnownError("$cond with named parts")
    condition, then, otherwise = given
    chosen = then if truth(evaluate(condition, variables)) else otherwise
    return evaluate(chosen, variables)


def _if_null(given: Any, variables: Variables) -> Any:
    value: Any = MISSING
    for one in given:
        value = evaluate(one, variables)
        if value is not MISSING and value is not None:
            return value
    return value


def _unset_field(given: Mapping[str, Any], variables: Variables) -> Any:
    if set(given) != {"field", "input"}:
        raise NotKnownError(f"$unsetField with {sorted(given)}")
    document = evaluate(given["input"], variables)
    return {key: one for key, one in document.items() if key != given["field"]}


def _filter(given: Mapping[str, Any], variables: Variables) -> Any:
    if set(given) != {"input", "as", "cond"}:
        raise NotKnownError(f"$filter with {sorted(given)}")
    items = evaluate(given["input"], variables)
    if items is MISSING or items is None:
        return None
    return [one for one in items if truth(evaluate(given["cond"], {**variables, given["as"]: one}))]


def _map(given: Mapping[str, Any], variables: Variables) -> Any:
    if set(given) != {"input", "as", "in"}:
        raise NotKnownError(f"$map with {sorted(given)}")
    items = evaluate(given["input"], variables)
    if items is MISSING or items is None:
        return None
    return [
        _null_if_missing(evaluate(given["in"], {**variables, given["as"]: one})) for one in items
    ]


def _add(operands: Sequence[Any]) -> Any:
    if any(one is MISSING or one is None for one in operands):
        return None
    dates = [one for one in operands if isinstance(one, datetime)]
    number = sum(one for one in operands if not isinstance(one, datetime))
    if len(dates) > 1:
        raise NotKnownError("$add of two dates")
    return dates[0] + timedelta(milliseconds=round(number)) if dates else number


def _subtract(operands: Sequence[Any]) -> Any:
    left, right = operands
    if any(one is MISSING or one is None for one in operands):
        return None
    if isinstance(right, datetime):
        raise NotKnownError("$subtract of a date")
    return _add([left, -right])


def _multiply(operands: Sequence[Any]) -> Any:
    product: float = 1
    for one in operands:
        if one is MISSING or one is None:
            return None
        product *= one
    return product


def _sum(operands: Sequence[Any]) -> Any:
    every = operands[0] if len(operands) == 1 and isinstance(operands[0], list) else operands
    return sum(one for one in every if place_of(one) == place_of(0))


def _min(operands: Sequence[Any]) -> Any:
    present = [one for one in operands if one is not MISSING and one is not None]
    return min(present, key=key_of) if present else None


def _max(operands: Sequence[Any]) -> Any:
    present = [one for one in operands if one is not MISSING and one is not None]
    return max(present, key=key_of) if present else None


def _merge(operands: Sequence[Any]) -> Document:
    merged: Document = {}
    for one in operands:
        merged |= one if isinstance(one, dict) else {}
    return merged


def _concat_arrays(operands: Sequence[Any]) -> Any:
    if any(one is MISSING or one is None for one in operands):
        return None
    return [one for many in operands for one in many]


def _slice(operands: Sequence[Any]) -> Any:
    items, count = operands
    if items is MISSING or items is None:
        return None
    return items[count:] if count < 0 else items[:count]


def _set_union(operands: Sequence[Any]) -> Any:
    if any(one is MISSING or one is None for one in operands):
        return None
    union: list[Any] = []
    for one in (one for many in operands for one in many):
        if not any(same(one, held) for held in union):
            union.append(one)
    return sorted(union, key=key_of)


_LAZY: Mapping[str, Callable[[Any, Variables], Any]] = {
    "$cond": _cond,
    "$ifNull": _if_null,
    "$map": _map,
    "$unsetField": _unset_field,
    "$and": lambda given, known: all(truth(evaluate(one, known)) for one in given),
    "$or": lambda given, known: any(truth(evaluate(one, known)) for one in given),
}
_EAGER: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "$add": _add,
    "$toLong": lambda operands: round((operands[0] - _EPOCH) / timedelta(milliseconds=1)),
    "$subtract": _subtract,
    "$min": _min,
    "$max": _max,
    "$multiply": _multiply,
    "$sum": _sum,
    "$mergeObjects": _merge,
    "$setUnion": _set_union,
    "$concatArrays": _concat_arrays,
    "$slice": _slice,
    "$type": lambda operands: type_of(operands[0]),
    "$not": lambda operands: not truth(operands[0]),
    "$in": lambda operands: any(same(operands[0], one) for one in operands[1]),
    "$eq": lambda operands: key_of(operands[0]) == key_of(operands[1]),
    "$ne": lambda operands: key_of(operands[0]) != key_of(operands[1]),
    "$lt": lambda operands: key_of(operands[0]) < key_of(operands[1]),
    "$lte": lambda operands: key_of(operands[0]) <= key_of(operands[1]),
    "$gt": lambda operands: key_of(operands[0]) > key_of(operands[1]),
    "$gte": lambda operands: key_of(operands[0]) >= key_of(operands[1]),
}
