"""The single values of catalog entries: sizes, paths, names, numbers, each with its rules."""

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
)

from modelyard.contract.catalog.rules import ON_ENTRY
from modelyard.contract.ids import MustBe

_SIZE = re.compile(r"(\d+)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII)
_SIZE_FACTORS = {None: 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MAX_ID = (1 << 31) - 1
"""The largest user or group id that Docker takes."""


def parse_size(value: object) -> object:
    """Turn `512m` or `2GiB` into bytes as Docker counts them: every unit is a power of 1,024.

    Anything that is not a string is returned as it is, for the field's own check.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or len(match.group(1)) > len(str(1 << 50)):
        raise ValueError("a size in bytes, or with k, m, g or t, such as 512m")
    unit = match.group(2)
    return int(match.group(1)) * _SIZE_FACTORS[unit.lower() if unit else None]


SizeText = Annotated[str, StringConstraints(pattern=r"^[0-9]+ *([kmgtKMGT]([iI]?[bB])?|[bB])?$")]
Size = Annotated[
    int,
    Field(strict=True, ge=0, le=1 << 50),
    BeforeValidator(parse_size, json_schema_input_type=int | SizeText),
    ON_ENTRY,
]
"""Bytes; written as an integer or as `512m`, `2g` (powers of 1,024, as Docker means them)."""

AUTO: Literal["auto"] = "auto"
"""In the place of a size: as much as the model was measured to take."""
_SIZES = TypeAdapter[int](Annotated[int, Field(strict=True, ge=0, le=1 << 50)])


def _size_or_auto(value: object) -> int | Literal["auto"]:
    if value == AUTO:
        return AUTO
    try:
        return _SIZES.validate_python(parse_size(value))
    except ValueError as error:  # pydantic's own is one, too
        # One fault with the field's own name; a union would name each of its parts.
        message = 'a size in bytes, or with k, m, g or t, such as 512m; or "auto"'
        raise ValueError(message) from error


SizeOrAuto = Annotated[
    int | Literal["auto"],
    PlainValidator(_size_or_auto, json_schema_input_type=int | SizeText | Literal["auto"]),
    ON_ENTRY,
]
"""A size as in `Size`, or `auto`."""

Switch = Annotated[bool, Field(strict=True), ON_ENTRY]
"""`true` or `false`; a text or a number can't stand for one."""

Text = Annotated[
    str,
    StringConstraints(strict=True, max_length=4096, pattern=r"^[^\x00]*$"),
    MustBe("a text of at most 4,096 characters, without the character NUL"),
    ON_ENTRY,
]
AbsolutePath = Annotated[
    str,
    StringConstraints(
        strict=True, max_length=4096, pattern=r"^/([^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*)?$"
    ),
    MustBe("an absolute path such as /srv/data, of at most 4,096 characters"),
    ON_ENTRY,
]
UrlPath = Annotated[
    str,
    StringConstraints(
        strict=True, max_length=2048, pattern=r"^/([^/\x00-\x20\x7f\\#][^\x00-\x20\x7f\\#]*)?$"
    ),
    MustBe(
        "the path of a URL, such as /v1/predict, without scheme, host, spaces and `#`, and of at "
        "most 2,048 characters"
    ),
    ON_ENTRY,
]
"""A path on the container's own port; never a scheme, a host or a fragment."""

EnvName = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$"),
    MustBe("1 to 256 letters, digits and `_`, without a digit first"),
    ON_ENTRY,
]
Label = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$"),
    MustBe("1 to 128 letters, digits, `_`, `.`, `/` and `-`, with a letter or digit first"),
    ON_ENTRY,
]
HeaderName = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"),
    MustBe("the name of an HTTP header, of at most 128 characters"),
    ON_ENTRY,
]
"""A token of RFC 9110."""
HeaderValue = Annotated[
    str,
    StringConstraints(
        strict=True,
        max_length=4096,
        pattern=r"^([^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?$",
    ),
    MustBe("one line of at most 4,096 characters, without spaces around it"),
    ON_ENTRY,
]
"""One line without spaces around it."""
ServedName = Annotated[
    str,
    StringConstraints(
        strict=True,
        max_length=256,
        pattern=(
            r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*"
            r"(:[A-Za-z0-9][A-Za-z0-9_.-]*)?$"
        ),
    ),
    MustBe("a name such as digits or organisation/model:tag, of at most 256 characters"),
    ON_ENTRY,
]
"""A name as model hubs have them, too: `organisation/model:tag`."""
VolumeName = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$"),
    MustBe("1 to 128 letters, digits, `_`, `.` and `-`, with a letter or digit first"),
    ON_ENTRY,
]
FileInside = Annotated[
    str,
    StringConstraints(strict=True, max_length=1024, pattern=r"^[^/\x00-\x1f][^\x00-\x1f]*$"),
    MustBe("a path inside of the dataset, without `/` first, of at most 1,024 characters"),
    ON_ENTRY,
]


def _ids_are_in_range(user: str) -> str:
    if any(int(number) > MAX_ID for number in user.split(":")):
        raise ValueError(f"a user and a group id are at most {MAX_ID}")
    return user


User = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[1-9][0-9]{0,9}(:[1-9][0-9]{0,9})?$"),
    MustBe("numbers, `uid` or `uid:gid`, and neither may be 0, which is root"),
    AfterValidator(_ids_are_in_range),
    ON_ENTRY,
]
"""`uid` or `uid:gid`, neither of them 0: the group 0 may read and write files of root too."""

_IMAGE_ID = re.compile(r"(sha256:.*|[a-f0-9]{12,64})")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_STEP = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_STEP}(?:/{_STEP})*")
_MAX_REPOSITORY = 255


def is_registry(head: str) -> bool:
    """Tell whether the first part of an image name is a registry, by the rule of distribution."""
    return "." in head or ":" in head or head == "localhost"


def _is_a_reference(image: str) -> str:
    if _IMAGE_ID.fullmatch(image):
        raise ValueError("an image is named by its repository, never by its id")
    name = image.partition("@")[0]
    last = name.rpartition("/")[2]
    repository = name.removesuffix(f":{last.partition(':')[2]}") if ":" in last else name
    head, slash, rest = repository.partition("/")
    if slash and is_registry(head):
        path = rest
        if _REGISTRY.fullmatch(head) is None:
            raise ValueError("the registry of an image is a host name, or one with a port")
    else:
        path = repository
    if _PATH.fullmatch(path) is None:
        raise ValueError(
            "the repository of an image is lower-case letters and digits, with single . _ - or / "
            "between them"
        )
    if len(repository) > _MAX_REPOSITORY:
        raise ValueError(f"the repository of an image has at most {_MAX_REPOSITORY} characters")
    return image


ImageName = Annotated[
    str,
    StringConstraints(
        strict=True,
        max_length=512,
        pattern=(
            r"^([a-zA-Z0-9][a-zA-Z0-9.-]*(:[0-9]{1,5})?/)?"
            r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
            r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[a-f0-9]{64})?$"
        ),
    ),
    MustBe(
        "the name of an image such as registry.example/team/model:3, with lower-case letters in "
        "its repository, of at most 512 characters"
    ),
    AfterValidator(_is_a_reference),
    ON_ENTRY,
]
"""`[registry[:port]/]repository[:tag][@sha256:digest]`, the grammar of distribution references.

The first part is a registry only if it has a dot or a colon or is `localhost`; all other parts are
lower-case. A name that an engine would read as an image's id is refused: `sha256:...`, or 12 to 64
hexadecimal digits alone.
"""
