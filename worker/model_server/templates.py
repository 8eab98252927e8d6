"""Fills `{model}`, `{dataset}` and `{input}` in one pass, so a filled-in value is not filled again.

`str.format` is not used: a command may contain other braces, and must not access attributes.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from modelyard.contract.strict_json import JsonValue, dump_json

_PLACEHOLDER = re.compile(r"\{(model|dataset|input)\}")
INPUT = "{input}"


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders that `values` names; others stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match.group(1), match.group()), text)


def _fill_by(text: str, value_of: Callable[[str], str]) -> str:
    """Replace all placeholders; `value_of` is called only for those in `text`."""
    return _PLACEHOLDER.sub(lambda match: value_of(match.group(1)), text)


@dataclass(frozen=True)
class Placeholders:
    """The values of one operation's placeholders; the input is parsed only if it is needed."""

    model: str
    dataset: str
    """Where the dataset is mounted in the container; empty without one."""
    input_json: str | None

    @cached_property
    def _input(self) -> JsonValue:
        return None if self.input_json is None else json.loads(self.input_json)

    def _text(self, name: str) -> str:
        if name == "input":
            value = self._input
            return value if isinstance(value, str) else (self.input_json or "null")
        return self.model if name == "model" else self.dataset

    def in_path(self, path: str) -> str:
        """Fill a URL path; each value is one percent-encoded segment, never `.` or `..`."""
        return _fill_by(path, lambda name: _segment(self._text(name)))

    def in_header(self, value: str) -> str:
        """Fill a header; the input becomes ASCII JSON, which can't contain a line end."""

        def text_of(name: str) -> str:
            return json.dumps(self._input) if name == "input" else self._text(name)

        return _fill_by(value, text_of)

    def in_body(self, body: JsonValue) -> str:
        """Fill a JSON body and return it as text; the string `"{input}"` becomes the input."""
        if body == INPUT:
            return self.input_json if self.input_json is not None else "null"
        return dump_json(self._in_value(body))

    def _in_value(self, value: JsonValue) -> JsonValue:
        if isinstance(value, str):
            return self._input if value == INPUT else _fill_by(value, self._text)
        if isinstance(value, Mapping):
            return {key: self._in_value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._in_value(inner) for inner in value]
        return value


def _segment(text: str) -> str:
    quoted = quote(text, safe="")
    return quoted.replace(".", "%2E") if quoted in {".", ".."} else quoted
