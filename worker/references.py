"""Which images a host runs: references in their full form, and the allow-list over them. Pure.

The full form is that of the distribution reference grammar: `docker.io` and `library/` stand in
for what is left out, and the first part is a registry only if it has a dot, a colon or is
`localhost`. So `allowed.example.evil.example/x` never matches `allowed.example/*`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_DEFAULT_REGISTRY = "docker.io"
_PATTERN = re.compile(r"[A-Za-z0-9._:/-]+(/\*)?")


@dataclass(frozen=True, slots=True)
class Repository:
    """Where an image comes from, without tag and digest."""

    registry: str
    path: str


def repository_of(image: str) -> Repository:
    """Return the full form of an image name that follows `ImageName`."""
    name = image.partition("@")[0]
    head, slash, rest = name.partition("/")
    if slash and ("." in head or ":" in head or head.lower() == "localhost"):
        registry, path = head.lower(), rest
    else:
        registry, path = _DEFAULT_REGISTRY, name
    path = path.partition(":")[0]
    if registry in {"index.docker.io", _DEFAULT_REGISTRY}:
        registry = _DEFAULT_REGISTRY
        path = path if "/" in path else f"library/{path}"
    return Repository(registry, path)


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
        """Return whether the host runs this image."""
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
        if pattern.endswith("/*"):
            # The star stands for one part, so that the default registry is filled in alike.
            place = repository_of(f"{pattern[:-1]}x")
            self._folders.add(Repository(place.registry, place.path[:-1]))
        else:
            self._exact.add(repository_of(pattern))


def _has_tag(pattern: str) -> bool:
    return ":" in pattern.rpartition("/")[2]
