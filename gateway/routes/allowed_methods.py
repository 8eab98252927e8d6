"""The methods of a path, for the header `Allow`; they come from the app's own routes."""

import re

from fastapi import FastAPI


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """Return the methods that a path supports, in upper case and sorted."""
    found: set[str] = set()
    for template, methods in app.openapi()["paths"].items():
        if re.fullmatch(_PARAMETER.sub("[^/]+", template), path):
            found |= {method.upper() for method in methods}
    return sorted(found)


_PARAMETER = re.compile(r"\{[^}]+\}")
