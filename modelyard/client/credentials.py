"""The API key that a client sends: given to it, or from `MODELYARD_API_KEY`."""

import os
import re
from urllib.parse import urlsplit

VARIABLE = "MODELYARD_API_KEY"

_SENDABLE = re.compile(r"[!-~]+")


def authorization(url: str, api_key: str | None) -> dict[str, str]:
    """Return the header that proves who asks; empty if there is no key, or an empty one is given.

    Raises `ValueError` for what can't be sent. No message repeats the key.
    """
    key = (os.environ.get(VARIABLE, "") if api_key is None else api_key).strip()
    if not key:
        return {}
    if not _SENDABLE.fullmatch(key):
        raise ValueError(f"the API key ({VARIABLE}) has characters that no key has")
    if urlsplit(url).username is not None:
        raise ValueError(
            f"the URL has a user, and there is an API key too ({VARIABLE}): a request carries one "
            "of them only"
        )
    return {"Authorization": f"Bearer {key}"}
