"""Why an operation did not succeed, whole: code, sentence, and each fact that came with it."""

import json
from collections.abc import Iterator

from modelyard.cli.printing.plain import plain
from modelyard.contract.errors import ErrorInfo


def failure_lines(error: ErrorInfo) -> Iterator[str]:
    """Yield the lines that tell an error; texts of several lines are indented blocks."""
    yield plain(f"{error.code}: {error.message}")
    for name, value in error.detail.items():
        if value is None or value == "":
            continue
        label = plain(name.replace("_", " "))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines = plain(text.rstrip("\n")).split("\n")
        if len(lines) == 1:
            yield f"  {label}: {lines[0]}"
        else:
            yield f"  {label}:"
            yield from (f"    {line}" for line in lines)
