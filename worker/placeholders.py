"""Filling `{model}`, `{dataset}` and `{input}`: one pass, so what is filled in is never read again.

Not `str.format`: a command may hold other braces, and attribute access has no place here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from modelyard.contract.strict_json import JsonValue, dump_json

_PLACEHOLDER = re.compile(r"\{(model|dataset|input)\}")
INPUT = "{input}"


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders that `values` names; others stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match.group(1), match.group()), text)


@dataclass(frozen=True)
class Fillings:
    """What one operation's placeholders stand for."""

    model: str
    dataset: str
    """Where the dataset is mounted in the container; empty without one."""
    input_json: str | None

    @cached_property
    def _input(self) -> JsonValue:
        return None if self.input_json is None else json.loads(self.input_json)

    @cached_property
    def _texts(self) -> dict[str, str]:
        value = self._input
        as_text = value if isinstance(value, str) else (self.input_json or "null")
        return {"model": self.model, "dataset": self.dataset, "input": as_text}

    def in_path(self, path: str) -> str:
        """Fill a URL path; each value is one percent-encoded segment, never `.` or `..`."""
        return fill(path, {name: _segment(text) for name, text in self._texts.items()})

    def in_header(self, value: str) -> str:
        """Fill a header; the input is ASCII JSON there, so it can't end the line."""
        texts = {**self._texts, "input": json.dumps(self._input)}
        return fill(value, texts)

    def in_body(self, body: JsonValue) -> str:
        """Fill a JSON body and return it as text; the string `"{input}"` becomes the input."""
        if body == INPUT:
            return self.input_json if self.input_json is not None else "null"
        return dump_json(self._in_value(body))

    def _in_value(self, value: JsonValue) -> JsonValue:
        if isinstance(value, str):
            return self._input if value == INPUT else fill(value, self._texts)
        if isinstance(value, Mapping):
            return {key: self._in_value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._in_value(inner) for inner in value]
        return value


def _segment(text: str) -> str:
    quoted = quote(text, safe="")
    return quoted.replace(".", "%2E") if quoted in {".", ".."} else quoted
