"""Results on a terminal: short ones whole, long ones abridged with what was left out."""

import json

import pytest

from modelyard.cli.printing.abridging import MOST_CHARS, MOST_ITEMS, MOST_LINES, abridged
from modelyard.contract.strict_json import JsonValue


@pytest.mark.parametrize(
    "value", [None, 1.5, "ü", [], {}, [1, [2, {"a": "b"}]], {"outputs": [{"data": [1, 2]}]}]
)
def test_a_short_value_is_whole_and_still_json(value: JsonValue) -> None:
    text, left_out = abridged(value)
    assert json.loads(text) == value
    assert not left_out


def test_long_lists_objects_and_texts_say_how_much_was_left_out() -> None:
    value: JsonValue = {
        "data": list(range(784)),
        "text": "x" * (MOST_CHARS + 1_000),
        "named": {str(n): n for n in range(MOST_ITEMS + 2)},
    }
    text, left_out = abridged(value)
    assert left_out
    assert "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … 774 more]" in text
    assert '"… 1,000 more characters' in text
    assert "… 2 more" in text


def test_what_is_nested_deeply_is_cut_by_lines() -> None:
    row = [f"a text of some length, number {n}" for n in range(9)]
    text, left_out = abridged([[row] * 10] * 10)
    assert left_out
    assert text.count("\n") == MOST_LINES - 1
    assert text.splitlines()[-1].endswith("more lines")
