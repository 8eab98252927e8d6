"""The catalog: which image a model is, what it needs and how one talks to it; what a dataset is."""

import re
from enum import StrEnum
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from modelyard.contract.ids import Id

_SIZE = re.compile(r"(\d+)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_SIZE_FACTORS = {None: 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(value: object) -> object:
    """Turn `512m` or `2GiB` into bytes as Docker counts them: every unit is a power of 1,024.

    Anything that is not a string is returned as it is, for the field's own check.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("a size in bytes, or with k, m, g or t, such as 512m")
    unit = match.group(2)
    return int(match.group(1)) * _SIZE_FACTORS[unit.lower() if unit else None]


SizeText = Annotated[str, StringConstraints(pattern=r"^[0-9]+ *([kmgtKMGT]([iI]?[bB])?|[bB])?$")]
Size = Annotated[
    int,
    Field(strict=True, ge=0, le=1 << 50),
    BeforeValidator(parse_size, json_schema_input_type=int | SizeText),
]
"""Bytes; written as an integer or as `512m`, `2g` (powers of 1,024, as Docker means them)."""

Text = Annotated[str, StringConstraints(strict=True, max_length=4096, pattern=r"^[^\x00]*$")]
AbsolutePath = Annotated[
    str,
    StringConstraints(
        strict=True, max_length=4096, pattern=r"^/([^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*)?$"
    ),
]
UrlPath = Annotated[
    str,
    StringConstraints(
        strict=True, max_length=2048, pattern=r"^/([^/\x00-\x20\x7f\\#][^\x00-\x20\x7f\\#]*)?$"
    ),
]
"""A path on the container's own port; never a scheme, a host or a fragment."""

EnvName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")]
Label = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$")
]
HeaderName = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")
]
"""A token of RFC 9110."""
HeaderValue = Annotated[
    str,
    StringConstraints(
        strict=True,
        max_length=4096,
        pattern=r"^([^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?$",
    ),
]
"""One line without spaces around it."""
User = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[1-9][0-9]{0,9}(:[0-9]{1,10})?$"),
]
_IMAGE_ID = re.compile(r"(sha256:.*|[a-f0-9]{12,64})")


def _is_no_image_id(image: str) -> str:
    if _IMAGE_ID.fullmatch(image):
        raise ValueError("an image is named by its repository, never by its id")
    return image


ImageName = Annotated[
    str,
    StringConstraints(
        strict=True,
        max_length=512,
        pattern=(
            r"^[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?(:[0-9]{1,5})?"
            r"(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
            r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[a-f0-9]{64})?$"
        ),
    ),
    AfterValidator(_is_no_image_id),
]
"""`[registry[:port]/]repository[:tag][@sha256:digest]`, the grammar of distribution references.

What engines read as an image's id is refused: `sha256:...`, 12 to 64 hexadecimal digits alone.
"""


class CatalogModel(BaseModel):
    """What all catalog entries share: frozen, strict, nothing unknown."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


class Profile(StrEnum):
    """How a model is run; see docs/models.md for the table."""

    PROCESS = "process"
    """In memory means that the process runs."""
    HTTP = "http"
    """The server is told by the hooks `load` and `unload`."""
    OPEN_INFERENCE = "open-inference"
    """The server speaks the Open Inference Protocol, as KServe, Triton and MLServer do."""
    BATCH = "batch"
    """Runs to completion; only TEMP."""


class Resources(CatalogModel):
    """What one container may use at the most. None of it is looked at when a host is chosen."""

    cpus: float = Field(default=1.0, ge=0.01, le=1024, allow_inf_nan=False)
    """Processors; fractions are allowed, down to Docker's own minimum."""
    memory: Size = 1 << 30
    """Bytes of memory; swap is never added to it. At least 6 MiB, Docker's own minimum."""
    gpus: int = Field(default=0, ge=0, le=64, strict=True)
    """GPUs that the engine is asked for, which chooses them; no other container is kept off."""
    gpu_memory: Size = 0
    """Bytes of memory on each GPU: a note for people, neither enforced nor looked at."""

    @model_validator(mode="after")
    def _enough_memory(self) -> Self:
        if self.memory < 6 << 20:
            raise ValueError("memory must be at least 6m, Docker's own minimum")
        return self


class Hook(CatalogModel):
    """One HTTP request that the worker sends to the container's own port.

    Strings in `path`, `headers` and `body` may hold `{model}`, `{dataset}` and `{input}`. In `body`
    a string that is exactly `"{input}"` becomes the request's input as JSON. Never a shell string.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"] = "POST"
    path: UrlPath
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict, max_length=32)
    body: Any = None


class Hooks(CatalogModel):
    """The requests of the profiles `http` and `process`."""

    load: Hook | None = None
    unload: Hook | None = None
    infer: Hook | None = None
    alive: UrlPath = "/"
    """Answers 2xx once the server runs."""
    ready: UrlPath | None = None
    """Answers 2xx once the model is in memory; without it a 2xx of `load` is enough."""


class ModelSpec(CatalogModel):
    """A model of the catalog: the image and how it is run."""

    name: Id
    image: ImageName
    profile: Profile
    command: tuple[Text, ...] | None = Field(default=None, max_length=256)
    """Replaces the image's command; `{model}` and `{dataset}` are filled in. No shell."""
    env: dict[EnvName, Text] = Field(default_factory=dict, max_length=256)
    port: int | None = Field(default=None, ge=1, le=65535, strict=True)
    """The port inside the container; required but for `batch`."""
    hooks: Hooks = Hooks()
    model_name: Text | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """The name that the server knows the model by; `name` if not given."""
    resources: Resources = Resources()
    max_concurrency: int = Field(default=1, ge=1, le=128, strict=True)
    """INFER operations that may run in the container at the same time."""
    dataset_mount: AbsolutePath | None = "/data"
    """Where the dataset appears in the container, read-only; null mounts none."""
    user: User = "65534:65534"
    """Numeric uid[:gid]; never root."""
    read_only: bool = True
    """Root file system read-only, with a tmpfs on /tmp."""
    host_labels: dict[Label, Text] = Field(default_factory=dict, max_length=32)
    """Labels that a host must have, each with this value."""
    start_timeout_s: float = Field(default=120.0, gt=0, le=86_400, allow_inf_nan=False)
    """Seconds from start until the server must answer alive."""
    load_timeout_s: float = Field(default=600.0, gt=0, le=86_400, allow_inf_nan=False)
    """Seconds from load until the model must answer ready."""
    restart: Literal["never", "on_failure"] = "never"
    """What happens when the container dies while the model is loaded: the job FAILED, or the model
    is loaded again."""
    max_restarts: int = Field(default=3, ge=1, le=1_000, strict=True)
    """Restarts in a row, each after a longer pause, until the job FAILED after all; a model that
    was loaded for ten minutes starts counting anew."""
    on_host_lost: Literal["hold", "recreate"] = "hold"
    """What happens to a live job whose host is lost: it stays LOST, or it is created, and loaded
    if it was, on another host."""
    stop_grace_s: float = Field(default=10.0, ge=0, le=600, allow_inf_nan=False)
    """Seconds between SIGTERM and SIGKILL."""
    result_file: AbsolutePath | None = None
    """`batch`: the file that holds the result; null takes the last line of stdout.

    In /tmp, or in a folder of the image that `user` may write to; see docs/models.md.
    """

    @model_validator(mode="after")
    def _profile_has_what_it_needs(self) -> Self:
        if self.profile is not Profile.BATCH and self.port is None:
            raise ValueError(f"the profile {self.profile} needs a port")
        if self.profile is Profile.HTTP:
            missing = [n for n in ("load", "unload", "infer") if getattr(self.hooks, n) is None]
            if missing:
                raise ValueError(f"the profile http needs the hooks {', '.join(missing)}")
        if self.profile is Profile.PROCESS and self.hooks.infer is None:
            raise ValueError("the profile process needs the hook infer")
        if self.result_file is not None and self.profile is not Profile.BATCH:
            raise ValueError("result_file belongs to the profile batch")
        return self

    @model_validator(mode="after")
    def _mounts_have_their_own_places(self) -> Self:
        if self.dataset_mount is None:
            return self
        mount = PurePosixPath(normpath(self.dataset_mount))
        if mount == PurePosixPath("/"):
            raise ValueError("a dataset can't be mounted on the root")
        if self.result_file and PurePosixPath(normpath(self.result_file)).is_relative_to(mount):
            raise ValueError("result_file lies in dataset_mount, which is read-only")
        return self

    @property
    def served_name(self) -> str:
        """The name that fills `{model}`."""
        return self.model_name or self.name


class DatasetSpec(CatalogModel):
    """A dataset of the catalog: a named volume or a folder of the host, mounted read-only."""

    name: Id
    volume: Annotated[
        str | None, Field(strict=True, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$")
    ] = None
    path: AbsolutePath | None = None
    """A folder under one of the worker's dataset roots, after links are resolved."""
    ready_file: Annotated[
        str | None, Field(strict=True, max_length=1024, pattern=r"^[^/\x00-\x1f][^\x00-\x1f]*$")
    ] = None
    """A file inside that must exist before the dataset counts as there; null: it is not empty."""
    wait_s: float = Field(default=30.0, ge=0, le=3600, allow_inf_nan=False)
    """Seconds that a worker waits for a shared folder to appear."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.volume is None) == (self.path is None):
            raise ValueError("a dataset has either a volume or a path")
        if self.ready_file is not None and ".." in self.ready_file.split("/"):
            raise ValueError("ready_file stays inside of the dataset")
        return self
