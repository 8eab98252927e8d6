"""Strict JSON: what both doors take, and nothing that another parser would read differently.

RFC 8259, narrowed as RFC 7493 (I-JSON) recommends: UTF-8 only, no duplicate names, no NaN or
Infinity, no lone surrogates; depth and the length of numbers are bounded, because what comes
in is not trusted yet.
"""

import json
from typing import Any, NoReturn

from modelyard.contract.errors import ErrorCode, InvalidRequestError

MAX_DEPTH = 64
"""Containers within each other; MongoDB's own limit is 100."""

MAX_NUMBER_DIGITS = 400
"""Digits of one number: enough for every double, too few to make parsing slow."""

JsonValue = Any
"""A parsed JSON value. JSON has no closed Python type that checks well; it stays at the doors."""


def parse_json(body: bytes, *, max_bytes: int) -> JsonValue:
    """Parse `body` strictly.

    Raises `InvalidRequestError` with `body_too_large` for more than `max_bytes` bytes and with
    `invalid_json` for everything else that is wrong, naming what.
    """
    if len(body) > max_bytes:
        raise InvalidRequestError(
            ErrorCode.BODY_TOO_LARGE,
            f"The body has {len(body)} bytes; at most {max_bytes} are taken.",
            max_bytes=max_bytes,
        )
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"It is not UTF-8 (byte {error.start}).") from error
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_bounded_float,
        )
    except json.JSONDecodeError as error:
        message = f"{error.msg} at line {error.lineno}, column {error.colno}."
        raise _invalid(message) from error
    except RecursionError as error:
        raise _too_deep() from error
    if isinstance(value, (dict, list)):
        _check_depth(text, value)
    if "\\u" in text:
        _check_surrogates(value)
    return value


def dump_json(value: JsonValue) -> str:
    """Return `value` as compact JSON text; raises `ValueError` for NaN and Infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def canonical_json(value: JsonValue) -> str:
    """Return one text for all equal values: keys sorted, no spaces. For hashes."""
    return json.dumps(
        value, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorCode.INVALID_JSON, message)


def _check_depth(text: str, value: JsonValue) -> None:
    """Refuse deep nesting; the walk is skipped for the usual text with few containers."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    level: list[JsonValue] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _contained(outer)]
        if not level:
            return
    raise _too_deep()


def _contained(outer: JsonValue) -> list[JsonValue]:
    inner = outer.values() if isinstance(outer, dict) else outer
    return [item for item in inner if isinstance(item, (dict, list))]


def _too_deep() -> InvalidRequestError:
    return _invalid(f"It nests deeper than {MAX_DEPTH} levels.")


def _object_without_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _invalid(f"The name {key[:64]!r} stands twice in one object.")
            seen.add(key)
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid(f"{name} is not a JSON number.")


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise _invalid(f"A number has more than {MAX_NUMBER_DIGITS} digits.")
    return int(digits)


def _bounded_float(digits: str) -> float:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise _invalid(f"A number has more than {MAX_NUMBER_DIGITS} digits.")
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _invalid(f"The number {digits[:32]} is larger than a double can hold.")
    return value


def _check_surrogates(value: JsonValue) -> None:
    """Refuse lone surrogates: they can't be encoded as UTF-8 again."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _invalid("A string has a lone surrogate.") from error
