"""Full image references, and the allow-list of the images that a host may run. Pure.

The full form follows the distribution reference grammar: a missing registry is `docker.io`, a
missing folder there is `library/`, and the first part is a registry only if it has a dot or a colon
or is `localhost`. So `allowed.example.evil.example/x` never matches `allowed.example/*`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_DEFAULT_REGISTRY = "docker.io"
_DEFAULT_REGISTRY_ALIAS = "index.docker.io"
_PATTERN = re.compile(r"[A-Za-z0-9._:/-]+(/\*)?")


@dataclass(frozen=True, slots=True)
class Repository:
    """An image's registry and its path there, without tag and digest."""

    registry: str
    path: str


def repository_of(image: str) -> Repository:
    """Return the repository of an image name, which follows `ImageName`, in its full form."""
    name = image.partition("@")[0]
    head, slash, rest = name.partition("/")
    if slash and _is_registry(head):
        registry, path = _registry(head), rest
    else:
        registry, path = _DEFAULT_REGISTRY, name
    path = path.partition(":")[0]
    if registry == _DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    return Repository(registry, path)


def full_reference(image: str) -> str:
    """Return the full reference of an image name that follows `ImageName`: `registry/path:tag`.

    An engine takes a name such as `sha256:...`, or twelve hexadecimal digits, for the id of any
    image that it has. It never takes a full reference for an id. With a digest the tag is dropped,
    because it has no effect.
    """
    name, at, digest = image.partition("@")
    repository = repository_of(name)
    tag = name.rpartition("/")[2].partition(":")[2] or "latest"
    end = f"@{digest}" if at else f":{tag}"
    return f"{repository.registry}/{repository.path}{end}"


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
        if folder != pattern and "/" not in folder and _is_registry(folder):
            self._folders.add(Repository(_registry(folder), ""))
        elif folder != pattern:
            # With one part in place of the star the default registry is filled in as for an image.
            place = repository_of(f"{pattern[:-1]}x")
            self._folders.add(Repository(place.registry, place.path[:-1]))
        else:
            self._exact.add(repository_of(pattern))


def _is_registry(head: str) -> bool:
    return "." in head or ":" in head or head.lower() == "localhost"


def _registry(head: str) -> str:
    name = head.lower()
    return _DEFAULT_REGISTRY if name == _DEFAULT_REGISTRY_ALIAS else name


def _has_tag(pattern: str) -> bool:
    return ":" in pattern.rpartition("/")[2]
