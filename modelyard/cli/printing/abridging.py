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
    lines = _lines(value, "")
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"… {len(lines) - MOST_LINES + 1:,} more lines"]
    text = "\n".join(lines)
    return text, text != "\n".join(_lines(value, "", whole=True))


def _lines(value: JsonValue, indent: str, *, whole: bool = False) -> list[str]:
    """Return the lines of a value; all but the first begin with `indent`."""
    if isinstance(value, str):
        return [_text(value, whole=whole)]
    if not isinstance(value, list | dict):
        return [json.dumps(value)]
    opening, closing = "[]" if isinstance(value, list) else "{}"
    kept = len(value) if whole else MOST_ITEMS
    inner = indent + "  "
    items: list[list[str]] = []
    if isinstance(value, list):
        items = [_lines(one, inner, whole=whole) for one in value[:kept]]
    else:
        for name, one in list(value.items())[:kept]:
            first, *rest = _lines(one, inner, whole=whole)
            items.append([f"{_text(name, whole=whole)}: {first}", *rest])
    if len(value) > kept:
        items.append([f"… {len(value) - kept:,} more"])
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


def _text(text: str, *, whole: bool) -> str:
    if whole or len(text) <= MOST_CHARS:
        return json.dumps(text, ensure_ascii=False)
    start = json.dumps(text[:MOST_CHARS], ensure_ascii=False)
    return f"{start}… {len(text) - MOST_CHARS:,} more characters"
