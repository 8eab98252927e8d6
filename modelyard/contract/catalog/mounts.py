"""What may lie where in a container: no mount lies on, above or below another one. Pure.

A mount on another one hides it: a dataset at `/tmp` would be an empty folder.
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
"""What Docker puts into every container itself."""


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
    """Return the folder of a result file that is laid on a volume, so that it outlives the process.

    All of `/tmp` if the file lies there, which is in memory else. None for the root folder, on
    which nothing can be mounted.
    """
    if result_file is None:
        return None
    path = normal(result_file)
    if path.is_relative_to(TMP):
        return TMP
    return None if path.parent == PurePosixPath("/") else path.parent
