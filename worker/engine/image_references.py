"""The allow-list of the images that a host may run. Pure.

Images are compared by their full references, so `allowed.example.evil.example/x` never matches
`allowed.example/*`.
"""

import re
from collections.abc import Sequence

from modelyard.contract.catalog.images import (
    Repository,
    names_a_registry,
    registry_name,
    repository_of,
)

_PATTERN = re.compile(r"[A-Za-z0-9._:/-]+(/\*)?")


class AllowList:
    """Patterns `registry/repository`, `registry/folder/*`, `registry/*`, or `*` for any image."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Parse the patterns; raises `ValueError` for one of another form."""
        self._any = False
        self._exact: set[Repository] = set()
        self._folders: set[Repository] = set()
        for pattern in patterns:
            self._add(pattern)

    def allows(self, image: str) -> bool:
        """Return whether the host may run this image."""
        if self._any:
            return True
        asked = repository_of(image)
        return asked in self._exact or any(
            asked.registry == folder.registry and asked.path.startswith(folder.path)
            for folder in self._folders
        )

    def _add(self, pattern: str) -> None:
        if pattern == "*":
            self._any = True
            return
        if _PATTERN.fullmatch(pattern) is None or _has_tag(pattern):
            raise ValueError(
                f"{pattern!r} is not an image pattern: registry/repository or registry/folder/*"
            )
        folder = pattern.removesuffix("/*")
        if folder != pattern and "/" not in folder and names_a_registry(folder):
            self._folders.add(Repository(registry_name(folder), ""))
        elif folder != pattern:
            # With one part in place of the star the default registry is filled in as for an image.
            place = repository_of(f"{pattern[:-1]}x")
            self._folders.add(Repository(place.registry, place.path[:-1]))
        else:
            self._exact.add(repository_of(pattern))


def _has_tag(pattern: str) -> bool:
    return ":" in pattern.rpartition("/")[2]
