"""Text and facts for people in messages and records: cut to a bound, never refused. Pure.

So a report of an end is not lost because its text is long, and what an older version has stored
stays readable.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BeforeValidator

MAX_FACTS_CHARS = 16 << 10
"""Characters of all names and texts of some facts; each other value counts as `_VALUE_CHARS`."""
MAX_FACT_CHARS = 4_096
"""Characters of one text. The end of a log, the longest that a worker sends, has 2,048."""
MAX_NAME_CHARS = 128
MAX_FACTS_DEPTH = 8
"""Levels of objects and lists; what is deeper is left out."""
_MAX_STORED_CHARS = 1 << 20
"""Characters of a JSON text that is read at all."""
_VALUE_CHARS = 8
_CUT = "…"


def cut_to(most: int) -> BeforeValidator:
    """Return a validator that cuts a text after `most` characters."""
    return BeforeValidator(lambda value: cut(value, most) if isinstance(value, str) else value)


def cut(text: str, most: int) -> str:
    """Return the first `most` characters; the last one of a text that was longer is `…`.

    What UTF-8 can't carry is replaced.
    """
    kept = text if len(text) <= most else text[: max(0, most - 1)] + _CUT
    return kept if kept.isascii() else kept.encode("utf-8", "replace").decode()


def bounded_facts(value: object) -> object:
    """Return facts within all bounds, given as an object or as its JSON text.

    Empty if the text can't be read. What is no object is returned as it is.
    """
    if isinstance(value, str):
        value = _read(value)
    return _Room(MAX_FACTS_CHARS).object_of(value, 1) if isinstance(value, dict) else value


def _read(text: str) -> object:
    if len(text) > _MAX_STORED_CHARS:
        return {}
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {}


@dataclass(slots=True)
class _Room:
    """What may still be kept of some facts."""

    left: int

    def object_of(self, value: dict[Any, Any], depth: int) -> dict[str, object]:
        kept: dict[str, object] = {}
        for name, one in value.items():
            if self.left <= 0:
                break
            kept[self._text(str(name), MAX_NAME_CHARS)] = self._fact(one, depth)
        return kept

    def _list_of(self, values: Iterable[Any], depth: int) -> list[object]:
        kept: list[object] = []
        for one in values:
            if self.left <= 0:
                break
            kept.append(self._fact(one, depth))
        return kept

    def _fact(self, value: object, depth: int) -> object:
        if isinstance(value, str):
            return self._text(value, MAX_FACT_CHARS)
        self.left -= _VALUE_CHARS
        if isinstance(value, dict | list | tuple):
            if depth == MAX_FACTS_DEPTH:
                return None
            if isinstance(value, dict):
                return self.object_of(value, depth + 1)
            return self._list_of(value, depth + 1)
        return value if _is_plain(value) else None

    def _text(self, text: str, most: int) -> str:
        kept = cut(text, min(most, max(1, self.left)))
        self.left -= len(kept)
        return kept


def _is_plain(value: object) -> bool:
    """Tell whether a number is one that JSON has and every reader can hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(1 << 63) <= value < 1 << 64
