"""Where mounts may lie in a container: none on, above or below another one. Pure functions.

A mount on another one hides it: a dataset mounted at `/tmp` would be an empty folder.
"""

from pathlib import PurePosixPath
from posixpath import normpath

TMP = PurePosixPath("/tmp")  # noqa: S108 - inside of the container
ENGINES_OWN = tuple(
    PurePosixPath(path)
    for path in (
        "/proc",
        "/sys",
        "/dev",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/sbin/docker-init",
        "/.dockerenv",
    )
)
"""Paths that Docker itself mounts or creates in every container."""


def normal(path: str) -> PurePosixPath:
    """Return the path without `.`, `..` and doubled slashes."""
    return PurePosixPath("/" + normpath(path).lstrip("/"))


def overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Tell whether one lies on, above or below the other."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def in_the_way_of(path: PurePosixPath, others: tuple[PurePosixPath, ...]) -> PurePosixPath | None:
    """Return the first of the others that overlaps the path; None if there is none."""
    return next((other for other in others if overlap(path, other)), None)


def kept_folder(result_file: str | None) -> PurePosixPath | None:
    """Return the folder that becomes a volume, so that the result file in it outlives the process.

    It is all of `/tmp` if the file lies there, because `/tmp` is in memory otherwise. None if the
    file lies in the root folder, on which nothing can be mounted.
    """
    if result_file is None:
        return None
    path = normal(result_file)
    if path.is_relative_to(TMP):
        return TMP
    return None if path.parent == PurePosixPath("/") else path.parent
