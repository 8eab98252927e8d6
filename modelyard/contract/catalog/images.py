"""Full image references: one name for an image, however it is written. Pure.

The full form follows the distribution reference grammar: a missing registry is `docker.io`, a
missing folder there is `library/`, and the first part is a registry only if it has a dot or a colon
or is `localhost`.
"""

from dataclasses import dataclass

_DEFAULT_REGISTRY = "docker.io"
_DEFAULT_REGISTRY_ALIAS = "index.docker.io"


@dataclass(frozen=True, slots=True)
class Repository:
    """An image's registry and its path there, without tag and digest."""

    registry: str
    path: str


def repository_of(image: str) -> Repository:
    """Return the repository of an image name, which follows `ImageName`, in its full form."""
    name = image.partition("@")[0]
    head, slash, rest = name.partition("/")
    if slash and names_a_registry(head):
        registry, path = registry_name(head), rest
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


def names_a_registry(head: str) -> bool:
    """Tell whether the first part of a name is a registry, in whatever case it is written."""
    return "." in head or ":" in head or head.lower() == "localhost"


def registry_name(head: str) -> str:
    """Return the one name of a registry that may be written in several ways."""
    name = head.lower()
    return _DEFAULT_REGISTRY if name == _DEFAULT_REGISTRY_ALIAS else name
