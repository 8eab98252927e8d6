"""What container a command asks for, decided field by field before it is made. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from modelyard.contract.catalog.entries import ModelSpec, Resources
from modelyard.contract.catalog.mounts import kept_folder, normal, overlap
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import Verb
from modelyard.contract.strict_json import canonical_json
from worker.engine.labels import ContainerLabels, container_name
from worker.model_server.profiles import inventory_path
from worker.model_server.templates import fill

_SHM_BYTES = 64 << 20
_HOME = "HOME"
_SINCE_DISK = ("shm", "disk")
"""Fields that are younger than the hash over them; see `spec_hash`."""


@dataclass(frozen=True, slots=True)
class PlanRules:
    """What the host decides for all of its containers."""

    host_id: str
    network: str = "modelyard"
    publish: bool = True
    """True: the port is published on loopback; False: reached by its address on the network."""
    tmpfs_bytes: int = 256 << 20
    pids_limit: int = 256
    disk_bytes: int = 10 << 30
    """What a container may write to the disk if its model does not say."""
    max_disk_bytes: int = 100 << 30
    """The most that a model may ask for."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image brings with it that matters to its container."""

    volumes: tuple[str, ...] = ()
    """The folders that it declares as `VOLUME`; Docker lays an anonymous volume on each."""
    env: frozenset[str] = frozenset()
    """Names of the environment variables that it sets."""


@dataclass(frozen=True, slots=True)
class DatasetMount:
    """The dataset in the container; always read-only."""

    kind: Literal["bind", "volume"]
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything about a container that is not fixed for all of them.

    There is no field for privileges, capabilities, devices, namespaces or other binds, so no
    request and no model can ask for them; `docker_config` adds what is fixed.
    """

    name: str
    labels: ContainerLabels
    image: str
    command: tuple[str, ...] | None
    env: Mapping[str, str]
    user: str
    port: int | None
    publish: bool
    network: str
    read_only: bool
    tmpfs_bytes: int
    kept_folder: str | None
    """A folder on an anonymous volume: a result file must outlive the process, tmpfs does not."""
    memory: int
    shm: int
    cpus: float
    gpus: int
    pids_limit: int
    stop_grace_s: float
    dataset: DatasetMount | None


def spec_hash(spec: ModelSpec) -> str:
    """Return a short hash that is equal for equal specs, also those of an older version.

    A field that is not set and that older versions do not know is left out: a container that one of
    them has made is still the container of its spec.
    """
    document = spec.model_dump(mode="json")
    for name in _SINCE_DISK:
        if document["resources"][name] is None:
            del document["resources"][name]
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()[:16]


def plan_container(
    command: HostCommand,
    dataset: DatasetMount | None,
    rules: PlanRules,
    image: ImageFacts = ImageFacts(),
) -> ContainerPlan:
    """Return the container that `command` asks for; `dataset` is already checked.

    Raises `create_failed` for what this image or this host can't give to the model.
    """
    spec = command.model
    _volumes_leave_room(spec, dataset, image)
    values = {"model": spec.served_name, "dataset": dataset.target if dataset else ""}
    return ContainerPlan(
        name=container_name(command.job_id, command.generation),
        labels=ContainerLabels(
            host_id=rules.host_id,
            job_id=command.job_id,
            operation_id=command.operation_id,
            generation=command.generation,
            spec=spec_hash(spec),
            port=spec.port,
            ready_path=inventory_path(spec),
            strict=command.verb is Verb.TEMP or spec.on_host_lost == "recreate",
            disk=_disk(spec.resources, rules),
        ),
        image=spec.image,
        command=tuple(fill(part, values) for part in spec.command) if spec.command else None,
        env=_home(spec, image) | {name: fill(value, values) for name, value in spec.env.items()},
        # A uid alone would get group 0 from the engine.
        user=spec.user if ":" in spec.user else f"{spec.user}:{spec.user}",
        port=spec.port,
        publish=rules.publish,
        network=rules.network,
        read_only=spec.read_only,
        tmpfs_bytes=rules.tmpfs_bytes,
        kept_folder=_kept_folder(spec),
        memory=spec.resources.memory,
        shm=min(spec.resources.shm or _SHM_BYTES, spec.resources.memory),
        cpus=spec.resources.cpus,
        gpus=spec.resources.gpus,
        pids_limit=rules.pids_limit,
        stop_grace_s=spec.stop_grace_s,
        dataset=dataset,
    )


def _kept_folder(spec: ModelSpec) -> str | None:
    folder = kept_folder(spec.result_file)
    return str(folder) if folder else None


def _home(spec: ModelSpec, image: ImageFacts) -> dict[str, str]:
    """Return a home that can be written to, unless the model or its image names one.

    A numeric user has none, and what libraries keep in it would be refused.
    """
    return {} if _HOME in spec.env or _HOME in image.env else {_HOME: "/tmp"}  # noqa: S108 - inside


def _disk(resources: Resources, rules: PlanRules) -> int:
    if resources.disk is None:
        return min(rules.disk_bytes, rules.max_disk_bytes)
    if resources.disk > rules.max_disk_bytes:
        raise ModelyardError(
            ErrorCode.CREATE_FAILED,
            f"resources.disk is {resources.disk} bytes, and this host gives a container at most "
            f"{rules.max_disk_bytes} (MODELYARD_WORKER_MAX_DISK).",
        )
    return resources.disk


def _volumes_leave_room(spec: ModelSpec, dataset: DatasetMount | None, image: ImageFacts) -> None:
    """Check that no volume of the image lies above or below a mount of ours.

    On the same folder ours takes its place.
    """
    ours = {"dataset_mount": dataset.target if dataset else None, "result_file": _kept_folder(spec)}
    for field, target in ours.items():
        for volume in image.volumes if target is not None else ():
            one, other = normal(volume), normal(target or "")
            if one != other and overlap(one, other):
                raise ModelyardError(
                    ErrorCode.CREATE_FAILED,
                    f"The image declares a volume at {one}, which lies above or below {other} of "
                    f"{field}: one would hide the other. Take another {field}.",
                )
