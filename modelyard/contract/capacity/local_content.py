"""What a host has at hand, so that a container starts there without fetching it. Pure.

It is a preference of placement and never a promise: an image may be removed a moment later.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_NAMES = 256
"""Images that a host tells of, and datasets."""
MOST_CHARACTERS = 16 << 10
"""Characters of all names of images, and of all datasets."""
MAX_NAME = 600
"""Characters of one: an image's name in the catalog has at most 512, and gets its registry."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME)]
Names = Annotated[tuple[Name, ...], Field(max_length=MOST_NAMES)]


class LocalContent(BaseModel):
    """The images and datasets of a host, as far as its worker tells."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    images: Names = ()
    """Full references of the images that its engine has and that may run there, by tag and by
    digest, the newest first."""
    datasets: Names = ()
    """Volumes by their names, and folders under the dataset roots by their paths, that may be
    mounted there and are not empty as far as that is known."""


def within_bounds(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first of some names, as many as a host may tell of; each of them once."""
    kept: dict[str, None] = {}
    characters = 0
    for name in names:
        characters += 0 if name in kept else len(name)
        if characters > MOST_CHARACTERS or len(kept) == MOST_NAMES:
            break
        if 0 < len(name) <= MAX_NAME:
            kept[name] = None
    return tuple(kept)
