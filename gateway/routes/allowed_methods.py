"""Which methods an address takes, for `Allow`: read from the same routes that answer."""

import re

from fastapi import FastAPI


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """Return the methods that a path takes, in upper case and in order."""
    found: set[str] = set()
    for template, methods in app.openapi()["paths"].items():
        if re.fullmatch(_PLACE.sub("[^/]+", template), path):
            found |= {method.upper() for method in methods}
    return sorted(found)


_PLACE = re.compile(r"\{[^}]+\}")
