"""Strict JSON: the form that HTTP and AMQP requests must have, which all parsers read alike.

RFC 8259, narrowed as RFC 7493 (I-JSON) recommends: UTF-8 only, no duplicate names, no NaN or
Infinity, no lone surrogates. Depth and the length of numbers are limited, because the input is not
trusted.
"""

import json
import re
from typing import Any, NoReturn

from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.json_bounds import (
    REQUEST_LIMITS,
    JsonLimits,
    check_bounds,
    may_hold_unusual_numbers,
    too_deep,
)

MAX_NUMBER_DIGITS = 400
"""Digits of one number: enough for every double, too few to make parsing slow."""
_MAYBE_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

JsonValue = Any
"""A parsed JSON value. Python has no closed type for JSON that mypy checks well, so this type is
used only where JSON enters or leaves."""


def parse_json(body: bytes, *, max_bytes: int, limits: JsonLimits = REQUEST_LIMITS) -> JsonValue:
    """Parse `body` strictly, after its contents were checked against `limits`.

    Raises `InvalidRequestError` with `body_too_large` for more than `max_bytes` bytes and with
    `invalid_json` for every other fault; its message says which.
    """
    if len(body) > max_bytes:
        raise InvalidRequestError(
            ErrorCode.BODY_TOO_LARGE,
            f"The body has {len(body)} bytes; at most {max_bytes} are allowed.",
            max_bytes=max_bytes,
        )
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"It is not UTF-8 (byte {error.start}).") from error
    if not text or text.isspace():
        raise _invalid("It is empty.")
    check_bounds(body, limits)
    each_number = may_hold_unusual_numbers(body)  # checking each of them is slow
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int if each_number else None,
            parse_float=_bounded_float if each_number else None,
        )
    except json.JSONDecodeError as error:
        message = f"{error.msg} at line {error.lineno}, column {error.colno}."
        raise _invalid(message) from error
    except RecursionError as error:
        raise too_deep() from error
    if "\\u" in text and _MAYBE_LONE_SURROGATE.search(text):
        _check_surrogates(value)
    return value


_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_CANONICAL = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")
)


def dump_json(value: JsonValue) -> str:
    """Return `value` as compact JSON text; raises `ValueError` for NaN and Infinity."""
    return _COMPACT.encode(value)


def canonical_json(value: JsonValue) -> str:
    """Return the same text for equal values: keys sorted, no spaces. For hashes."""
    return _CANONICAL.encode(value)


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorCode.INVALID_JSON, message)


def _object_without_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _invalid(f"The name {key[:64]!r} appears twice in one object.")
            seen.add(key)
    return value


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
