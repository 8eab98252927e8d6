"""Long results on a terminal: abridged, so that they can be read. A pipe gets them whole."""

import json

from modelyard.contract.strict_json import JsonValue

MOST_ITEMS = 10
"""Items of one list or object that are shown."""
MOST_CHARS = 500
"""Characters of one text that are shown."""
MOST_LINES = 60
_WIDTH = 100


def abridged(value: JsonValue) -> tuple[str, bool]:
    """Return a value as lines for people, and whether something was left out.

    What was left out is said in its place, so an abridged text is not JSON.
    """
    left_out: list[str] = []
    lines = _lines(value, "", left_out)
    if len(lines) > MOST_LINES:
        left_out.append(f"… {len(lines) - MOST_LINES + 1:,} more lines")
        lines = [*lines[: MOST_LINES - 1], left_out[-1]]
    return "\n".join(lines), bool(left_out)


def _lines(value: JsonValue, indent: str, left_out: list[str]) -> list[str]:
    """Return the lines of a value, and add to `left_out` what stands for something else.

    All lines but the first begin with `indent`.
    """
    if isinstance(value, str):
        return [_text(value, left_out)]
    if not isinstance(value, list | dict):
        return [json.dumps(value)]
    opening, closing = "[]" if isinstance(value, list) else "{}"
    inner = indent + "  "
    items: list[list[str]] = []
    if isinstance(value, list):
        items = [_lines(one, inner, left_out) for one in value[:MOST_ITEMS]]
    else:
        for name, one in list(value.items())[:MOST_ITEMS]:
            first, *rest = _lines(one, inner, left_out)
            items.append([f"{_text(name, left_out)}: {first}", *rest])
    if len(value) > MOST_ITEMS:
        left_out.append(f"… {len(value) - MOST_ITEMS:,} more")
        items.append([left_out[-1]])
    flat = ", ".join(item[0] for item in items)
    if all(len(item) == 1 for item in items) and len(indent) + len(flat) <= _WIDTH:
        return [f"{opening}{flat}{closing}"]
    lines = [opening]
    for at, item in enumerate(items):
        first, *rest = item
        block = [inner + first, *rest]
        if at < len(items) - 1:
            block[-1] += ","
        lines += block
    return [*lines, indent + closing]


def _text(text: str, left_out: list[str]) -> str:
    if len(text) <= MOST_CHARS:
        return json.dumps(text, ensure_ascii=False)
    left_out.append(f"… {len(text) - MOST_CHARS:,} more characters")
    return json.dumps(text[:MOST_CHARS], ensure_ascii=False) + left_out[-1]
