"""Entries of the catalog: a model's image, needs and API; what a dataset mounts."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from modelyard.contract.catalog.conditions import DATASET_CONDITIONS, MODEL_CONDITIONS
from modelyard.contract.catalog.mounts import (
    ENGINES_OWN,
    TMP,
    in_the_way_of,
    kept_folder,
    normal,
    overlap,
)
from modelyard.contract.catalog.rules import ON_ENTRY, BrokenRule, Rule, follow_rules
from modelyard.contract.catalog.values import (
    AUTO,
    AbsolutePath,
    EnvName,
    FileInside,
    HeaderName,
    HeaderValue,
    ImageName,
    Label,
    ServedName,
    Size,
    SizeOrAuto,
    Switch,
    Text,
    UrlPath,
    User,
    VolumeName,
)
from modelyard.contract.content.media_types import MediaType
from modelyard.contract.ids import Id

_LEAST_MEMORY = 6 << 20
_LEAST_SHM = 64 << 10
_LEAST_DISK = 1 << 20


class CatalogModel(BaseModel):
    """What all catalog entries share: frozen, strict, nothing unknown.

    Entries that are already stored are read with `context=AS_RECORDED, extra="ignore"`; see
    `catalog/rules.py`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


Timeout = Annotated[float, Field(strict=True, gt=0, le=86_400, allow_inf_nan=False), ON_ENTRY]


class Profile(StrEnum):
    """How a model is run; see docs/models.md for the table."""

    PROCESS = "process"
    """The model is in memory while the process runs."""
    HTTP = "http"
    """The hooks `load` and `unload` tell the server to bring the model into memory, and out."""
    OPEN_INFERENCE = "open-inference"
    """The server speaks the Open Inference Protocol, as KServe, Triton and MLServer do."""
    BATCH = "batch"
    """Runs to completion; only TEMP."""


class Resources(CatalogModel):
    """What one container may use at most; the host keeps that much for it.

    See docs/capacity.md.
    """

    cpus: Annotated[float, Field(strict=True, ge=0.01, le=1024, allow_inf_nan=False), ON_ENTRY] = (
        1.0
    )
    """Processors; fractions are allowed, down to Docker's own minimum."""
    memory: Size = 1 << 30
    """Bytes of memory; swap is never added to it. At least 6 MiB, Docker's own minimum."""
    shm: Size | None = None
    """Bytes of `/dev/shm`, which count as memory; null: 64 MiB, or `memory` if that is less."""
    disk: Size | None = None
    """Bytes that the container may write to its root file system and its volumes, which are not in
    memory; null: the setting of the host's worker. The worker stops a container that writes more,
    with `disk_quota_exceeded`."""
    resident_memory: SizeOrAuto | None = None
    """The part of `memory` that is used only while the model is loaded: it is kept from LOAD to
    UNLOAD, so unloaded models can share it; more of it if the model was measured to take more.
    `auto`: what was measured, and all of `memory` until then. null: all of `memory` is kept as long
    as the container exists."""
    gpus: Annotated[int, Field(strict=True, ge=0, le=64), ON_ENTRY] = 0
    """GPUs that the container sees. They are chosen and bound to it when it is created."""
    gpu_memory: SizeOrAuto = 0
    """Bytes of memory that the loaded model takes on each GPU, or more if it was measured to take
    more; other models may use the rest. `auto`: what was measured, and the whole GPU until then. 0:
    while it is loaded it has each GPU for itself."""

    @model_validator(mode="wrap")
    @classmethod
    def _follows_the_rules(
        cls, value: object, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        return follow_rules(value, handler(value), RESOURCE_RULES, info)


def _memory_is_enough(resources: Resources) -> Iterator[BrokenRule]:
    if resources.memory < _LEAST_MEMORY:
        yield BrokenRule(("memory",), "memory must be at least 6m, Docker's own minimum")


def _shm_is_a_part_of_memory(resources: Resources) -> Iterator[BrokenRule]:
    if resources.shm is not None and not _LEAST_SHM <= resources.shm <= resources.memory:
        yield BrokenRule(
            ("shm",), "shm must be at least 64k and not more than memory, of which it is a part"
        )


def _disk_is_enough(resources: Resources) -> Iterator[BrokenRule]:
    if resources.disk is not None and resources.disk < _LEAST_DISK:
        yield BrokenRule(("disk",), "disk must be at least 1m")


def _resident_is_a_part_of_memory(resources: Resources) -> Iterator[BrokenRule]:
    resident = resources.resident_memory
    if resident == AUTO and "memory" not in resources.model_fields_set:
        yield BrokenRule(
            ("memory",), "with resident_memory auto, memory must say how much it is at the most"
        )
    elif resident is not None and resident != AUTO and resident > resources.memory:
        yield BrokenRule(
            ("resident_memory",), "resident_memory can't be more than memory, of which it is a part"
        )


def _gpu_memory_is_on_a_gpu(resources: Resources) -> Iterator[BrokenRule]:
    if resources.gpu_memory and not resources.gpus:
        yield BrokenRule(("gpu_memory",), "gpu_memory needs gpus: how many GPUs have it")


RESOURCE_RULES: tuple[Rule[Resources], ...] = (
    _memory_is_enough,
    _shm_is_a_part_of_memory,
    _disk_is_enough,
    _resident_is_a_part_of_memory,
    _gpu_memory_is_on_a_gpu,
)


class Residency(CatalogModel):
    """When the model is in memory, besides what DEPLOY_LOAD and DEPLOY_UNLOAD ask."""

    on_demand: Switch = False
    """True: an INFER loads the model if it is not in memory, and Modelyard may unload it while
    another model needs its place."""
    idle_unload_s: (
        Annotated[float, Field(strict=True, gt=0, le=604_800, allow_inf_nan=False), ON_ENTRY] | None
    ) = None
    """Seconds without an operation after which Modelyard unloads the model; null: never."""
    pinned: Switch = False
    """True: Modelyard never unloads the model, neither to make room nor because it is idle."""
    min_resident_s: Annotated[
        float, Field(strict=True, ge=0, le=86_400, allow_inf_nan=False), ON_ENTRY
    ] = 5.0
    """Seconds after its load in which Modelyard does not unload the model."""
    relocate: Switch = True
    """True: if there is no room for the model where its container is, and other GPUs of the host or
    another host have room, Modelyard creates the container anew there before the model is loaded.
    False: it waits where it is."""


Headers = Annotated[dict[HeaderName, HeaderValue], Field(max_length=32), ON_ENTRY]


class Hook(CatalogModel):
    """One HTTP request that the worker sends to the container's own port.

    Strings in `path`, `headers` and `body` may hold `{model}`, `{dataset}` and `{input}`. In `body`
    a string that is exactly `"{input}"` becomes the request's input as JSON. Never a shell string.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"] = "POST"
    path: UrlPath
    headers: Headers = Field(default_factory=dict)
    body: Any = None


class Probe(CatalogModel):
    """A GET to the container's own port that asks whether the server, or its model, is ready."""

    path: UrlPath
    headers: Headers = Field(default_factory=dict)
    body_contains: (
        Annotated[str, StringConstraints(strict=True, min_length=1, max_length=1_024), ON_ENTRY]
        | None
    ) = None
    """A text that the first 64 KiB of the answer have to contain, too; null: a 2xx is enough."""

    @model_serializer(mode="wrap")
    def _path_alone(self, whole: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        """Return the path if that is all: as it was given, and as older versions read it."""
        if self.headers or self.body_contains is not None:
            return cast("dict[str, Any]", whole(self))
        return self.path


def _as_object(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


def _as_inference(value: object) -> object:
    return {"path": value, "body": "{input}"} if isinstance(value, str) else value


ProbeOrPath = Annotated[Probe, BeforeValidator(_as_object, json_schema_input_type=Probe | UrlPath)]
"""A probe, or only its path."""
HookOrPath = Annotated[Hook, BeforeValidator(_as_object, json_schema_input_type=Hook | UrlPath)]
"""A hook, or only the path of a POST without a body."""
InferHookOrPath = Annotated[
    Hook, BeforeValidator(_as_inference, json_schema_input_type=Hook | UrlPath)
]
"""A hook, or only the path of a POST whose body is the input."""


class Hooks(CatalogModel):
    """The requests of the profiles `http` and `process`; each may be only a path."""

    load: HookOrPath | None = None
    unload: HookOrPath | None = None
    infer: InferHookOrPath | None = None
    alive: ProbeOrPath = Probe(path="/")
    """What answers 2xx once the server runs."""
    ready: ProbeOrPath | None = None
    """What answers 2xx once the model is in memory; null: a 2xx of `load` is enough."""


class ModelSpec(CatalogModel):
    """A model of the catalog: the image and how it is run."""

    model_config = ConfigDict(json_schema_extra=MODEL_CONDITIONS)

    name: Id
    image: ImageName
    profile: Profile
    entrypoint: Annotated[tuple[Text, ...], Field(max_length=256), ON_ENTRY] | None = None
    """Replaces the image's entrypoint; the image's command does not count then either. `{model}`
    and `{dataset}` are filled in. `[]`: there is none, so `command` is what runs."""
    command: Annotated[tuple[Text, ...], Field(max_length=256), ON_ENTRY] | None = None
    """Replaces the image's command; `{model}` and `{dataset}` are filled in. No shell."""
    env: Annotated[dict[EnvName, Text], Field(max_length=256), ON_ENTRY] = Field(
        default_factory=dict
    )
    port: Annotated[int, Field(strict=True, ge=1, le=65535), ON_ENTRY] | None = None
    """The port inside the container; required except for `batch`."""
    hooks: Hooks = Hooks()
    model_name: ServedName | None = None
    """The name that the server knows the model by; `name` if not given."""
    resources: Resources = Resources()
    residency: Residency = Residency()
    max_concurrency: Annotated[int, Field(strict=True, ge=1, le=128), ON_ENTRY] = 1
    """INFER operations that may run in the container at the same time."""
    dataset_mount: AbsolutePath | None = "/data"
    """Where the dataset appears in the container, read-only; null mounts none.

    It may not lie on, above or below `/tmp`, the folder of `result_file`, or a path that Docker
    mounts itself (`/proc`, `/sys`, `/dev`, `/etc/hosts` and the like).
    """
    user: User = "65534:65534"
    """Numeric uid[:gid]; never root and never its group. Without a gid the gid is the uid."""
    read_only: Switch = True
    """Root file system read-only, with a tmpfs on /tmp."""
    host_labels: Annotated[dict[Label, Text], Field(max_length=32), ON_ENTRY] = Field(
        default_factory=dict
    )
    """Labels that a host must have, each with this value."""
    start_timeout_s: Timeout = 120.0
    """Seconds from start until the server must answer alive."""
    load_timeout_s: Timeout = 600.0
    """Seconds from load until the model must answer ready."""
    restart: Literal["never", "on_failure"] = "never"
    """What happens when the container dies while the model is loaded. `never`: the job is FAILED.
    `on_failure`: Modelyard loads the model again."""
    max_restarts: Annotated[int, Field(strict=True, ge=1, le=1_000), ON_ENTRY] = 3
    """Restarts in a row, each after a longer pause, until the job is FAILED. The count starts again
    after a model was loaded for ten minutes."""
    on_host_lost: Literal["hold", "recreate"] = "hold"
    """What happens to a live job whose host is lost. `hold`: it stays LOST. `recreate`: Modelyard
    creates it on another host, and loads its model if it was loaded."""
    stop_grace_s: Annotated[
        float, Field(strict=True, ge=0, le=600, allow_inf_nan=False), ON_ENTRY
    ] = 10.0
    """Seconds between the image's stop signal (SIGTERM if it names none) and SIGKILL."""
    result_file: AbsolutePath | None = None
    """`batch`: the file that holds the result; null takes the last line of stdout.

    In /tmp, or in a folder of the image that `user` may write to; see docs/models.md.
    """
    result_type: Annotated[MediaType, ON_ENTRY] | None = None
    """`batch`: the media type of the result, such as `image/png`; null: it is JSON."""

    @model_validator(mode="wrap")
    @classmethod
    def _follows_the_rules(
        cls, value: object, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        return follow_rules(value, handler(value), MODEL_RULES, info)

    @property
    def served_name(self) -> str:
        """The name that fills `{model}`."""
        return self.model_name or self.name


class DatasetSpec(CatalogModel):
    """A dataset of the catalog: a named volume or a folder of the host, mounted read-only."""

    model_config = ConfigDict(json_schema_extra=DATASET_CONDITIONS)

    name: Id
    volume: VolumeName | None = None
    """A volume that the worker's settings allow, and that Docker keeps on the host itself."""
    path: AbsolutePath | None = None
    """A folder under one of the worker's dataset roots, after links are resolved."""
    ready_file: FileInside | None = None
    """A file that must exist in the dataset before it counts as available; null: the dataset must
    not be empty."""
    wait_s: Annotated[float, Field(strict=True, ge=0, le=3600, allow_inf_nan=False), ON_ENTRY] = (
        30.0
    )
    """Seconds that a worker waits for a shared folder to appear."""

    @model_validator(mode="wrap")
    @classmethod
    def _follows_the_rules(
        cls, value: object, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        return follow_rules(value, handler(value), DATASET_RULES, info)

    @property
    def place(self) -> str:
        """The volume's name, or the folder without `.`, `..` and doubled slashes."""
        return self.volume or str(normal(self.path or "/"))


def _profile_has_what_it_needs(spec: ModelSpec) -> Iterator[BrokenRule]:
    if spec.profile is not Profile.BATCH and spec.port is None:
        yield BrokenRule(("port",), f"the profile {spec.profile} needs a port")
    if spec.profile is Profile.HTTP:
        missing = [n for n in ("load", "unload", "infer") if getattr(spec.hooks, n) is None]
        if missing:
            yield BrokenRule(("hooks",), f"the profile http needs the hooks {', '.join(missing)}")
    if spec.profile is Profile.PROCESS and spec.hooks.infer is None:
        yield BrokenRule(("hooks",), "the profile process needs the hook infer")


def _something_runs(spec: ModelSpec) -> Iterator[BrokenRule]:
    if spec.entrypoint == () and not spec.command:
        yield BrokenRule(("command",), "without an entrypoint, command says what runs")


def _only_a_batch_has_a_result_file(spec: ModelSpec) -> Iterator[BrokenRule]:
    if spec.result_file is not None and spec.profile is not Profile.BATCH:
        yield BrokenRule(("result_file",), "result_file belongs to the profile batch")
    if spec.result_type is not None and spec.profile is not Profile.BATCH:
        message = "result_type belongs to the profile batch; a server says it in Content-Type"
        yield BrokenRule(("result_type",), message)


def _dataset_has_a_place_of_its_own(spec: ModelSpec) -> Iterator[BrokenRule]:
    if spec.dataset_mount is None:
        return
    mount = normal(spec.dataset_mount)
    if mount == mount.parent:
        yield BrokenRule(("dataset_mount",), "a dataset can't be mounted on the root")
    elif taken := in_the_way_of(mount, (TMP, *ENGINES_OWN)):
        message = (
            f"a dataset needs a place of its own: {mount} lies on, above or below {taken}, which "
            "every container has; take a folder such as /data"
        )
        yield BrokenRule(("dataset_mount",), message)


def _result_file_has_a_place_of_its_own(spec: ModelSpec) -> Iterator[BrokenRule]:
    folder = kept_folder(spec.result_file)
    if spec.result_file is None:
        return
    path = normal(spec.result_file)
    if path == path.parent:
        yield BrokenRule(("result_file",), "result_file is a file, not the root folder")
    elif taken := in_the_way_of(folder or path, ENGINES_OWN):
        message = (
            f"a volume is laid over the folder of result_file, and {folder or path} lies on, above "
            f"or below {taken}, which every container has; take a file in /tmp"
        )
        yield BrokenRule(("result_file",), message)
    if spec.dataset_mount is not None and folder is not None:
        mount = normal(spec.dataset_mount)
        if path.is_relative_to(mount):
            message = "result_file lies in dataset_mount, which is read-only"
            yield BrokenRule(("result_file",), message)
        elif overlap(folder, mount):
            message = (
                f"a volume is laid over the folder of result_file, {folder}: dataset_mount can't "
                "lie on, above or below it"
            )
            yield BrokenRule(("dataset_mount",), message)


def _dataset_has_one_source(dataset: DatasetSpec) -> Iterator[BrokenRule]:
    if (dataset.volume is None) == (dataset.path is None):
        yield BrokenRule((), "a dataset has either a volume or a path")


def _ready_file_stays_inside(dataset: DatasetSpec) -> Iterator[BrokenRule]:
    if dataset.ready_file is not None and ".." in dataset.ready_file.split("/"):
        yield BrokenRule(("ready_file",), "ready_file stays inside of the dataset")


def _only_a_server_stays_in_memory(spec: ModelSpec) -> Iterator[BrokenRule]:
    if spec.profile is Profile.BATCH and spec.residency != Residency():
        yield BrokenRule(("residency",), "the profile batch is never in memory between operations")


MODEL_RULES: tuple[Rule[ModelSpec], ...] = (
    _only_a_server_stays_in_memory,
    _profile_has_what_it_needs,
    _something_runs,
    _only_a_batch_has_a_result_file,
    _dataset_has_a_place_of_its_own,
    _result_file_has_a_place_of_its_own,
)
DATASET_RULES: tuple[Rule[DatasetSpec], ...] = (_dataset_has_one_source, _ready_file_stays_inside)
"""The rules about more than one field. Those about one field are at its type, in `values.py`."""
