"""Text of other people as it may be printed: no character of it is a command to a terminal."""

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that a terminal may take for commands, and surrogates, which can't be written. Tab and
newline are harmless."""
_LAST_BYTE = 0xFF


def plain(text: str) -> str:
    """Return a text with its control characters escaped."""
    return CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code <= _LAST_BYTE else f"\\u{code:04x}"


def in_json(text: str) -> str:
    """Return JSON text with the control characters escaped that JSON itself allows in strings."""
    return CONTROL.sub(lambda one: f"\\u{ord(one.group()):04x}", text)


def one_line(text: str) -> str:
    """Return a text as one line."""
    return " ".join(plain(text).split())
