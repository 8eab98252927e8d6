"""The API key that a client sends: its argument, or the variable `MODELYARD_API_KEY`."""

import os
import re
from urllib.parse import urlsplit

VARIABLE = "MODELYARD_API_KEY"

_SENDABLE = re.compile(r"[!-~]+")


def authorization(url: str, api_key: str | None) -> dict[str, str]:
    """Return the header with the API key; no header if there is no key, or an empty one.

    Raises `ValueError` for a key that can't be sent. No message repeats the key.
    """
    key = (os.environ.get(VARIABLE, "") if api_key is None else api_key).strip()
    if not key:
        return {}
    if not _SENDABLE.fullmatch(key):
        raise ValueError(f"the API key ({VARIABLE}) has characters that can't be in a key")
    if urlsplit(url).username is not None:
        raise ValueError(
            f"the URL has a user, and there is an API key too ({VARIABLE}): a request can carry "
            "only one of them"
        )
    return {"Authorization": f"Bearer {key}"}
