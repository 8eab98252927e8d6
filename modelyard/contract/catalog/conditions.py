"""The rules about more than one field of an entry, as far as JSON Schema can say them.

The rules themselves are in `entries.py`, at `MODEL_RULES` and `DATASET_RULES`.
"""

from collections.abc import Sequence
from typing import Any

JsonSchema = dict[str, Any]


def _hooks(profile: str, names: Sequence[str]) -> JsonSchema:
    """Say which hooks a profile needs."""
    given = {
        "required": list(names),
        "properties": {name: {"not": {"type": "null"}} for name in names},
    }
    return {
        "if": {"properties": {"profile": {"const": profile}}},
        "then": {"required": ["hooks"], "properties": {"hooks": given}},
    }


MODEL_CONDITIONS: JsonSchema = {
    "allOf": [
        {
            "if": {"properties": {"profile": {"not": {"const": "batch"}}}},
            "then": {
                "required": ["port"],
                "properties": {"port": {"type": "integer"}, "result_file": {"type": "null"}},
            },
        },
        _hooks("http", ("load", "unload", "infer")),
        _hooks("process", ("infer",)),
    ]
}
DATASET_CONDITIONS: JsonSchema = {
    "oneOf": [
        {
            "required": [given],
            "properties": {given: {"type": "string"}, other: {"type": "null"}},
        }
        for given, other in (("volume", "path"), ("path", "volume"))
    ]
}
