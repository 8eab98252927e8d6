"""What a host has at hand, so that a container starts there without fetching it. Pure.

It is a preference of placement and never a promise: an image may be removed a moment later.
"""

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_NAMES = 256
"""Images that a host tells of, and datasets."""
MOST_CHARACTERS = 16 << 10
"""Characters of all names of images, and of all datasets."""
MAX_NAME = 600
"""Characters of one: an image's name in the catalog has at most 512, and gets its registry."""

_TELLABLE = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{MAX_NAME}}}")
"""A file's name that is not UTF-8 has surrogates in Python, which no message can carry; and no
entry of the catalog has control characters."""

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
    """Return the first of some names, as many as a host may tell of; each of them once.

    A name that is too long, that is not UTF-8 or that has control characters is left out.
    """
    kept: dict[str, None] = {}
    characters = 0
    for name in names:
        if name in kept or _TELLABLE.fullmatch(name) is None:
            continue
        characters += len(name)
        if characters > MOST_CHARACTERS or len(kept) == MOST_NAMES:
            break
        kept[name] = None
    return tuple(kept)
