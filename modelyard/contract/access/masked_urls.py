"""URLs as people may see them: without passwords."""

import re

MASK = "***"
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_SECRET_OPTION = re.compile(
    r"([?&][^=&]*(?:password|secret|token|properties)[^=&]*=)[^&]*", re.IGNORECASE
)


def is_url(text: str) -> bool:
    """Tell whether a text begins as a URL does."""
    return _SCHEME.match(text) is not None


def masked_url(text: str) -> str:
    """Return a URL without its password, and without the options that hold one.

    A password may contain characters that a URL has to escape, so everything from the first colon
    to the last `@` is masked, rather too much than too little; also in a URL without a scheme.
    """
    found = _SCHEME.match(text)
    scheme = found.group() if found else ""
    user, at, place = text.removeprefix(scheme).rpartition("@")
    if at:
        name, colon, _password = user.partition(":")
        user = f"{name}{colon}{MASK if colon else ''}"
    return scheme + _SECRET_OPTION.sub(rf"\g<1>{MASK}", f"{user}{at}{place}")
