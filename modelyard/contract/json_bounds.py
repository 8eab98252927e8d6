"""Limits on the contents of a JSON text, checked on its bytes before the parser builds any object.

A byte of JSON can become a hundred bytes of Python objects, and each name that no schema knows
becomes a validation error. So names, containers and values are counted first, by the structural
characters outside of strings. The counting runs in C (`bytes.count`, one regular expression,
`bytes.translate`).
"""

import re
from dataclasses import dataclass

from modelyard.contract.errors import ErrorCode, InvalidRequestError

MAX_DEPTH = 64
"""Levels of nested objects and lists; MongoDB's own limit is 100."""
MAX_NAMES = 250_000
"""Names in all objects of one body. More than one request of 1 MiB can hold, for each needs five
bytes or more; in a batch of 8 MiB it is one name for every 33 bytes. A name costs about 200 bytes
of memory, so all of them cost 50 MB."""
MAX_CONTAINERS = 1 << 20
"""Objects and lists in one body: an image of three channels as nested lists has one list for every
8 bytes, so 8 MiB of such images still fit. A list costs about 90 bytes of memory."""
MAX_VALUES = 1 << 22
"""Values of any kind in one body; numbers of one digit are two bytes each, so 8 MiB of them fit."""


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """The most that one text may contain."""

    names: int = MAX_NAMES
    containers: int = MAX_CONTAINERS
    values: int = MAX_VALUES


REQUEST_LIMITS = JsonLimits()
"""For requests, alone or in batches, and for the answers of models."""
CATALOG_LIMITS = JsonLimits(names=2_000, containers=2_000, values=10_000)
"""For a model or a dataset; low, because validation may report an error for each name."""
REPORT_LIMITS = JsonLimits(names=MAX_NAMES, containers=50_000, values=500_000)
"""For reports of workers: an inventory has one object for each container on the host."""

# Possessive quantifiers never backtrack, and a string without an end goes to that of the text: so
# what begins at a quote always matches, no byte is read twice, and the time is linear in the
# length of the text.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_ONE_KIND_OF_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NUMBER = bytes(48 if byte in b"0123456789+-.eE" else 32 for byte in range(256))
_LONG_NUMBER = b"0" * 200
_LARGE_EXPONENT = re.compile(rb"[eE]\+?0*[1-9][0-9]{2}")


def check_bounds(body: bytes, limits: JsonLimits = REQUEST_LIMITS) -> None:
    """Raise `InvalidRequestError` with `invalid_json` if `body` has more than the limits allow.

    A text that is not JSON may pass; the parser rejects it.
    """
    containers, names, values = _count(body)
    if containers <= MAX_DEPTH and names <= limits.names and values <= limits.values:
        return  # an upper bound: characters inside of strings were counted too
    structure = _STRING.sub(b'"', body)
    containers, names, values = _count(structure)
    for count, most, what in (
        (names, limits.names, "names in its objects"),
        (containers, limits.containers, "objects and lists"),
        (values, limits.values, "values"),
    ):
        if count > most:
            raise InvalidRequestError(
                ErrorCode.INVALID_JSON, f"It has {count} {what}; at most {most} are allowed."
            )
    _check_depth(structure)


def too_deep() -> InvalidRequestError:
    """Return the error for a text that nests too deep."""
    return InvalidRequestError(ErrorCode.INVALID_JSON, f"It nests deeper than {MAX_DEPTH} levels.")


def may_hold_unusual_numbers(body: bytes) -> bool:
    """Return False if no number in `body` has 200 characters, or an exponent of 100 or more.

    All numbers of such a text fit into a double, so the parser need not check each of them.
    """
    long = len(body) >= len(_LONG_NUMBER) and _LONG_NUMBER in body.translate(_NUMBER)
    return long or _LARGE_EXPONENT.search(body) is not None


def _count(text: bytes) -> tuple[int, int, int]:
    """Count the containers, names and values of a text; strings in it may raise the counts."""
    containers = text.count(b"[") + text.count(b"{")
    return containers, text.count(b":"), containers + text.count(b",") + 1


def _check_depth(structure: bytes) -> None:
    """Remove the innermost pairs of brackets, level by level; raise if a pair is left at last."""
    brackets = structure.translate(_ONE_KIND_OF_BRACKET, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        if b"[]" not in brackets:
            return  # nothing is left, or the brackets are unbalanced, which the parser reports
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets:
        raise too_deep()
